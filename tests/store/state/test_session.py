"""State round-trips, and a first run is distinguished from damage."""

from __future__ import annotations

import errno
import itertools
import json
import stat
from pathlib import Path

import pytest
from examples import at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from state_model import KEYS, TOKENS, modelled

from certctrl.errors import BadAnswerError, DiskError, StateCorruptError
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import OutcomeKind
from certctrl.model.priority import Priority
from certctrl.model.records import Ack, CaRecord, CertRecord, DeviceKeys, InboxEntry, Stage, Tokens
from certctrl.model.signals import CaAssigned, CertRenewed, InstallUpdated, MalformedSignal, UnknownSignal, priority_of
from certctrl.store.disk.fs import RealFs
from certctrl.store.state import read_only
from certctrl.store.state.files import sweep_leftovers
from certctrl.store.state.store import StateStore

# --- round trips --------------------------------------------------------------------------------------------


def test_nothing_was_ever_written(store: StateStore) -> None:
    assert (
        store.session.load_cursor(),
        read_only.read_last_poll(store.layout.root),
        store.session.load_device_id(),
    ) == (
        None,
        None,
        None,
    )
    assert (store.session.load_device_keys(), store.session.load_tokens(), store.installed.load_install_config()) == (
        None,
        None,
        None,
    )
    assert (store.session.load_inbox(), store.session.load_outcomes()) == ((), ((), ()))
    assert (
        store.installed.load_certificates(),
        store.installed.load_activations(),
        store.installed.load_cas(),
        store.installed.load_pins(),
    ) == (
        {},
        {},
        {},
        {},
    )
    assert store.installed.load_history() == []


def test_identity_round_trip(store: StateStore) -> None:
    store.session.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.session.save_device_keys(KEYS)
    store.session.save_tokens(TOKENS)
    again = StateStore(store.layout, RealFs())
    assert again.session.load_device_id() == "23229bf7-5172-02c7-59a2-76d5b4a40090"
    assert again.session.load_device_keys() == KEYS
    assert again.session.load_tokens() == TOKENS
    for path in (*store.layout.state.iterdir(), *store.layout.keys.iterdir()):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_polling_round_trip(store: StateStore) -> None:
    store.session.save_cursor("1736900000-5")
    store.session.save_last_poll(1_800_000_000.9)
    assert store.layout.last_cursor.read_text() == "1736900000-5"
    assert (store.session.load_cursor(), read_only.read_last_poll(store.layout.root)) == (
        "1736900000-5",
        1_800_000_000.0,
    )
    store.session.clear_cursor()
    store.session.clear_cursor()
    assert store.session.load_cursor() is None


def test_a_cursor_with_a_final_newline_is_read(store: StateStore) -> None:
    store.layout.last_cursor.write_text("1736900000-5\n")
    assert store.session.load_cursor() == "1736900000-5"


def test_signals_round_trip(store: StateStore) -> None:
    signals = [
        CertRenewed(5, 7, "04:ab"), InstallUpdated(6, 1, 2, "aGFzaA=="), CaAssigned(7, 3, None, "inner"),
        UnknownSignal("new.kind", 8, {"x": [1, {"y": None}]}),
    ]  # fmt: skip
    entries = tuple(InboxEntry(signal=signal) for signal in signals)
    store.session.save_inbox(entries)
    store.session.save_outcomes([Ack(event={"type": "signal.ack", "outcome": "applied"})], ["a", "b"])
    again = StateStore(store.layout, RealFs())
    assert again.session.load_inbox() == entries
    assert again.session.load_outcomes() == ((Ack(event={"type": "signal.ack", "outcome": "applied"}),), ("a", "b"))


def test_a_restart_keeps_the_class_of_a_signal(store: StateStore) -> None:
    sent = CertRenewed(5, 7, sent_priority=Priority.EXPIRING)
    store.session.save_inbox([InboxEntry(signal=sent), InboxEntry(signal=CertRenewed(5, 8))])
    kept = [priority_of(entry.signal) for entry in StateStore(store.layout, RealFs()).session.load_inbox()]
    assert kept == [Priority.EXPIRING, Priority.RENEWAL]


def test_a_malformed_signal_stays_malformed(store: StateStore) -> None:
    store.session.save_inbox([InboxEntry(signal=MalformedSignal("cert.renewed", 5, {"cert_id": "x"}, "no number"))])
    (entry,) = store.session.load_inbox()
    assert isinstance(entry.signal, MalformedSignal)
    assert entry.signal.raw_ref == {"cert_id": "x"}


def test_installed_state_round_trip(store: StateStore) -> None:
    record = CertRecord(
        facts=CertFacts(
            cert_id=7, name="example.com", domains=("example.com", "www.example.com"), serial="04:ab", not_after=1.5
        ),
        generation="abc",
        stage=Stage.ACTIVATED,
        targets=("/srv/x",),
        held=True,
        last_outcome=OutcomeKind.ROLLED_BACK,
    )
    ca = CaRecord(ca_id=3, name="inner", path="/usr/local/share/ca-certificates/certctrl-x-3.crt", sha256="00")
    store.installed.save_certificates({7: record})
    store.installed.save_cas({"3": ca})
    store.installed.save_activations({"reload": "key"})
    store.installed.save_pins({"/usr/local/bin/x": "00"})
    store.installed.save_status({"version": "1.0", "state": "Polling", "poll": {"last_code": 204}})
    again = StateStore(store.layout, RealFs())
    assert again.installed.load_certificates() == {7: record}
    assert again.installed.load_cas() == {"3": ca}
    assert again.installed.load_activations() == {"reload": "key"}
    assert again.installed.load_pins() == {"/usr/local/bin/x": "00"}
    assert read_only.read_status(store.layout.root) == {
        "version": "1.0",
        "state": "Polling",
        "poll": {"last_code": 204},
    }


def test_unknown_keys_are_ignored(store: StateStore) -> None:
    store.installed.save_certificates({7: CertRecord(facts=CertFacts(cert_id=7, name="example.com"))})
    raw = json.loads(store.layout.certificates.read_text())
    raw["certificates"]["7"]["added_later"] = True
    store.layout.certificates.write_text(json.dumps(raw))
    assert store.installed.load_certificates()[7].name == "example.com"


@settings(max_examples=at_most(50))
@given(cursor=st.text(max_size=40))
def test_any_cursor_round_trips_or_is_refused(cursor: str) -> None:
    store, _ = modelled()
    try:
        store.session.save_cursor(cursor)
    except BadAnswerError as error:
        assert not cursor or cursor != cursor.strip() or not cursor.isprintable()
        assert error.fix
        return
    assert StateStore(store.layout, store.session._fs).session.load_cursor() == cursor


def test_errors_do_not_show_tokens(store: StateStore) -> None:
    with pytest.raises(BadAnswerError) as caught:
        store.session.save_tokens(Tokens(access_token="a\nSECRET", refresh_token="ok"))
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(TOKENS)


# --- first run or damage --------------------------------------------------------------------------------------


def test_keys_that_another_process_replaced_are_read_again(store: StateStore) -> None:
    first, second = (DeviceKeys(public=one * 32, secret=one.upper() * 32) for one in (b"a", b"b"))
    store.session.save_device_keys(first)
    assert store.session.load_device_keys() == store.session.load_device_keys() == first
    StateStore(store.layout, RealFs()).session.save_device_keys(second)
    assert store.session.load_device_keys() == second
    store.layout.device_public_key.write_bytes(bytes(32))
    with pytest.raises(StateCorruptError):
        store.session.load_device_keys()


def test_an_interrupted_key_creation_is_a_first_run(store: StateStore) -> None:
    store.layout.device_secret_key.write_bytes(KEYS.secret)
    assert store.session.load_device_keys() is None


@pytest.mark.parametrize("gone", ["device_public_key", "device_secret_key"])
def test_half_a_key_pair_of_a_registered_device_is_damage(store: StateStore, gone: str) -> None:
    store.session.save_device_keys(KEYS)
    store.session.save_tokens(TOKENS)
    path: Path = getattr(store.layout, gone)
    path.unlink()
    with pytest.raises(StateCorruptError) as caught:
        store.session.load_device_keys()
    assert str(path) in str(caught.value)
    assert "register" in str(caught.value.fix)


def test_a_missing_access_token_is_empty(store: StateStore) -> None:
    store.session.save_tokens(TOKENS)
    store.layout.access_token.unlink()
    assert store.session.load_tokens() == Tokens(access_token="", refresh_token=TOKENS.refresh_token)


def test_a_missing_refresh_token_is_damage(store: StateStore) -> None:
    store.session.save_tokens(TOKENS)
    store.layout.refresh_token.unlink()
    with pytest.raises(StateCorruptError, match=r"refresh_token\.txt"):
        store.session.load_tokens()


# --- history, passwords, leftovers ----------------------------------------------------------------------------


def test_history_is_bounded_over_restarts(store: StateStore) -> None:
    for number in range(60):
        if number % 7 == 0:
            store = StateStore(store.layout, RealFs())
        store.installed.append_history([{"number": number}], 20)
    numbers = [entry["number"] for entry in store.installed.load_history()]
    assert 20 <= len(numbers) <= 26
    assert numbers == list(range(60 - len(numbers), 60))
    assert stat.S_IMODE(store.layout.history.stat().st_mode) == 0o600


def test_many_entries_appended_together_are_bounded(store: StateStore) -> None:
    store.installed.append_history([{"number": number} for number in range(10)], 20)
    store.installed.append_history(entries := [{"number": number} for number in range(10, 100)], 20)
    assert entries == []
    numbers = [entry["number"] for entry in store.installed.load_history()]
    assert 20 <= len(numbers) <= 26
    assert numbers == list(range(100 - len(numbers), 100))


def test_torn_lines_of_history_are_ignored_and_removed(store: StateStore) -> None:
    store.installed.append_history([{"number": 1}], 20)
    with store.layout.history.open("ab") as file:
        file.write(b'{"numb')
    again = StateStore(store.layout, RealFs())
    assert again.installed.load_history() == [{"number": 1}]
    again.installed.append_history([{"number": 2}], 20)
    assert again.installed.load_history() == [{"number": 1}, {"number": 2}]
    assert store.layout.history.read_bytes().count(b"\n") == 2


def test_a_failed_append_is_repaired_by_the_next() -> None:
    store, fs = modelled()
    store.installed.append_history([{"number": 1}], 20)
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "write" else None
    with pytest.raises(DiskError):
        store.installed.append_history([{"number": 2}], 20)
    fs.fault = None
    store.installed.append_history([{"number": 3}], 20)
    assert [entry["number"] for entry in store.installed.load_history()] == [1, 3]


def test_entries_written_by_a_failed_append_are_not_repeated() -> None:
    store, fs = modelled()
    entries = [{"number": number} for number in range(5)]
    writes = itertools.count()
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "write" and next(writes) == 3 else None
    with pytest.raises(DiskError):
        store.installed.append_history(entries, 20)
    assert [entry["number"] for entry in entries] == [3, 4]
    store.installed.append_history(entries, 20)
    assert [entry["number"] for entry in store.installed.load_history()] == [0, 1, 2, 3, 4]


def test_a_password_is_created_once(store: StateStore) -> None:
    first, path = store.installed.password("example.com", "pfx")
    assert store.installed.password("example.com", "pfx") == (first, path)
    other, _ = StateStore(store.layout, RealFs()).installed.password("example.com", "jks")
    assert other != first
    assert (len(first), stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (32, 0o600, first)
    store.installed.password("example.com.evil", "pfx")
    assert store.installed.forget_passwords("example.com") == 2
    assert [found.name for found in store.layout.passwords.iterdir()] == ["example.com.evil.pfx"]


def test_sweep_leftovers_removes_temporary_files(store: StateStore) -> None:
    for directory in (store.layout.root, store.layout.state, store.layout.keys, store.layout.passwords):
        (directory / ".x.0011.tmp").write_text("SECRET")
    assert sweep_leftovers(store.layout, RealFs()) == 4
    assert sweep_leftovers(store.layout, RealFs()) == 0
