"""The witness and the built-in service: what they report, also for a mixed pair."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from certctrl.sandbox import service
from certctrl.sandbox.serials import colons, short_serial
from certctrl.sandbox.witness import SATISFIED, DiskWatch, plain_serial


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def generation(authority: trustme.CA, directory: Path, name: str) -> Path:
    directory.mkdir(parents=True)
    issued = authority.issue_cert(name)
    (directory / "fullchain.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (directory / "private.key").write_bytes(issued.private_key_pem.bytes())
    return directory


@pytest.mark.parametrize(("written", "plain"), [("04:AB:00", "4ab00"), ("4ab00", "4ab00"), ("00:01", "1"), ("", "")])
def test_serials_compare_equal_in_any_notation(written: str, plain: str) -> None:
    assert plain_serial(written) == plain
    assert plain_serial(colons(plain)) == plain


@pytest.mark.parametrize(
    ("whole", "short"),
    [
        ("27:7f:0e:fa:72:9d:22:06:da:8a:e2:30:22:09:f3:60:8c:62:32:35", "27:7f…32:35"),
        ("7f0efa729d2206da", "7f:0e…06:da"),
        ("f0efa729d2206da", "0f:0e…06:da"),
        ("01:02:03:04:05", "01:02:03:04:05"),
        ("a", "0a"),
        ("", ""),
    ],
)
def test_serials_are_shortened_for_display(whole: str, short: str) -> None:
    assert short_serial(whole) == short


@pytest.mark.parametrize(
    ("saw", "served", "changed", "gone"),
    [("a", True, False, False), ("b", False, True, False), ("", False, False, True), ("untrusted", False, False, True)],
)
def test_what_satisfies_a_request(saw: str, served: bool, changed: bool, gone: bool) -> None:
    assert [SATISFIED[op](saw, {"a"}) for op in ("served", "changed", "gone")] == [served, changed, gone]


def test_the_disk_watch_counts_pairs_that_do_not_match(authority: trustme.CA, tmp_path: Path) -> None:
    one, two = (generation(authority, tmp_path / "g" / which, "a.test") for which in ("1", "2"))
    link = tmp_path / "live"
    link.symlink_to("g/1")
    watch = DiskWatch({"a.test": str(link)})
    watch.check("a.test", link)
    assert (watch.checks, watch.mismatches) == (1, 0)
    shutil.copy(two / "private.key", one / "private.key")
    watch.check("a.test", link)
    assert (watch.checks, watch.mismatches) == (2, 1)
    assert "a.test" in watch.first


def test_a_missing_link_is_not_a_mismatch_but_a_dangling_one_is(tmp_path: Path) -> None:
    link = tmp_path / "live"
    watch = DiskWatch({"a.test": str(link)})
    watch.check("a.test", link)
    assert (watch.checks, watch.mismatches) == (0, 0)
    link.symlink_to("nowhere")
    watch.check("a.test", link)
    assert (watch.checks, watch.mismatches) == (1, 1)


def test_the_service_loads_one_generation_and_refuses_a_mixed_one(authority: trustme.CA, tmp_path: Path) -> None:
    good = generation(authority, tmp_path / "1", "a.test")
    front = service.Front({"a.test": str(good), "gone.test": str(tmp_path / "none")})
    assert front.reload() == "serving 1 of 2 names"
    generation(authority, tmp_path / "2", "a.test")
    shutil.copy(tmp_path / "2" / "private.key", good / "private.key")
    assert "keeping the old certificates" in front.reload()
    with pytest.raises(ssl.SSLError):
        service.load_pair(good)


@pytest.mark.parametrize(("mixed", "status"), [(False, 0), (True, 1)])
def test_check_runs_without_our_package(authority: trustme.CA, tmp_path: Path, mixed: bool, status: int) -> None:
    pair = generation(authority, tmp_path / "1", "a.test")
    if mixed:
        shutil.copy(generation(authority, tmp_path / "2", "a.test") / "private.key", pair)
    done = subprocess.run(
        [sys.executable, "-I", service.__file__, "--check", str(pair)],
        cwd="/", env={"PATH": os.defpath}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert ("mismatch" in done.stderr) is mixed
