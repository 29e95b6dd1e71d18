"""Configuration files are read within limits, and nothing on the disk stops the search."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from adopt_files import host
from hypothesis import given, settings
from hypothesis import strategies as st

from certctrl.install.adopt import apache
from certctrl.install.adopt import sources as limits
from certctrl.install.adopt.apache import read_apache
from certctrl.install.adopt.certbot import read_certbot
from certctrl.install.adopt.dovecot import read_dovecot
from certctrl.install.adopt.given import read_given
from certctrl.install.adopt.haproxy import read_haproxy
from certctrl.install.adopt.host_files import RealHostFiles
from certctrl.install.adopt.in_use import certificates_in_use
from certctrl.install.adopt.nginx import read_nginx
from certctrl.install.adopt.pem import read_pem
from certctrl.install.adopt.postfix import read_postfix
from certctrl.install.adopt.sources import Kind, Sources, UnreadableError
from certctrl.install.adopt.uses import At, Use

Reader = Callable[[Sources, str], list[Use]]
READERS: dict[str, Reader] = {
    "nginx": read_nginx,
    "apache": read_apache,
    "haproxy": read_haproxy,
    "postfix": read_postfix,
    "dovecot": read_dovecot,
}
INCLUDE = {"nginx": "include {};", "apache": "Include {}", "dovecot": "!include {}"}
EACH_READER = pytest.mark.parametrize("name", READERS)
EACH_INCLUDE = pytest.mark.parametrize("name", INCLUDE)
SECONDS = 20.0
"""CPU time that no search may take, even on a slow machine."""


@EACH_INCLUDE
def test_a_file_that_includes_itself(name: str) -> None:
    one, two = INCLUDE[name].format("/etc/two"), INCLUDE[name].format("/etc/one")
    sources = host({"/etc/one": f"\n{one}\n", "/etc/two": f"{two}\n"})
    assert READERS[name](sources, "/etc/one") == []
    assert [(str(one.at), one.what) for one in sources.remarks] == [("/etc/two:1", "includes itself: /etc/one")]


@EACH_INCLUDE
def test_a_link_to_itself_counts_as_the_same_file(name: str) -> None:
    sources = host({"/etc/one": INCLUDE[name].format("/etc/again")}, {"/etc/again": "/etc/one"})
    assert READERS[name](sources, "/etc/one") == []
    assert [one.what for one in sources.remarks] == ["includes itself: /etc/again"]


@EACH_INCLUDE
def test_files_that_double_at_each_level_end(name: str) -> None:
    twice = {f"/etc/{n}": f"{INCLUDE[name].format(f'/etc/{n + 1}')}\n" * 2 for n in range(40)}
    sources, begun = host(twice), time.process_time()
    assert READERS[name](sources, "/etc/0") == []
    assert sources.is_exhausted and time.process_time() - begun < SECONDS
    assert len(sources.remarks) <= limits.MAX_REMARKS


@EACH_INCLUDE
def test_more_files_than_the_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_INCLUSIONS", 50)
    many = {f"/etc/many/{n:03}.conf": "x y\n" for n in range(100)}
    sources = host({"/etc/main": INCLUDE[name].format("/etc/many/*.conf"), **many})
    assert READERS[name](sources, "/etc/main") == []
    assert [str(one.at) for one in sources.remarks] == ["/etc/many/049.conf"]
    assert "50 are included before" in sources.remarks[0].what


@EACH_INCLUDE
def test_no_file_is_opened_after_the_last_byte(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 100)
    sources = host(
        {"/etc/main": INCLUDE[name].format("/etc/many/*"), **{f"/etc/many/{n}": "x y\n" * 9 for n in range(9)}}
    )
    opened: list[str] = []
    monkeypatch.setattr(
        sources, "_decoded", lambda path, by, read=sources._decoded: (opened.append(path), read(path, by))[1]
    )
    READERS[name](sources, "/etc/main")
    assert len(opened) < 5
    assert ["bytes of configuration" in one.what for one in sources.remarks] == [True]


def test_variables_do_not_grow() -> None:
    sources, begun = (
        host({"/etc/a": f"Define a {'x' * 4000}\nDefine b {'${a}' * 4000}\nListen {'${b}' * 4000}\n"}),
        time.process_time(),
    )
    assert read_apache(sources, "/etc/a") == [] and time.process_time() - begun < SECONDS
    assert len(apache._Reader(sources, "/")._expanded("${x}" * 10_000)) == apache.MAX_WORD


def test_patterns_compare_a_limited_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_NAMES", 50)
    sources = host({f"/d/{n // 10}/{n}/x": "" for n in range(100)})
    assert sources.matching("/d/*/*/none", At("/c")) == []
    assert any("50 names are compared before" in one.what for one in sources.remarks)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/d/*.conf", ["/d/a.conf", "/d/b.conf"]), ("/d/[ab].conf", ["/d/a.conf", "/d/b.conf"]), ("/d/?.conf", ["/d/a.conf", "/d/b.conf"]),
        ("/*/a.conf", ["/d/a.conf"]), ("/d/.*", ["/d/.hidden.conf"]), ("/d/*/*", ["/d/sub/x"]), ("/none/*", []), ("/d/[", []),
    ],
)  # fmt: skip
def test_patterns(pattern: str, found: list[str]) -> None:
    sources = host({"/d/a.conf": "", "/d/b.conf": "", "/d/.hidden.conf": "", "/d/sub/x": "", "/d/c.bak": ""})
    assert sources.matching(pattern, At("/c")) == found


@EACH_READER
def test_a_file_that_is_too_large_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_FILE", 100)
    sources = host({"/etc/main": "#" * 101})
    assert READERS[name](sources, "/etc/main") == []
    assert "more than 100 bytes" in sources.remarks[0].what


@EACH_READER
@pytest.mark.parametrize(
    "data", [b"\x7fELF\0\0\0", b"\xff\xfe{};\xff", b"{" * 5000, b'"' * 4999, b"\\" * 5001, b"<" * 999]
)
def test_binary_garbage(name: str, data: bytes) -> None:
    assert READERS[name](host({"/etc/main": data}), "/etc/main") == []


WORDS = (
    "http", "{", "}", ";", "server", "listen", "443", "ssl", "ssl_certificate", "/c.pem", "ssl_certificate_key", "include",
    "/etc/main", "/etc/*", '"', "'", "\\", "\n", "#", "$", "${x}", "Define", "<VirtualHost", "*:443>", "</VirtualHost>",
    "SSLEngine", "on", "SSLCertificateFile", "bind", ":443", "crt", "crt-list", "smtpd_tls_cert_file", "=", "$x", "x",
    "ssl_cert", "<", "!include", "ssl_key", "local_name", "-o", "inet", "global", "crt-base", "\t", "\0", "é", "\udcff",
    "protocol", "starttls", "imap", "mail", "server_name", "content_by_lua_block", "[::", "]", "@", "%{", "smtpd_tls_chain_files",
)  # fmt: skip


@EACH_READER
@settings(max_examples=40)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=60), st.sampled_from(["", " "]))
def test_garbage_of_its_own_words_never_raises(name: str, words: list[str], between: str) -> None:
    data = between.join(words).encode("utf-8", "surrogateescape" if "\udcff" in words else "ignore")
    sources = host({"/etc/main": data, "/etc/master.cf": data})
    uses = READERS[name](sources, "/etc/main")
    certificates_in_use(sources.files, uses, [])
    assert all(path.startswith("/") for use in uses for _, path in use.files)


@settings(max_examples=40)
@given(st.binary(max_size=300))
def test_garbage_as_pem_and_as_a_lineage_never_raises(data: bytes) -> None:
    around = b"-----BEGIN CERTIFICATE-----\n" + data + b"\n-----BEGIN PRIVATE KEY-----\n" + data
    sources = host({"/d/a.pem": data, "/d/b.pem": around, "/le/renewal/x.conf": data})
    read_given(sources, ["/d", "/d/a.pem"])
    assert read_certbot(sources, "/le") == []
    assert read_pem(sources.files, "/d/b.pem").leaf is None


# --- the files of this host -----------------------------------------------------------------------------------------


def test_a_pipe_a_device_and_a_socket_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    files = RealHostFiles()
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UnreadableError, match="not a regular file"):
            files.read(str(path), 100)
    sources = Sources(files)
    assert read_nginx(sources, str(tmp_path / "pipe")) == []
    assert "not a regular file" in sources.remarks[0].what


def test_names_that_no_file_can_have() -> None:
    files = RealHostFiles()
    for path in ("/a\0b", "/" + "a" * 300, "/x" * 5000, "/\udcff"):
        assert files.kind(path) in (Kind.MISSING, Kind.OTHER)
        assert isinstance(files.real(path), str)
        with pytest.raises(UnreadableError):
            files.read(path, 100)
        with pytest.raises(UnreadableError):
            files.names(path, 100)


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    files = RealHostFiles()
    assert files.kind(str(tmp_path / "a")) is Kind.MISSING
    with pytest.raises(UnreadableError, match="symbolic links"):
        files.read(str(tmp_path / "a"), 100)


def test_a_limit_holds_for_a_file_that_grows(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 101)
    with pytest.raises(UnreadableError, match="more than 100 bytes"):
        RealHostFiles().read(str(tmp_path / "a"), 100)
    assert len(RealHostFiles().read(str(tmp_path / "a"), 101)) == 101
