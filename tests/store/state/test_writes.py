"""Writes of the state: counted fsyncs, bounds, reserved space for tokens."""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from crash_exploration import explore
from modeldisk import ModelFs
from state_model import TOKENS, fsyncs, modelled

from certctrl.errors import DiskError
from certctrl.model.records import Ack, InboxEntry, Tokens
from certctrl.model.signals import CertRenewed
from certctrl.store.state.installed import StoredInstallConfig
from certctrl.store.state.store import StateStore

# --- writes, counted ----------------------------------------------------------------------------------------


def test_an_unchanged_cursor_costs_no_fsync() -> None:
    store, fs = modelled()
    store.session.save_cursor("1-1")
    assert fsyncs(fs) == 1
    store.session.save_cursor("1-1")
    store.session.save_last_poll(5.0)
    store.installed.save_status({"a": 1})
    assert fsyncs(fs) == 0
    again = StateStore(store.layout, fs)
    assert again.session.load_cursor() == "1-1"
    again.session.save_cursor("1-1")
    assert fs.trace == []


def test_a_file_replaced_by_others_is_written_again() -> None:
    store, fs = modelled()
    store.installed.save_activations({"a": "1"})
    fs.put(store.layout.activations, b"other")
    store.installed.save_activations({"a": "1"})
    assert store.installed.load_activations() == {"a": "1"}


def test_a_page_of_signals_costs_three_fsyncs() -> None:
    store, fs = modelled()
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, number)) for number in range(20)])
    store.session.save_cursor("2-2")
    assert fsyncs(fs) == 3


def test_completing_signals_costs_three_fsyncs_and_removing_an_ack_one() -> None:
    store, fs = modelled()
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    fsyncs(fs)
    store.session.save_progress([Ack(event={"a": 1})], ["one"], ())
    assert fsyncs(fs) == 3
    assert (store.session.load_outcomes(), store.session.load_inbox()) == (((Ack(event={"a": 1}),), ("one",)), ())
    store.session.save_outcomes((), ["one"], sync_parent=False)
    assert fsyncs(fs) == 1
    assert store.session.load_outcomes() == ((), ("one",))


def test_no_crash_loses_the_outcome_of_a_completed_signal() -> None:
    """Otherwise the plane would never receive it, or the signal would be handled twice."""
    store, fs = modelled()

    def check(crashed: ModelFs) -> None:
        acks, done = StateStore(store.layout, crashed).session.load_outcomes()
        assert [ack.event["id"] for ack in acks] == list(done)

    def act(disk: ModelFs) -> None:
        store.session.save_progress([Ack(event={"id": "one"})], ["one"], ())
        store.session.save_progress([Ack(event={"id": number}) for number in ("one", "two")], ["one", "two"], ())

    assert explore(fs, act, check, limit=200).points > 10


def test_a_write_whose_name_is_not_durable_is_synced_later() -> None:
    """`save_progress` does not sync the inbox's name; a later durable save of the same bytes must."""
    store, fs = modelled()
    store.session.save_progress((), (), [InboxEntry(signal=CertRenewed(5, 1))])
    fsyncs(fs)
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    assert fsyncs(fs) == 1, "of the directory; the bytes are durable already"
    assert not fs.pending
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    assert fsyncs(fs) == 0, "now the name is durable, too"


def test_identities_of_completed_signals_are_bounded(store: StateStore) -> None:
    store.session.save_outcomes((), [str(number) for number in range(10_500)])
    _, kept = store.session.load_outcomes()
    assert (len(kept), kept[0], kept[-1]) == (10_000, "500", "10499")


def test_the_highest_version_of_a_config_is_kept(store: StateStore) -> None:
    for version in (5, 3):
        store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=version, hash="h"))
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 10}, etag=None, version=1, hash="h"))
    kept = store.installed.load_install_config()
    assert kept is not None
    assert kept.high_water == {"9": 5, "10": 1}


def test_the_hash_of_the_highest_version_is_kept(store: StateStore) -> None:
    for config_id, version, digest in ((9, 4, "h4"), (9, 5, "h5"), (9, 3, "h3"), (10, 1, "other")):
        store.installed.save_install_config(
            StoredInstallConfig(raw={"id": config_id}, etag=None, version=version, hash=digest)
        )
    kept = store.installed.load_install_config()
    assert kept is not None and kept.hashes == {"9": "h5", "10": "other"}
    asked = {("9", 5): "h5", ("9", 4): "", ("9", 3): "", ("10", 1): "other", ("11", 1): ""}
    assert {one: kept.hash_seen(*one) for one in asked} == asked
    store.installed.forget_versions()
    kept = store.installed.load_install_config()
    assert kept is not None and kept.hashes == {} and kept.hash_seen("9", 5) == ""


def test_an_install_config_without_hashes_is_read(store: StateStore) -> None:
    config = {"raw": {"id": 9}, "etag": None, "version": 5, "hash": "h5", "high_water": {"8": 2, "9": 5}}
    store.layout.install_config.write_text(json.dumps({"state_version": 1, "config": config}))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.hash_seen("9", 5) == "h5" and kept.hash_seen("8", 2) == ""
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 10}, etag=None, version=1, hash="other"))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.hashes == {"9": "h5", "10": "other"}


def test_versions_and_pins_can_be_removed(store: StateStore) -> None:
    assert (store.installed.forget_versions(), store.installed.forget_pins()) == ({}, [])
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag='"e"', version=5, hash="h"))
    store.installed.save_pins({"/x": "00"})
    assert (store.installed.forget_versions(), store.installed.forget_pins()) == ({"9": 5}, ["/x"])
    kept = store.installed.load_install_config()
    assert kept is not None and (kept.raw, kept.etag, dict(kept.high_water)) == ({"id": 9}, None, {})
    assert (kept.version, kept.hash, dict(kept.hashes)) == (0, "", {})
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=2, hash="h"))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.high_water == {"9": 2}
    assert store.installed.load_pins() == {}


def test_a_config_without_an_id_has_a_highest_version_too(store: StateStore) -> None:
    for version in (2, 1):
        store.installed.save_install_config(StoredInstallConfig(raw={}, etag=None, version=version, hash=f"h{version}"))
    kept = store.installed.load_install_config()
    assert kept is not None and (kept.high_water, kept.hashes) == ({"": 2}, {"": "h2"})
    assert (kept.hash_seen("", 1), kept.hash_seen("", 2), kept.hash_seen("", 3)) == ("h1", "h2", "")


def test_a_damaged_install_config_can_be_replaced(store: StateStore) -> None:
    store.layout.install_config.write_text("garbage")
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=4, hash="h"))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.version == 4


# --- reservations -------------------------------------------------------------------------------------------


def test_reserved_space_is_used_or_released(store: StateStore) -> None:
    store.session.save_tokens(TOKENS)
    with store.session.reserve_tokens() as reservation:
        sizes = sorted(path.stat().st_size for path in store.layout.state.glob(".*.tmp"))
        assert sizes == [16_384, 16_384]
        reservation.commit(Tokens(access_token="a2", refresh_token="r2"))
    assert store.session.load_tokens() == Tokens(access_token="a2", refresh_token="r2")
    with store.session.reserve_tokens():
        pass
    assert not list(store.layout.state.glob(".*"))
    assert store.session.load_tokens() == Tokens(access_token="a2", refresh_token="r2")


def test_reserved_files_become_the_tokens_themselves() -> None:
    store, fs = modelled()
    reservation = store.session.reserve_tokens()
    fs.trace.clear()
    reservation.commit(TOKENS)
    done = [line.partition(" ")[0] for line in fs.trace if "allocate" not in line]
    assert done == ["write", "truncate", "fsync", "rename", "fsync"] * 2, "neither file is created again"
    assert [line for line in fs.trace if line.startswith("rename")] == [
        f"rename {store.layout.refresh_token}", f"rename {store.layout.access_token}",
    ]  # fmt: skip
    assert (store.session.load_tokens(), fs.open_files(), fs.pending) == (TOKENS, [], [])
    reservation.release()


def test_a_full_disk_refuses_a_reservation() -> None:
    store, fs = modelled()
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "allocate" else None
    with pytest.raises(DiskError) as caught:
        store.session.reserve_tokens()
    assert caught.value.errno == errno.ENOSPC
    assert "free space" in str(caught.value.fix)
    assert not fs.open_files()
    assert not [path for path in fs.tree() if path.endswith(".tmp")]


def test_a_reservation_survives_a_failed_fsync() -> None:
    store, fs = modelled()
    store.session.save_tokens(TOKENS)
    reservation = store.session.reserve_tokens()
    faults = [errno.EIO]
    fs.fault = lambda verb, path: faults.pop() if verb == "fsync" and faults else None
    reservation.commit(Tokens(access_token="a2", refresh_token="r2"))
    assert store.session.load_tokens() == Tokens(access_token="a2", refresh_token="r2")
    for crashed in fs.crash_states(50, random.Random(1)):
        assert StateStore(store.layout, crashed).session.load_tokens() == Tokens(access_token="a2", refresh_token="r2")


FULL = """
import sys
from pathlib import Path
from certctrl.errors import DiskError
from certctrl.model.records import Tokens
from certctrl.store.disk.tree import make_tree
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore
layout = ConfigDir(Path(sys.argv[1]) / "agent")
make_tree(RealFs(), layout)
store = StateStore(layout, RealFs())
store.session.save_tokens(Tokens(access_token="a1", refresh_token="r1"))
reservation = store.session.reserve_tokens()
def fill():
    try:
        with open(layout.root / "fill", "ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
    except OSError:
        pass
fill()
try:
    store.session.save_tokens(Tokens(access_token="a2" * 900, refresh_token="r2" * 900))
    raise SystemExit("the disk is not full")
except DiskError as error:
    assert "free space" in error.fix, error
reservation.commit(Tokens(access_token="a3" * 900, refresh_token="r3" * 900))
assert store.session.load_tokens().refresh_token == "r3" * 900
fill()
try:
    store.session.reserve_tokens()
    raise SystemExit("space was reserved on a full disk")
except DiskError as error:
    assert "free space" in error.fix, error
print("stored")
"""


@pytest.mark.root
@pytest.mark.integration
def test_reserved_tokens_are_stored_on_a_disk_that_filled_up(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=128k tmpfs "$1" && exec {sys.executable} -c "$2" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), FULL], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("stored\n", 0), done.stderr
