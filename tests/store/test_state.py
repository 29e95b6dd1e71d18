"""What the agent remembers: round trips, damage named and never mistaken for a first run, writes counted."""

from __future__ import annotations

import errno
import itertools
import json
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modeldisk import ModelFs

from certctrl.errors import BadAnswerError, DiskError, StateCorruptError
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import Ack, CaRecord, CertRecord, DeviceKeys, InboxEntry, Stage, Tokens
from certctrl.model.signals import CaAssigned, CertRenewed, InstallUpdated, MalformedSignal, UnknownSignal
from certctrl.store import peek
from certctrl.store.atomic import make_tree
from certctrl.store.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state import StateStore, StoredInstallConfig

KEYS = DeviceKeys(public=b"p" * 32, secret=b"s" * 32)
TOKENS = Tokens(access_token="access.jwt.one", refresh_token="rt_one.SECRET")


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return StateStore(layout, RealFs())


def modelled(**how: Any) -> tuple[StateStore, ModelFs]:
    fs = ModelFs(**how)
    fs.put_dir("/etc")
    layout = ConfigDir(Path("/etc/agent"))
    make_tree(fs, layout)
    fs.trace.clear()
    return StateStore(layout, fs), fs


def fsyncs(fs: ModelFs) -> int:
    count = sum(line.startswith(("fsync", "syncfs")) for line in fs.trace)
    fs.trace.clear()
    return count


# --- round trips --------------------------------------------------------------------------------------------


def test_nothing_was_ever_written(store: StateStore) -> None:
    assert (store.load_cursor(), store.load_last_poll(), store.load_device_id()) == (None, None, None)
    assert (store.load_device_keys(), store.load_tokens(), store.load_install_config()) == (None, None, None)
    assert (store.load_inbox(), store.load_processed(), store.load_acks()) == ((), (), ())
    assert (store.load_certificates(), store.load_activations(), store.load_cas(), store.load_pins()) == (
        {},
        {},
        {},
        {},
    )
    assert store.load_history() == []


def test_identity_round_trip(store: StateStore) -> None:
    store.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.save_device_keys(KEYS)
    store.save_tokens(TOKENS)
    again = StateStore(store.layout, RealFs())
    assert again.load_device_id() == "23229bf7-5172-02c7-59a2-76d5b4a40090"
    assert again.load_device_keys() == KEYS
    assert again.load_tokens() == TOKENS
    for path in (*store.layout.state.iterdir(), *store.layout.keys.iterdir()):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_polling_round_trip(store: StateStore) -> None:
    store.save_cursor("1736900000-5")
    store.save_last_poll(1_800_000_000.9)
    assert store.layout.last_cursor.read_text() == "1736900000-5"
    assert (store.load_cursor(), store.load_last_poll()) == ("1736900000-5", 1_800_000_000.0)
    store.clear_cursor()
    store.clear_cursor()
    assert store.load_cursor() is None


def test_a_cursor_written_by_an_editor_is_read(store: StateStore) -> None:
    store.layout.last_cursor.write_text("1736900000-5\n")
    assert store.load_cursor() == "1736900000-5"


def test_signals_round_trip(store: StateStore) -> None:
    signals = [
        CertRenewed(5, 7, "04:ab"), InstallUpdated(6, 1, 2, "aGFzaA=="), CaAssigned(7, 3, None, "inner"),
        UnknownSignal("new.kind", 8, {"x": [1, {"y": None}]}),
    ]  # fmt: skip
    entries = tuple(
        InboxEntry(signal=signal, attempts=number, last_error=f"why {number}", next_try_at=number + 0.5)
        for number, signal in enumerate(signals)
    )
    store.save_inbox(entries)
    store.save_processed(["a", "b"])
    store.save_acks([Ack(event={"type": "signal.ack", "outcome": "applied"})])
    again = StateStore(store.layout, RealFs())
    assert again.load_inbox() == entries
    assert again.load_processed() == ("a", "b")
    assert again.load_acks() == (Ack(event={"type": "signal.ack", "outcome": "applied"}),)


def test_a_malformed_signal_stays_malformed(store: StateStore) -> None:
    store.save_inbox([InboxEntry(signal=MalformedSignal("cert.renewed", 5, {"cert_id": "x"}, "no number"))])
    (entry,) = store.load_inbox()
    assert isinstance(entry.signal, MalformedSignal)
    assert entry.signal.raw_ref == {"cert_id": "x"}


def test_installed_things_round_trip(store: StateStore) -> None:
    record = CertRecord(
        cert_id=7, name="example.com", domains=("example.com", "www.example.com"), serial="04:ab", not_after=1.5,
        generation="abc", stage=Stage.ACTIVATED, targets=("/srv/x",), held=True, last_outcome=OutcomeKind.ROLLED_BACK,
    )  # fmt: skip
    ca = CaRecord(ca_id=3, name="inner", path="/usr/local/share/ca-certificates/x.crt", sha256="00")
    store.save_certificates({7: record})
    store.save_cas({"3": ca})
    store.save_activations({"reload": "key"})
    store.save_pins({"/usr/local/bin/x": "00"})
    store.save_status({"version": "1.0", "state": "Polling", "poll": {"last_code": 204}})
    again = StateStore(store.layout, RealFs())
    assert again.load_certificates() == {7: record}
    assert again.load_cas() == {"3": ca}
    assert again.load_activations() == {"reload": "key"}
    assert again.load_pins() == {"/usr/local/bin/x": "00"}
    assert peek.read_status(store.layout.root) == {"version": "1.0", "state": "Polling", "poll": {"last_code": 204}}


def test_keys_of_a_later_release_do_no_harm(store: StateStore) -> None:
    store.save_certificates({7: CertRecord(cert_id=7, name="example.com")})
    raw = json.loads(store.layout.certificates.read_text())
    raw["certificates"]["7"]["added_later"] = True
    store.layout.certificates.write_text(json.dumps(raw))
    assert store.load_certificates()[7].name == "example.com"


@settings(max_examples=50)
@given(cursor=st.text(max_size=40))
def test_a_cursor_comes_back_as_it_was_or_is_refused(cursor: str) -> None:
    store, _ = modelled()
    try:
        store.save_cursor(cursor)
    except BadAnswerError as error:
        assert not cursor or cursor != cursor.strip() or not cursor.isprintable()
        assert error.fix
        return
    assert StateStore(store.layout, store._fs).load_cursor() == cursor


def test_tokens_are_not_in_messages(store: StateStore) -> None:
    with pytest.raises(BadAnswerError) as caught:
        store.save_tokens(Tokens(access_token="a\nSECRET", refresh_token="ok"))
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(TOKENS)


# --- the first run, and what only looks like one --------------------------------------------------------------


def test_an_interrupted_making_of_keys_is_a_first_run(store: StateStore) -> None:
    store.layout.device_secret_key.write_bytes(KEYS.secret)
    assert store.load_device_keys() is None


@pytest.mark.parametrize("gone", ["device_public_key", "device_secret_key"])
def test_half_a_pair_of_a_registered_device_is_damage(store: StateStore, gone: str) -> None:
    store.save_device_keys(KEYS)
    store.save_tokens(TOKENS)
    path: Path = getattr(store.layout, gone)
    path.unlink()
    with pytest.raises(StateCorruptError) as caught:
        store.load_device_keys()
    assert str(path) in str(caught.value)
    assert "register" in str(caught.value.fix)


def test_a_missing_access_token_is_asked_for_again(store: StateStore) -> None:
    store.save_tokens(TOKENS)
    store.layout.access_token.unlink()
    assert store.load_tokens() == Tokens(access_token="", refresh_token=TOKENS.refresh_token)


def test_a_missing_refresh_token_is_damage(store: StateStore) -> None:
    store.save_tokens(TOKENS)
    store.layout.refresh_token.unlink()
    with pytest.raises(StateCorruptError, match=r"refresh_token\.txt"):
        store.load_tokens()


# --- damage -------------------------------------------------------------------------------------------------

LOADERS: dict[str, Callable[[StateStore], object]] = {
    "last_cursor": StateStore.load_cursor,
    "device_id": StateStore.load_device_id,
    "access_token": StateStore.load_tokens,
    "refresh_token": StateStore.load_tokens,
    "device_public_key": StateStore.load_device_keys,
    "device_secret_key": StateStore.load_device_keys,
    "inbox": StateStore.load_inbox,
    "processed_signals": StateStore.load_processed,
    "pending_acks": StateStore.load_acks,
    "install_config": StateStore.load_install_config,
    "certificates": StateStore.load_certificates,
    "activations": StateStore.load_activations,
    "cas": StateStore.load_cas,
    "pins": StateStore.load_pins,
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "NUL bytes": lambda data: bytes(len(data)),
    "garbage": lambda data: b"\xff\xfe\x00SECRET garbage\x80",
    "cut in half": lambda data: data[: len(data) // 2],
    "zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "huge": lambda data: b"",
}


def filled(store: StateStore) -> None:
    store.save_cursor("1736900000-5")
    store.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.save_device_keys(KEYS)
    store.save_tokens(TOKENS)
    store.save_inbox([InboxEntry(signal=CertRenewed(5, 7, "04:ab"))])
    store.save_processed(["a", "b"])
    store.save_acks([Ack(event={"type": "signal.ack"})])
    store.save_install_config(StoredInstallConfig(raw={"id": 1}, etag="e", version=2, hash="h"))
    store.save_certificates({7: CertRecord(cert_id=7, name="example.com")})
    store.save_activations({"reload": "key"})
    store.save_cas({"3": CaRecord(ca_id=3, name="inner", path="/x", sha256="00")})
    store.save_pins({"/x": "00"})


# Half a line is a line, and any 32 bytes are a key: that no crash leaves such a half is shown by the model disk.
UNSEEN = {(name, "cut in half") for name in ("last_cursor", "device_id", "access_token", "refresh_token")} | {
    (name, "zeros at the end") for name in ("device_public_key", "device_secret_key")
}


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name in LOADERS for damage in DAMAGE if (name, damage) not in UNSEEN]
)
def test_damage_is_named_with_a_way_out(store: StateStore, name: str, damage: str) -> None:
    filled(store)
    path: Path = getattr(store.layout, name)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if damage == "huge":
        with path.open("r+b") as file:
            file.truncate(1 << 36)  # sparse: reading it whole would end the process
    with pytest.raises(StateCorruptError) as caught:
        LOADERS[name](StateStore(store.layout, RealFs()))
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)
    assert caught.value.fix
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


PARTS = {
    "inbox": "entries", "processed_signals": "identities", "pending_acks": "acks", "install_config": "config",
    "certificates": "certificates", "activations": "activations", "cas": "cas", "pins": "pins",
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("body", ["[]", "{}", "null", '{"state_version":1}', '{"state_version":true}', "[" * 100_000])
def test_wrong_json_is_damage(store: StateStore, name: str, body: str) -> None:
    path: Path = getattr(store.layout, name)
    path.write_text(body)
    with pytest.raises(StateCorruptError, match=path.name):
        LOADERS[name](store)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", PARTS)
@settings(max_examples=25)
@given(value=JSON)
def test_no_json_at_all_ends_in_a_traceback(name: str, value: object) -> None:
    store, fs = modelled()
    fs.put(getattr(store.layout, name), json.dumps({"state_version": 1, PARTS[name]: value}).encode())
    try:
        LOADERS[name](store)
    except StateCorruptError as error:
        assert error.fix


def test_a_file_of_a_later_release_is_left_alone(store: StateStore) -> None:
    store.layout.inbox.write_text('{"state_version":2,"entries":[]}')
    with pytest.raises(StateCorruptError, match="later cert-ctrl"):
        store.load_inbox()


@pytest.mark.parametrize("name", LOADERS)
def test_a_strangers_file_is_not_trusted(name: str) -> None:
    store, fs = modelled()
    filled(store)
    path: Path = getattr(store.layout, name)
    fs.chown(fs.open_file(path), 4711, 4711)
    with pytest.raises(StateCorruptError) as caught:
        LOADERS[name](StateStore(store.layout, fs))
    assert "belongs to user 4711" in str(caught.value)
    assert f"chown 1000 {path}" in str(caught.value.fix)


@pytest.mark.parametrize("name", LOADERS)
def test_a_link_or_directory_is_not_a_state_file(store: StateStore, name: str) -> None:
    filled(store)
    path: Path = getattr(store.layout, name)
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")
    with pytest.raises(StateCorruptError, match="no regular file"):
        LOADERS[name](StateStore(store.layout, RealFs()))
    path.unlink()
    path.mkdir()
    with pytest.raises(StateCorruptError, match="no regular file"):
        LOADERS[name](StateStore(store.layout, RealFs()))


@pytest.mark.parametrize("name", LOADERS)
def test_a_disk_that_cannot_be_read_is_no_first_run(name: str) -> None:
    store, fs = modelled()
    filled(store)

    def broken(handle: object, limit: int) -> bytes:
        raise DiskError("cannot read: Input/output error", path="x", errno=errno.EIO, fix="check the disk")

    fs.read = broken  # type: ignore[method-assign]
    with pytest.raises(DiskError) as caught:
        LOADERS[name](StateStore(store.layout, fs))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("data", [b"", b"\0" * 10, b"18000", b"garbage\n", b"-1\n", b"1e9\n", b"9" * 400 + b"\n"])
def test_what_a_power_cut_may_tear_is_read_as_absent(store: StateStore, data: bytes) -> None:
    store.layout.last_poll_time.write_bytes(data)
    store.layout.status.write_bytes(data)
    assert (store.load_last_poll(), peek.read_status(store.layout.root)) == (None, None)


# --- writes, counted ----------------------------------------------------------------------------------------


def test_an_unchanged_cursor_costs_nothing() -> None:
    store, fs = modelled()
    store.save_cursor("1-1")
    assert fsyncs(fs) == 1
    store.save_cursor("1-1")
    store.save_last_poll(5.0)
    store.save_status({"a": 1})
    assert fsyncs(fs) == 0
    again = StateStore(store.layout, fs)
    assert again.load_cursor() == "1-1"
    again.save_cursor("1-1")
    assert fs.trace == []


def test_an_unchanged_file_that_somebody_replaced_is_written_again() -> None:
    store, fs = modelled()
    store.save_activations({"a": "1"})
    fs.put(store.layout.activations, b"other")
    store.save_activations({"a": "1"})
    assert store.load_activations() == {"a": "1"}


def test_a_page_of_signals_costs_three_fsyncs() -> None:
    store, fs = modelled()
    store.save_inbox([InboxEntry(signal=CertRenewed(5, number)) for number in range(20)])
    store.save_cursor("2-2")
    assert fsyncs(fs) == 3


def test_the_end_of_signals_costs_four_fsyncs() -> None:
    store, fs = modelled()
    store.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    fsyncs(fs)
    store.save_progress([Ack(event={"a": 1})], ["one"], ())
    assert fsyncs(fs) == 4
    assert (store.load_acks(), store.load_processed(), store.load_inbox()) == ((Ack(event={"a": 1}),), ("one",), ())


def test_the_last_outcome_leaves_without_fsync_once_its_signal_is_gone_for_good() -> None:
    store, fs = modelled()
    store.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    store.save_progress([Ack(event={"a": 1})], ["one"], ())
    fsyncs(fs)
    store.save_progress((), ["one"], ())  # the inbox may still come back with its signal: not yet
    assert fsyncs(fs) == 2
    store.save_progress([Ack(event={"a": 2})], ["one", "two"], ())
    assert fsyncs(fs) == 3
    store.save_progress((), ["one", "two"], ())
    assert fsyncs(fs) == 0
    assert (store.load_acks(), store.load_processed(), store.load_inbox()) == ((), ("one", "two"), ())


def test_a_write_that_was_not_made_durable_is_not_skipped_later() -> None:
    """`save_progress` leaves the inbox's name unsynced; a caller who then asks for durability must get it."""
    store, fs = modelled()
    store.save_progress((), (), [InboxEntry(signal=CertRenewed(5, 1))])
    fsyncs(fs)
    store.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    assert fsyncs(fs) == 2
    assert not fs.pending


def test_processed_identities_are_bounded(store: StateStore) -> None:
    store.save_processed([str(number) for number in range(10_500)])
    kept = store.load_processed()
    assert (len(kept), kept[0], kept[-1]) == (10_000, "500", "10499")


def test_a_version_never_falls(store: StateStore) -> None:
    for version in (5, 3):
        store.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=version, hash="h"))
    store.save_install_config(StoredInstallConfig(raw={"id": 10}, etag=None, version=1, hash="h"))
    kept = store.load_install_config()
    assert kept is not None
    assert kept.high_water == {"9": 5, "10": 1}


def test_versions_and_pins_are_forgotten_when_a_person_says_so(store: StateStore) -> None:
    assert (store.forget_versions(), store.forget_pins()) == ({}, [])
    store.save_install_config(StoredInstallConfig(raw={"id": 9}, etag='"e"', version=5, hash="h"))
    store.save_pins({"/x": "00"})
    assert (store.forget_versions(), store.forget_pins()) == ({"9": 5}, ["/x"])
    kept = store.load_install_config()
    assert kept is not None and (kept.raw, kept.etag, dict(kept.high_water)) == ({"id": 9}, None, {})
    store.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=2, hash="h"))
    kept = store.load_install_config()
    assert kept is not None and kept.high_water == {"9": 2}
    assert store.load_pins() == {}


def test_a_damaged_install_config_can_be_replaced(store: StateStore) -> None:
    store.layout.install_config.write_text("garbage")
    store.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=4, hash="h"))
    kept = store.load_install_config()
    assert kept is not None and kept.version == 4


# --- history, passwords, leftovers ----------------------------------------------------------------------------


def test_history_is_bounded_over_restarts(store: StateStore) -> None:
    for number in range(60):
        if number % 7 == 0:
            store = StateStore(store.layout, RealFs())
        store.append_history([{"number": number}], 20)
    numbers = [entry["number"] for entry in store.load_history()]
    assert 20 <= len(numbers) <= 26
    assert numbers == list(range(60 - len(numbers), 60))
    assert stat.S_IMODE(store.layout.history.stat().st_mode) == 0o600


def test_many_entries_of_history_at_once_are_bounded_the_same(store: StateStore) -> None:
    store.append_history([{"number": number} for number in range(10)], 20)
    store.append_history(entries := [{"number": number} for number in range(10, 100)], 20)
    assert entries == []
    numbers = [entry["number"] for entry in store.load_history()]
    assert 20 <= len(numbers) <= 26
    assert numbers == list(range(100 - len(numbers), 100))


def test_torn_lines_of_history_are_left_out_and_mended(store: StateStore) -> None:
    store.append_history([{"number": 1}], 20)
    with store.layout.history.open("ab") as file:
        file.write(b'{"numb')
    again = StateStore(store.layout, RealFs())
    assert again.load_history() == [{"number": 1}]
    again.append_history([{"number": 2}], 20)
    assert again.load_history() == [{"number": 1}, {"number": 2}]
    assert store.layout.history.read_bytes().count(b"\n") == 2


def test_a_failed_append_is_mended_by_the_next() -> None:
    store, fs = modelled()
    store.append_history([{"number": 1}], 20)
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "write" else None
    with pytest.raises(DiskError):
        store.append_history([{"number": 2}], 20)
    fs.fault = None
    store.append_history([{"number": 3}], 20)
    assert [entry["number"] for entry in store.load_history()] == [1, 3]


def test_what_a_failed_append_wrote_is_not_written_again() -> None:
    store, fs = modelled()
    entries = [{"number": number} for number in range(5)]
    writes = itertools.count()
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "write" and next(writes) == 3 else None
    with pytest.raises(DiskError):
        store.append_history(entries, 20)
    assert [entry["number"] for entry in entries] == [3, 4]
    store.append_history(entries, 20)
    assert [entry["number"] for entry in store.load_history()] == [0, 1, 2, 3, 4]


def test_a_password_is_made_once(store: StateStore) -> None:
    first, path = store.password("example.com", "pfx")
    assert store.password("example.com", "pfx") == (first, path)
    other, _ = StateStore(store.layout, RealFs()).password("example.com", "jks")
    assert other != first
    assert (len(first), stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (32, 0o600, first)
    store.password("example.com.evil", "pfx")
    assert store.forget_passwords("example.com") == 2
    assert [found.name for found in store.layout.passwords.iterdir()] == ["example.com.evil.pfx"]


def test_sweeping_removes_what_crashed_writers_left(store: StateStore) -> None:
    for directory in (store.layout.root, store.layout.state, store.layout.keys, store.layout.passwords):
        (directory / ".x.0011.tmp").write_text("SECRET")
    assert store.sweep() == 4
    assert store.sweep() == 0


# --- reservations -------------------------------------------------------------------------------------------


def test_reserved_space_is_used_or_given_back(store: StateStore) -> None:
    store.save_tokens(TOKENS)
    with store.reserve_tokens() as reservation:
        sizes = sorted(path.stat().st_size for path in store.layout.state.glob(".*.tmp"))
        assert sizes == [16_384, 16_384]
        reservation.commit(Tokens(access_token="a2", refresh_token="r2"))
    assert store.load_tokens() == Tokens(access_token="a2", refresh_token="r2")
    with store.reserve_tokens():
        pass
    assert not list(store.layout.state.glob(".*"))
    assert store.load_tokens() == Tokens(access_token="a2", refresh_token="r2")


def test_no_space_means_nothing_is_spent() -> None:
    store, fs = modelled()
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "allocate" else None
    with pytest.raises(DiskError) as caught:
        store.reserve_tokens()
    assert caught.value.errno == errno.ENOSPC
    assert "free space" in str(caught.value.fix)
    assert not fs.open_files()
    assert not [path for path in fs.tree() if path.endswith(".tmp")]


def test_a_reservation_survives_a_failed_fsync() -> None:
    store, fs = modelled()
    store.save_tokens(TOKENS)
    reservation = store.reserve_tokens()
    faults = [errno.EIO]
    fs.fault = lambda verb, path: faults.pop() if verb == "fsync" and faults else None
    reservation.commit(Tokens(access_token="a2", refresh_token="r2"))
    assert store.load_tokens() == Tokens(access_token="a2", refresh_token="r2")
    for crashed in fs.crash_states(50, random.Random(1)):
        assert StateStore(store.layout, crashed).load_tokens() == Tokens(access_token="a2", refresh_token="r2")


FULL = """
import sys
from pathlib import Path
from certctrl.errors import DiskError
from certctrl.model.records import Tokens
from certctrl.store.atomic import make_tree
from certctrl.store.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state import StateStore
layout = ConfigDir(Path(sys.argv[1]) / "agent")
make_tree(RealFs(), layout)
store = StateStore(layout, RealFs())
store.save_tokens(Tokens(access_token="a1", refresh_token="r1"))
reservation = store.reserve_tokens()
def fill():
    try:
        with open(layout.root / "fill", "ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError:
        pass
fill()
try:
    store.save_tokens(Tokens(access_token="a2" * 900, refresh_token="r2" * 900))
    raise SystemExit("the disk is not full")
except DiskError as error:
    assert "free space" in error.fix, error
reservation.commit(Tokens(access_token="a3" * 900, refresh_token="r3" * 900))
assert store.load_tokens().refresh_token == "r3" * 900
fill()
try:
    store.reserve_tokens()
    raise SystemExit("space was reserved on a full disk")
except DiskError as error:
    assert "free space" in error.fix, error
print("held")
"""


@pytest.mark.root
@pytest.mark.integration
def test_tokens_are_stored_on_a_disk_that_filled_up_meanwhile(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=128k tmpfs "$1" && exec {sys.executable} -c "$2" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), FULL], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("held\n", 0), done.stderr
