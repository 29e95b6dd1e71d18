"""State files one by one: refusals with their fixes, repeated writes, and the cost of a save."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from state_model import fsyncs, modelled

from certctrl.errors import DiskError, StateCorruptError
from certctrl.model.certificate import CertFacts
from certctrl.model.records import Ack, CaRecord, CertRecord, InboxEntry, Retry, RetryKind
from certctrl.model.signals import CertRenewed
from certctrl.store.disk.fs import RealFs
from certctrl.store.state.files import REBUILD, RESYNC, StateFiles, sweep_leftovers
from certctrl.store.state.installed import History, StoredInstallConfig
from certctrl.store.state.store import StateStore

FS = RealFs()


@pytest.mark.parametrize(("size", "limit", "fits"), [(0, 0, True), (4, 4, True), (5, 4, False)])
def test_a_file_is_read_up_to_its_limit(tmp_path: Path, size: int, limit: int, fits: bool) -> None:
    path = tmp_path / "x"
    assert StateFiles(FS).load_bytes(path, limit, "the fix") is None
    path.write_bytes(b"x" * size)
    if fits:
        assert StateFiles(FS).load_bytes(path, limit, "the fix") == b"x" * size
        return
    with pytest.raises(StateCorruptError) as caught:
        StateFiles(FS).load_bytes(path, limit, "the fix")
    assert str(caught.value) == f"{path} is damaged: it has 5 bytes, expected at most 4"
    assert (caught.value.path, caught.value.fix) == (str(path), "the fix")


def test_an_entry_that_is_not_a_file_must_be_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir()
    with pytest.raises(StateCorruptError) as caught:
        StateFiles(FS).load_bytes(path, 10, "the fix")
    assert str(caught.value) == f"{path} is damaged: it is not a regular file"
    assert (caught.value.path, caught.value.fix) == (str(path), f"move {path} away; the fix")


def test_a_file_of_another_user_is_given_to_this_one() -> None:
    store, fs = modelled()
    store.session.save_device_id("id")
    path = store.layout.device_id
    fs.chown(fs.open_file(path), 0, 0)
    with pytest.raises(StateCorruptError) as caught:
        StateFiles(fs).load_bytes(path, 10, "the fix")
    assert str(caught.value) == f"{path} belongs to user 0, but the current user is 1000"
    assert (caught.value.path, caught.value.fix) == (str(path), f"chown 1000 {path} if you trust its contents")


FIXES: dict[str, tuple[Callable[[StateStore], object], str]] = {
    "last_cursor": (lambda store: store.session.load_cursor(), RESYNC),
    "inbox": (
        lambda store: store.session.load_inbox(),
        "remove it and {cursor}; the agent then reconciles everything",
    ),
    "pending_acks": (
        lambda store: store.session.load_outcomes(),
        "remove it; the plane then never receives its outcomes, and repeated signals are handled again",
    ),
    "access_token": (lambda store: store.session.load_tokens(), "remove it; the agent requests a new one"),
    "install_config": (lambda store: store.installed.load_install_config(), REBUILD),
    "certificates": (lambda store: store.installed.load_certificates(), REBUILD),
    "cas": (lambda store: store.installed.load_cas(), REBUILD),
    "retries": (
        lambda store: store.installed.load_retries(),
        "remove it; the agent then retries everything that fails, from the beginning",
    ),
    "activations": (
        lambda store: store.installed.load_activations(),
        "remove it; the commands of the install plan then run again",
    ),
    "pins": (
        lambda store: store.installed.load_pins(),
        "restore it from a backup, or review the scripts and remove it: they are pinned again on next use",
    ),
}


@pytest.mark.parametrize("name", FIXES)
def test_each_damaged_file_has_its_own_fix(store: StateStore, name: str) -> None:
    load, fix = FIXES[name]
    path: Path = getattr(store.layout, name)
    path.write_bytes(b"")
    with pytest.raises(StateCorruptError) as caught:
        load(store)
    assert str(caught.value) == f"{path} is damaged: it is empty"
    assert (caught.value.path, caught.value.fix) == (str(path), fix.format(cursor=store.layout.last_cursor))


PART: list[tuple[str, str, Callable[[StateStore], object], str]] = [
    ("inbox", '"entries":[5]', lambda store: store.session.load_inbox(), "entries[0]: expected an object"),
    ("inbox", '"entries":[{"signal":5}]', lambda store: store.session.load_inbox(), "entries[0].signal: expected an ob"),
    ("pending_acks", '"acks":[],"done":[5]', lambda store: store.session.load_outcomes(), "done[0]: expected text"),
    ("pending_acks", '"acks":[5],"done":[]', lambda store: store.session.load_outcomes(), "acks[0]: expected an obj"),
    ("install_config", '"config":5', lambda store: store.installed.load_install_config(), "config: expected an obj"),
    ("certificates", '"certificates":{"7":5}', lambda store: store.installed.load_certificates(), "certificates.7: exp"),
    (
        "certificates", '"certificates":{"8":{"cert_id":7,"name":"x"}}',
        lambda store: store.installed.load_certificates(), "an id differs from its record's",
    ),
    ("cas", '"cas":{"3":5}', lambda store: store.installed.load_cas(), "cas.3: expected an object"),
    ("activations", '"activations":{"a":5}', lambda store: store.installed.load_activations(), "activations.a: expect"),
    ("pins", '"pins":{"/x":5}', lambda store: store.installed.load_pins(), "pins./x: expected text"),
    ("retries", '"retries":[5]', lambda store: store.installed.load_retries(), "retries[0]: expected an object"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "load", "what"), PART)
def test_the_damaged_part_is_named(
    store: StateStore, name: str, body: str, load: Callable[[StateStore], object], what: str
) -> None:
    path: Path = getattr(store.layout, name)
    path.write_text(f'{{"state_version":1,{body}}}')
    with pytest.raises(StateCorruptError) as caught:
        load(store)
    assert str(caught.value).startswith(f"{path} is damaged: {what}")
    assert caught.value.path == str(path)
    assert caught.value.fix == FIXES[name][1].format(cursor=store.layout.last_cursor)


def test_names_of_records_that_are_not_plain_have_a_fix(store: StateStore) -> None:
    store.installed.save_certificates({7: CertRecord(facts=CertFacts(cert_id=7, name="../x"))})
    store.installed.save_cas({"3": CaRecord(ca_id=3, name="x", path="/etc/passwd", sha256="0")})
    for load, path in (
        (store.installed.load_certificates, store.layout.certificates),
        (store.installed.load_cas, store.layout.cas),
    ):
        with pytest.raises(StateCorruptError) as caught:
            load()
        assert (caught.value.path, caught.value.fix) == (str(path), REBUILD)


def test_a_ca_without_a_file_is_read(store: StateStore) -> None:
    cas = {
        "3": CaRecord(ca_id=3, name="x", path="", sha256=""),
        "4": CaRecord(ca_id=4, name="y", path="certctrl-y-4.crt", sha256=""),
    }
    store.installed.save_cas(cas)
    assert store.installed.load_cas() == cas


# --- saving -------------------------------------------------------------------------------------------------

CONFIG = StoredInstallConfig(raw={"id": 9}, etag='"e"', version=5, hash="h")
SAVES: dict[str, Callable[[StateStore, dict[str, Any]], None]] = {
    "certificates": lambda store, how: store.installed.save_certificates({}, **how),
    "retries": lambda store, how: store.installed.save_retries([], **how),
    "activations": lambda store, how: store.installed.save_activations({"a": "1"}, **how),
    "cas": lambda store, how: store.installed.save_cas({}, **how),
    "pending_acks": lambda store, how: store.session.save_outcomes([Ack(event={})], ["a"], **how),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVES)
def test_a_save_is_durable_with_its_name_unless_the_old_file_will_do(name: str) -> None:
    store, fs = modelled()
    SAVES[name](store, {"sync_parent": False})
    assert (fsyncs(fs), bool(fs.pending)) == (1, True)
    SAVES[name](store, {"sync_parent": False})
    assert fsyncs(fs) == 0
    SAVES[name](store, {})
    assert (fsyncs(fs), fs.pending) == (1, [])
    SAVES[name](store, {"sync_parent": False})
    SAVES[name](store, {})
    assert fsyncs(fs) == 0
    SAVES[name](StateStore(store.layout, fs), {})
    assert (fsyncs(fs), fs.pending, fs.open_files()) == (2, [], [])


def test_a_failed_save_does_not_count_as_written() -> None:
    store, fs = modelled()
    store.installed.save_activations({"a": "1"})
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "rename" else None
    with pytest.raises(DiskError):
        store.installed.save_activations({"a": "2"})
    fs.fault = None
    store.installed.save_activations({"a": "1"})
    assert store.installed.load_activations() == {"a": "1"}
    store.installed.save_activations({"a": "2"})
    assert store.installed.load_activations() == {"a": "2"} and not fs.pending


def test_the_forms_of_the_files_are_those_of_earlier_releases(store: StateStore) -> None:
    store.session.save_outcomes([Ack(event={"type": "x"})], ["a"])
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 7, "04:ab"))])
    store.installed.save_activations({"a": "1"})
    store.installed.save_pins({"/x": "00"})
    store.installed.save_retries([Retry(resource="cert:7", kind=RetryKind.WAITING)])
    store.installed.save_install_config(CONFIG)
    store.installed.append_history([{"a": 1, "b": [2]}], 10)
    texts = {path.name: path.read_text() for path in store.layout.state.iterdir() if path.is_file()}
    assert texts == {
        "pending_acks.json": '{"state_version":1,"acks":[{"type":"x"}],"done":["a"]}\n',
        "inbox.json": '{"state_version":1,"entries":[{"signal":{"type":"cert.renewed","ts_ms":5,"ref":{"cert_id":7,'
        '"serial":"04:ab"}},"retry":null}]}\n',
        "activations.json": '{"state_version":1,"activations":{"a":"1"}}\n',
        "pins.json": '{"state_version":1,"pins":{"/x":"00"}}\n',
        "retries.json": '{"state_version":1,"retries":[{"resource":"cert:7","kind":"waiting","attempts":0,"failures":1,'
        '"last_error":"","next_try_at":0.0,"pause":0.0,"signal":null,"reported":""}]}\n',
        "install_config.json": '{"state_version":1,"config":{"raw":{"id":9},"etag":"\\"e\\"","version":5,"hash":"h",'
        '"high_water":{"9":5},"hashes":{"9":"h"}}}\n',
        "history.jsonl": '{"a":1,"b":[2]}\n',
    }


def test_a_file_that_was_read_is_synced_by_its_name_but_not_written_again() -> None:
    store, fs = modelled()
    fs.put(store.layout.device_id, b"id")
    files = StateFiles(fs)
    files.note_read(store.layout.device_id, b"id")
    files.save(store.layout.device_id, b"id", sync_parent=False)
    assert fs.trace == []
    files.save(store.layout.device_id, b"id")
    assert fs.trace == [f"fsync {store.layout.state}"]


def test_entries_of_the_inbox_are_written_once_each_and_in_order() -> None:
    store, _ = modelled()
    one, two, three = (InboxEntry(signal=CertRenewed(5, number)) for number in (1, 2, 3))
    for entries in ((one, two), (two, one, three), (three,), (), (one, three)):
        store.session.save_inbox(entries)
        assert StateStore(store.layout, store.session._fs).session.load_inbox() == entries


def test_leftovers_are_removed_where_there_are_directories(store: StateStore) -> None:
    for directory in (
        store.layout.passwords, store.layout.staged_keys, store.layout.keys / "account_keys", store.layout.keys,
    ):  # fmt: skip
        directory.rmdir()
    (store.layout.state / ".x.00.tmp").touch()
    (store.layout.root / ".x.00.tmp").touch()
    assert sweep_leftovers(store.layout, FS) == 2


# --- passwords and history ----------------------------------------------------------------------------------


def test_passwords_are_kept_by_certificate_and_kind(store: StateStore) -> None:
    installed = store.installed
    assert installed.password_if_any("www", "pfx") is None
    created, path = installed.password("www", "pfx")
    assert (path, installed.password_if_any("www", "pfx")) == (store.layout.passwords / "www.pfx", created)
    assert len(created) == 32 and int(created, 16) >= 0
    assert installed.set_password("www", "jks", "changeit") == store.layout.passwords / "www.jks"
    assert installed.password("www", "jks") == (b"changeit", store.layout.passwords / "www.jks")
    path.write_bytes(b"")
    for load in (installed.password, installed.password_if_any):
        with pytest.raises(StateCorruptError) as caught:
            load("www", "pfx")
        assert caught.value.fix == "remove it; pfx files then get a new password"
    assert (installed.forget_passwords("other"), installed.forget_passwords("www")) == (0, 2)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.usefixtures("no_wait")
def test_a_directory_in_place_of_the_history_is_an_empty_history(
    make: Callable[[Path], None], store: StateStore
) -> None:
    make(store.layout.history)
    assert store.installed.load_history() == []


def test_a_history_that_cannot_be_read_is_a_disk_error(store: StateStore) -> None:
    store.layout.history.symlink_to("elsewhere")
    with pytest.raises(DiskError):
        store.installed.load_history()


def test_the_history_is_cut_once_it_is_a_quarter_too_long() -> None:
    store, fs = modelled()
    history = History(store.layout.history, fs)
    history.append([], 8)
    assert fs.trace == [], "without entries nothing is written"
    history.append([{"n": number} for number in range(10)], 8)
    assert [entry["n"] for entry in history.load()] == list(range(10))
    assert not [line for line in fs.trace if line.startswith("rename")]
    history.append([{"n": 10}], 8)
    assert [entry["n"] for entry in history.load()] == list(range(3, 11))
    fs.trace.clear()
    history.append([{"n": 11}], 8)
    assert [line.partition(" ")[0] for line in fs.trace] == ["open_append", "write"]
    again = History(store.layout.history, fs)
    for number in (12, 13, 14):
        again.append([{"n": number}], 8)
    assert [entry["n"] for entry in again.load()] == list(range(7, 15)), "entries of earlier processes count"
    fs.put(store.layout.history, b'{"n":1}\n[]\n5\n\n{"n":2}\n{"n"')
    fs.trace.clear()
    again = History(store.layout.history, fs)
    assert [entry["n"] for entry in again.load()] == [1, 2]
    fs.put(store.layout.history, b'{"n":1,"why":"no route"}\n{"n": 2}\n')
    assert [entry["n"] for entry in again.load()] == [1, 2]
    again.append([], 1)
    assert fs.tree()[str(store.layout.history)].data == b'{"n": 2}\n'
    assert (fs.tree()[str(store.layout.history)].mode, fs.open_files()) == (0o600, [])
