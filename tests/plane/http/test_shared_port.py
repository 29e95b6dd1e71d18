"""Sockets of a service manager, and ports that two processes share."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from certctrl.cli.plane.sockets import open_sockets
from certctrl.errors import ConfigError, TransportError, UsageError
from certctrl.plane.http import shared_port
from certctrl.plane.http.server import listen
from certctrl.plane.http.shared_port import HandOver, inherited_sockets

HOST = "127.0.0.1"


@pytest.fixture
def fds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Two listening sockets with consecutive descriptors, as of a service manager; adopted ones are closed here."""
    made = [socket.create_server((HOST, 0)) for _ in range(2)]
    first = 200
    for number, sock in enumerate(made):
        os.dup2(sock.fileno(), first + number)
    monkeypatch.setattr(shared_port, "FIRST_FD", first)
    yield made
    for sock in made:
        sock.close()
    for fd in (first, first + 1):
        with contextlib.suppress(OSError):
            os.close(fd)


def passed(count: int, names: str = "", pid: int | None = None) -> dict[str, str]:
    pid = os.getpid() if pid is None else pid
    return {"LISTEN_PID": str(pid), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}


def test_sockets_are_for_the_process_that_they_name(fds: list[socket.socket]) -> None:
    assert inherited_sockets({}) == (None, None)
    assert inherited_sockets(passed(1, pid=1)) == (None, None)
    assert inherited_sockets(passed(0)) == (None, None)
    assert inherited_sockets(passed(1) | {"LISTEN_FDS": "x"}) == (None, None)


def test_one_socket_is_for_https_and_one_named_http_without_tls(fds: list[socket.socket]) -> None:
    https, plain = inherited_sockets(passed(2, "http:other"))
    assert https is not None and plain is not None
    with https, plain:
        assert [plain.getsockname(), https.getsockname()] == [sock.getsockname() for sock in fds]
        assert not https.get_inheritable()


@pytest.mark.parametrize("names", ["", "a:b", "http:http"])
def test_two_sockets_of_one_kind_are_refused(fds: list[socket.socket], names: str) -> None:
    with pytest.raises(ConfigError, match="too many sockets") as caught:
        inherited_sockets(passed(2, names))
    assert caught.value.fix


def test_what_is_no_listening_tcp_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (socket.socket(), socket.socket(socket.AF_UNIX)):
        with kind as sock:
            monkeypatch.setattr(shared_port, "FIRST_FD", sock.fileno())
            with pytest.raises(ConfigError, match="is not a listening TCP socket"):
                inherited_sockets(passed(1))
    monkeypatch.setattr(shared_port, "FIRST_FD", 999)
    with pytest.raises(ConfigError, match="socket 999: "):
        inherited_sockets(passed(1))


def test_a_passed_socket_replaces_the_address(fds: list[socket.socket]) -> None:
    found = open_sockets(HOST, 1, "", False, passed(1))
    assert found.https is not None
    with found.https:
        assert (found.host, found.port) == fds[0].getsockname()
        assert found.options()["hand_over"] == HandOver(stays_open=True)


@pytest.mark.parametrize(
    ("http", "share", "environ", "what"),
    [
        ("", True, 1, "--reuse-port does not go"),
        (f"{HOST}:0", False, 1, "--http does not go"),
        ("", False, "http", "without TLS only"),
    ],
)
def test_options_that_contradict_passed_sockets(
    fds: list[socket.socket], http: str, share: bool, environ: int | str, what: str
) -> None:
    given = passed(1, environ) if isinstance(environ, str) else passed(environ)
    with pytest.raises(UsageError, match=what):
        open_sockets(HOST, 0, http, share, given)


def test_without_options_the_plane_opens_its_socket() -> None:
    found = open_sockets(HOST, 8443, "", False, {})
    assert (found.https, found.http, found.host, found.port) == (None, None, HOST, 8443)


def test_new_connections_go_to_the_newer_of_two_sockets() -> None:
    with listen(HOST, 0, share=True) as older:
        port = older.getsockname()[1]
        older.settimeout(60)
        with socket.create_connection((HOST, port)):
            older.accept()[0].close()
        older.setblocking(False)
        with pytest.raises(TransportError, match="cannot listen"):
            listen(HOST, port)
        with listen(HOST, port, share=True) as newer:
            newer.settimeout(60)
            for _ in range(50):
                with socket.create_connection((HOST, port)):
                    newer.accept()[0].close()
            with pytest.raises(BlockingIOError):
                older.accept()
            older.close()
            for _ in range(20):
                with socket.create_connection((HOST, port)):
                    newer.accept()[0].close()
            with listen(HOST, port, share=True) as newest, socket.create_connection((HOST, port)):
                newest.settimeout(60)
                newest.accept()[0].close()


def test_an_older_process_serves_on_if_the_newer_one_gives_up() -> None:
    with listen(HOST, 0, share=True) as older:
        port = older.getsockname()[1]
        listen(HOST, port, share=True).close()
        older.settimeout(60)
        for _ in range(20):
            with socket.create_connection((HOST, port)):
                older.accept()[0].close()
