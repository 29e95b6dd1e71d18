"""Read-only access to damaged or unreadable files, and the rows of certificates with their retries."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certctrl.errors import DiskError, StateCorruptError
from certctrl.store.state import read_only

REBUILD = "stop the agent and remove it; the agent then reconciles this host with the plane once"
READERS: dict[str, Callable[[Path], object]] = {
    "status.json": read_only.read_status,
    "certificates.json": read_only.read_certificates,
    "retries.json": read_only.waiting_signals,
    "inbox.json": read_only.waiting_signals,
    "pending_acks.json": read_only.pending_acks,
    "last_cursor.txt": read_only.read_cursor,
    "last_poll_time.txt": read_only.read_last_poll,
    "device_id.txt": read_only.read_device_id,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path


def put(root: Path, name: str, **body: object) -> None:
    (root / "state" / name).write_text(json.dumps({"state_version": 1, **body}))


CORRUPT: list[tuple[str, bytes, str]] = [
    ("certificates.json", b'{"state_version":1}', "expected certificate records"),
    ("certificates.json", b'{"state_version":1,"certificates":[]}', "expected certificate records"),
    ("certificates.json", b'{"state_version":1,"certificates":{"7":5}}', "expected certificate records"),
    ("certificates.json", b'{"state_version":1,"certificates":{"7":{"cert_id":7}}}', "expected certificate records"),
    ("certificates.json", b'{"state_version":1,"certificates":{"7":{"name":"x"}}}', "expected certificate records"),
    ("retries.json", b'{"state_version":1,"retries":{}}', "expected a list of retries"),
    ("retries.json", b'{"state_version":1,"retries":[[]]}', "expected a list of retries"),
    ("inbox.json", b'{"state_version":1,"entries":{}}', "expected a list of entries"),
    ("pending_acks.json", b'{"state_version":1}', "expected a list of acks"),
    ("pending_acks.json", b"", "it is empty"),
    ("last_cursor.txt", b"", "it is empty"),
    ("last_cursor.txt", b"x" * 65_536, "expected one line of text"),
    ("last_cursor.txt", b"x" * 65_537, "it is larger than 65536 bytes"),
    ("device_id.txt", b"a\nb", "expected one line of text"),
]


@pytest.mark.parametrize(("name", "body", "what"), CORRUPT)
def test_damage_is_named_with_its_fix(root: Path, name: str, body: bytes, what: str) -> None:
    path = root / "state" / name
    path.write_bytes(body)
    with pytest.raises(StateCorruptError) as caught:
        READERS[name](root)
    assert str(caught.value) == f"{path} is damaged: {what}"
    assert (caught.value.path, caught.value.fix) == (str(path), REBUILD)


def test_torn_files_that_are_too_large_count_as_absent(root: Path) -> None:
    (root / "state" / "last_poll_time.txt").write_bytes(b"1" * 65_537)
    assert read_only.read_last_poll(root) is None


@pytest.mark.parametrize("name", [*READERS, "refresh_token.txt", "last_cursor.txt "])
def test_a_state_directory_that_is_a_file_is_a_disk_error(root: Path, name: str) -> None:
    (root / "state").rmdir()
    (root / "state").touch()
    others = {"refresh_token.txt": read_only.is_registered, "last_cursor.txt ": read_only.read_cursor_at}
    with pytest.raises(DiskError) as caught:
        (READERS | others)[name](root)
    path = root / "state" / ("retries.json" if name == "inbox.json" else name.strip())
    assert str(caught.value) == f"cannot read {path}: {os.strerror(errno.ENOTDIR)}"
    assert (caught.value.path, caught.value.errno, caught.value.fix) == (str(path), errno.ENOTDIR, f"check {path}")


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.EACCES, "run as the agent's user, or as root"), (errno.EPERM, "run as the agent's user, or as root"),
        (errno.EIO, "check {path}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["open", "read"])
def test_the_fix_of_an_unreadable_file(
    root: Path, code: int, fix: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "state" / "last_cursor.txt"
    path.write_text("1-1")

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch, pytest.raises(DiskError) as caught:
        patch.setattr(os, call, refuse)
        read_only.read_cursor(root)
    assert str(caught.value) == f"cannot read {path}: {os.strerror(code)}"
    assert (caught.value.path, caught.value.errno, caught.value.fix) == (str(path), code, fix.format(path=path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_read_to_its_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.read
    put(root, "status.json", version="1.0", poll={"a": [1, 2, 3]})
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", lambda fd, size: real(fd, min(size, 7)))
        assert read_only.read_status(root) == {"version": "1.0", "poll": {"a": [1, 2, 3]}}
    (root / "state" / "last_cursor.txt").write_bytes(b"x" * 65_537)
    with monkeypatch.context() as patch, pytest.raises(StateCorruptError, match="larger than 65536 bytes"):
        patch.setattr(os, "read", lambda fd, size: real(fd, min(size, 4096)))
        read_only.read_cursor(root)


@pytest.mark.parametrize("name", READERS)
def test_links_are_not_followed(root: Path, name: str) -> None:
    path = root / "state" / name
    path.symlink_to("elsewhere")
    (root / "state" / "elsewhere").write_text('{"state_version":1}')
    with pytest.raises(DiskError) as caught:
        READERS[name](root)
    assert (caught.value.path, caught.value.errno) == (str(path), errno.ELOOP)


# --- certificates -------------------------------------------------------------------------------------------

RETRY = {"last_error": "no route", "attempts": 3, "next_try_at": 9.5, "kind": "waiting", "failures": 4}
NO_RETRY = {"last_error": "", "attempts": 0, "next_try_at": 0.0}


@pytest.mark.parametrize(
    ("record", "retry", "failing"),
    [
        ({"last_outcome": "failed"}, {"resource": "cert:7"}, True),
        ({"last_outcome": "rolled_back"}, {"resource": "cert:7"}, True),
        ({"last_outcome": "applied", "owed": ["reload"]}, {"resource": "cert:7"}, True),
        ({"last_outcome": "applied", "owed": []}, {"resource": "cert:7"}, False),
        ({"last_outcome": "failed"}, {"resource": "cert:8"}, False),
        ({"last_outcome": "failed"}, {"resource": "cert:7", "signal": {"type": "cert.revoked"}}, False),
        ({"last_outcome": "failed"}, {"resource": "cert:7", "signal": {"type": "cert.renewed"}}, True),
        ({"last_outcome": "failed"}, {"resource": "cert:7", "signal": None}, True),
    ],
)
def test_a_certificate_has_the_retry_of_its_failure(
    root: Path, record: dict[str, Any], retry: dict[str, Any], failing: bool
) -> None:
    put(root, "certificates.json", certificates={"7": {"cert_id": 7, "name": "www", **record}})
    assert read_only.read_certificates(root) == [{"cert_id": 7, "name": "www", **record, **NO_RETRY}]
    put(root, "retries.json", retries=[retry | RETRY])
    shown = {key: RETRY[key] for key in NO_RETRY} if failing else NO_RETRY
    assert read_only.read_certificates(root) == [{"cert_id": 7, "name": "www", **record, **shown}]
    put(root, "retries.json", retries=[{**retry, "last_error": "no route"}])
    (found,) = read_only.read_certificates(root) or ()
    assert found["attempts"] == 0 and found["last_error"] == ("no route" if failing else "")


def test_the_fields_of_an_earlier_release_are_kept_without_a_retry(root: Path) -> None:
    row = {
        "cert_id": 7,
        "name": "www",
        "last_outcome": "failed",
        "last_error": "bad",
        "attempts": 2,
        "next_try_at": 5.0,
    }
    put(root, "certificates.json", certificates={"7": row})
    assert read_only.read_certificates(root) == [row]


def test_certificates_are_in_the_order_of_their_ids(root: Path) -> None:
    rows = {str(number): {"cert_id": number, "name": "x"} for number in (10, 9, 100, 1)}
    put(root, "certificates.json", certificates=rows)
    assert [row["cert_id"] for row in read_only.read_certificates(root) or ()] == [1, 9, 10, 100]


# --- signals ------------------------------------------------------------------------------------------------


def test_waiting_signals_are_those_of_the_inbox_and_of_retries(root: Path) -> None:
    fresh: list[Any] = [{"signal": {}}, {"signal": {}, "attempts": 0, "last_error": ""}, 5]
    failed = [{"signal": {}, "attempts": 1}, {"signal": {}, "last_error": "no route"}]
    put(root, "inbox.json", entries=fresh + failed)
    assert read_only.waiting_signals(root) == 5, "without retries.json all are still in the inbox"
    put(root, "retries.json", retries=[{"signal": None}, {}, {"signal": {"type": "cert.revoked"}}])
    assert read_only.waiting_signals(root) == 4
    (root / "state" / "inbox.json").unlink()
    assert read_only.waiting_signals(root) == 1


def test_a_cursor_has_the_time_of_its_file(root: Path) -> None:
    path = root / "state" / "last_cursor.txt"
    assert (read_only.read_cursor_at(root), read_only.is_registered(root)) == (None, False)
    path.write_text("1-1")
    os.utime(path, (5, 7.5))
    assert read_only.read_cursor_at(root) == 7.5
    (root / "state" / "refresh_token.txt").touch()
    assert read_only.is_registered(root) is True
