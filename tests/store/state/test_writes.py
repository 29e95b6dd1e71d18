"""What is remembered is written once and at a counted cost, within its bounds, with space reserved for tokens."""

from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from modeldisk import ModelFs, explore
from state_model import TOKENS, fsyncs, modelled

from certctrl.errors import DiskError
from certctrl.model.records import Ack, InboxEntry, Tokens
from certctrl.model.signals import CertRenewed
from certctrl.store.state.installed import StoredInstallConfig
from certctrl.store.state.store import StateStore

# --- writes, counted ----------------------------------------------------------------------------------------


def test_an_unchanged_cursor_costs_nothing() -> None:
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


def test_an_unchanged_file_that_somebody_replaced_is_written_again() -> None:
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


def test_the_end_of_signals_costs_three_fsyncs_and_an_outcome_that_left_one() -> None:
    store, fs = modelled()
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    fsyncs(fs)
    store.session.save_progress([Ack(event={"a": 1})], ["one"], ())
    assert fsyncs(fs) == 3
    assert (store.session.load_outcomes(), store.session.load_inbox()) == (((Ack(event={"a": 1}),), ("one",)), ())
    store.session.save_outcomes((), ["one"], sync_parent=False)
    assert fsyncs(fs) == 1
    assert store.session.load_outcomes() == ((), ("one",))


def test_no_crash_keeps_that_a_signal_is_done_and_takes_its_outcome() -> None:
    """The plane would never hear of it; the other way round the signal would be handled twice."""
    store, fs = modelled()

    def check(crashed: ModelFs) -> None:
        acks, done = StateStore(store.layout, crashed).session.load_outcomes()
        assert [ack.event["id"] for ack in acks] == list(done)

    def act(disk: ModelFs) -> None:
        store.session.save_progress([Ack(event={"id": "one"})], ["one"], ())
        store.session.save_progress([Ack(event={"id": number}) for number in ("one", "two")], ["one", "two"], ())

    assert explore(fs, act, check, limit=200).points > 10


def test_a_write_that_was_not_made_durable_is_not_skipped_later() -> None:
    """`save_progress` leaves the inbox's name unsynced; a caller who then asks for durability must get it."""
    store, fs = modelled()
    store.session.save_progress((), (), [InboxEntry(signal=CertRenewed(5, 1))])
    fsyncs(fs)
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    assert fsyncs(fs) == 1, "of the directory: the bytes are there for good"
    assert not fs.pending
    store.session.save_inbox([InboxEntry(signal=CertRenewed(5, 1))])
    assert fsyncs(fs) == 0, "and now the name is, too"


def test_identities_of_what_is_done_are_bounded(store: StateStore) -> None:
    store.session.save_outcomes((), [str(number) for number in range(10_500)])
    _, kept = store.session.load_outcomes()
    assert (len(kept), kept[0], kept[-1]) == (10_000, "500", "10499")


def test_a_version_never_falls(store: StateStore) -> None:
    for version in (5, 3):
        store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=version, hash="h"))
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 10}, etag=None, version=1, hash="h"))
    kept = store.installed.load_install_config()
    assert kept is not None
    assert kept.high_water == {"9": 5, "10": 1}


def test_the_hash_of_the_highest_version_is_kept_with_it(store: StateStore) -> None:
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


def test_a_file_from_before_hashes_were_kept_brings_the_one_it_has(store: StateStore) -> None:
    config = {"raw": {"id": 9}, "etag": None, "version": 5, "hash": "h5", "high_water": {"8": 2, "9": 5}}
    store.layout.install_config.write_text(json.dumps({"state_version": 1, "config": config}))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.hash_seen("9", 5) == "h5" and kept.hash_seen("8", 2) == ""
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 10}, etag=None, version=1, hash="other"))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.hashes == {"9": "h5", "10": "other"}


def test_versions_and_pins_are_forgotten_when_a_person_says_so(store: StateStore) -> None:
    assert (store.installed.forget_versions(), store.installed.forget_pins()) == ({}, [])
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag='"e"', version=5, hash="h"))
    store.installed.save_pins({"/x": "00"})
    assert (store.installed.forget_versions(), store.installed.forget_pins()) == ({"9": 5}, ["/x"])
    kept = store.installed.load_install_config()
    assert kept is not None and (kept.raw, kept.etag, dict(kept.high_water)) == ({"id": 9}, None, {})
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=2, hash="h"))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.high_water == {"9": 2}
    assert store.installed.load_pins() == {}


def test_a_damaged_install_config_can_be_replaced(store: StateStore) -> None:
    store.layout.install_config.write_text("garbage")
    store.installed.save_install_config(StoredInstallConfig(raw={"id": 9}, etag=None, version=4, hash="h"))
    kept = store.installed.load_install_config()
    assert kept is not None and kept.version == 4


# --- reservations -------------------------------------------------------------------------------------------


def test_reserved_space_is_used_or_given_back(store: StateStore) -> None:
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


def test_no_space_means_nothing_is_spent() -> None:
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
from certctrl.store.disk.atomic import make_tree
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
