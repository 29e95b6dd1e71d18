"""Read-only access returns the data of the store and imports almost nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from certctrl.errors import DiskError, StateCorruptError
from certctrl.model.certificate import CertFacts
from certctrl.model.records import Ack, CertRecord, InboxEntry, Tokens
from certctrl.model.signals import CertRenewed
from certctrl.store.state import read_only
from certctrl.store.state.store import StateStore


def test_nothing_was_ever_written(store: StateStore) -> None:
    root = store.layout.root
    assert not read_only.is_registered(root)
    looks = (
        read_only.read_status,
        read_only.read_certificates,
        read_only.read_cursor,
        read_only.read_cursor_at,
        read_only.read_last_poll,
    )
    assert [look(root) for look in looks] == [None] * 5
    assert (read_only.pending_acks(root), read_only.waiting_signals(root), read_only.read_device_id(root)) == (
        0,
        0,
        None,
    )


def test_reads_the_files_of_the_store(store: StateStore) -> None:
    root = store.layout.root
    records = {
        n: CertRecord(facts=CertFacts(cert_id=n, name=f"{n}.example", domains=(f"{n}.example",))) for n in (10, 2)
    }
    store.installed.save_certificates(records)
    store.installed.save_status({"version": "1.0", "state": "Polling"})
    store.session.save_cursor("1-1")
    store.session.save_last_poll(1_800_000_000.0)
    store.session.save_device_id("some-id")
    store.session.save_tokens(Tokens(access_token="a", refresh_token="r"))
    store.session.save_outcomes([Ack(event={}), Ack(event={})], ())
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 7))])
    assert [row["cert_id"] for row in read_only.read_certificates(root) or ()] == [2, 10]
    assert (read_only.read_certificates(root) or [])[0].keys() == {
        field.name for field in (*attrs.fields(CertFacts), *attrs.fields(CertRecord))
    } - {"facts", "pending"} | {"owed", "last_error", "attempts", "next_try_at"}
    assert read_only.read_status(root) == {"version": "1.0", "state": "Polling"}
    assert (read_only.read_cursor(root), read_only.read_last_poll(root)) == ("1-1", 1_800_000_000.0)
    assert read_only.read_cursor_at(root) == store.layout.last_cursor.stat().st_mtime
    assert (read_only.read_device_id(root), read_only.is_registered(root)) == ("some-id", True)
    assert (read_only.pending_acks(root), read_only.waiting_signals(root)) == (2, 1)


READERS: dict[str, Callable[[Path], object]] = {
    "certificates.json": read_only.read_certificates,
    "last_cursor.txt": read_only.read_cursor,
    "device_id.txt": read_only.read_device_id,
    "pending_acks.json": read_only.pending_acks,
    "inbox.json": read_only.waiting_signals,
}
BODIES = [
    b"",
    b"\0\0\0\0",
    b"\xff\xfe\0",
    b"{",
    b"[]",
    b"{}",
    b'{"state_version":1,"certificates":{"1":{}},"acks":3}',
    b"[" * 99_999,
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("name", [name for name in READERS if name.endswith("json")])
def test_damage_is_reported(store: StateStore, name: str, body: bytes) -> None:
    path = store.layout.state / name
    path.write_bytes(body)
    with pytest.raises(StateCorruptError) as caught:
        READERS[name](store.layout.root)
    assert str(path) in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("name", READERS)
def test_an_unreadable_file_is_a_disk_error(store: StateStore, name: str) -> None:
    path = store.layout.state / name
    path.mkdir()
    with pytest.raises(DiskError, match=name):
        READERS[name](store.layout.root)
    path.rmdir()
    path.symlink_to("/etc/passwd")
    with pytest.raises(DiskError, match=name):
        READERS[name](store.layout.root)


@pytest.mark.usefixtures("no_wait")
def test_a_pipe_does_not_hang_and_a_huge_file_is_not_read(store: StateStore) -> None:
    os.mkfifo(store.layout.inbox)
    with pytest.raises(DiskError):
        read_only.waiting_signals(store.layout.root)
    with store.layout.last_cursor.open("wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(StateCorruptError, match="larger"):
        read_only.read_cursor(store.layout.root)


def test_a_torn_status_is_ignored(store: StateStore) -> None:
    store.layout.status.write_bytes(b'{"state_ver')
    store.layout.last_poll_time.write_bytes(b"18000")
    assert (read_only.read_status(store.layout.root), read_only.read_last_poll(store.layout.root)) == (None, None)


def test_read_only_imports_nothing_heavy() -> None:
    code = "import sys, certctrl.store.state.read_only; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"attr", "attrs", "cattrs", "trio", "httpx", "cryptography", "pathlib", "hashlib", "typer"}


def test_the_store_imports_nothing_heavy() -> None:
    code = "import sys, certctrl.store.state.session; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"cattrs", "trio", "httpx", "cryptography", "typer", "jwt", "nacl"}
