"""``retries.json`` round-trips, and failures in the files of earlier releases become retries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from certctrl.errors import StateCorruptError
from certctrl.model.records import Retry, RetryKind
from certctrl.model.signals import CertRenewed, CertRevoked, to_wire
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state import read_only
from certctrl.store.state.files import REBUILD, RESYNC
from certctrl.store.state.store import StateStore

RENEWED, REVOKED, FRESH = CertRenewed(1, 7), CertRevoked(2, 7), CertRenewed(3, 9)
RETRIES = (
    Retry(resource="cert:7", kind=RetryKind.REFUSED, attempts=3, failures=5, last_error="check", next_try_at=9.5,
          signal=RENEWED, reported="check"),
    Retry(resource="cert:7", kind=RetryKind.WAITING, failures=2, last_error="no route", signal=REVOKED),
    Retry(resource="cert:8", kind=RetryKind.PENDING, attempts=1, last_error="reload"),
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return StateStore(layout, RealFs())


def write(path: Path, **body: object) -> None:
    path.write_text(json.dumps({"state_version": 1, **body}))


def test_retries_round_trip(store: StateStore) -> None:
    store.installed.save_retries(RETRIES)
    assert StateStore(store.layout, RealFs()).installed.load_retries() == (RETRIES, False)


def test_a_kind_that_earlier_releases_do_not_know_does_not_stop_them(store: StateStore) -> None:
    """They refuse to start with such a file; after a downgrade and an upgrade, the kind is the same again."""
    batch = (Retry(resource="cert:7", kind=RetryKind.BATCH, last_error="lacks", signal=RENEWED),)
    store.installed.save_retries(batch)
    (row,) = json.loads(store.layout.retries.read_text())["retries"]
    assert row["kind"] == "waiting"
    assert StateStore(store.layout, RealFs()).installed.load_retries() == (batch, False)


def test_a_kind_of_a_later_release_is_read_as_waiting(store: StateStore) -> None:
    write(store.layout.retries, retries=[{"resource": "cert:7", "kind": "eclipse", "exact_kind": "total-eclipse"}])
    (retry,), _ = store.installed.load_retries()
    assert retry.kind is RetryKind.WAITING


def test_without_a_failure_there_is_nothing_to_save(store: StateStore) -> None:
    assert store.installed.load_retries() == ((), True)


def certificate(cert_id: int, **more: object) -> dict[str, object]:
    return {"cert_id": cert_id, "name": f"{cert_id}.example", **more}


def entry(signal: CertRenewed | CertRevoked, **more: object) -> dict[str, object]:
    return {"signal": to_wire(signal), **more}


def earlier(store: StateStore) -> None:
    """Write the files of a release without ``retries.json``."""
    failed = {"attempts": 4, "last_error": "nginx: bad", "next_try_at": 500.0}
    rows = [
        certificate(6, last_outcome="rolled_back", staged="g", **failed),
        certificate(7, last_outcome="failed", **failed),
        certificate(8, last_outcome="applied", owed=["r"], generation="g", **failed),
        certificate(9, last_outcome="applied", attempts=0, last_error="", next_try_at=0.0),
    ]
    write(store.layout.certificates, certificates={str(row["cert_id"]): row for row in rows})
    entries = [
        entry(RENEWED, attempts=2, last_error="check", next_try_at=900.0),
        entry(REVOKED, attempts=0, last_error="no route", next_try_at=70.0),
        entry(FRESH, attempts=0, last_error="", next_try_at=0.0),
    ]
    write(store.layout.inbox, entries=entries)


def test_failures_of_an_earlier_release_become_retries(store: StateStore) -> None:
    earlier(store)
    retries, unsaved = store.installed.load_retries()
    found = {retry.key: retry for retry in retries}
    assert unsaved
    assert {key: (one.kind, one.attempts, one.last_error, one.next_try_at) for key, one in found.items()} == {
        "cert:6": (RetryKind.REFUSED, 4, "nginx: bad", 500.0),
        "cert:7": (RetryKind.REFUSED, 2, "check", 900.0),
        "cert:7 revoked": (RetryKind.WAITING, 0, "no route", 70.0),
        "cert:8": (RetryKind.PENDING, 4, "nginx: bad", 500.0),
    }
    assert {key: (one.signal, one.reported) for key, one in found.items() if one.signal} == {
        "cert:7": (RENEWED, "check"),
        "cert:7 revoked": (REVOKED, "no route"),
    }
    assert [one.signal for one in store.session.load_inbox()] == [FRESH]
    assert {cert_id for cert_id, record in store.installed.load_certificates().items() if record.failing} == {6, 7, 8}


KINDS: list[tuple[dict[str, object], RetryKind]] = [
    ({"last_outcome": "failed"}, RetryKind.REFUSED),
    ({"last_outcome": "rolled_back"}, RetryKind.REFUSED),
    ({"last_outcome": "rolled_back", "owed": ["r"], "staged": "g"}, RetryKind.REFUSED),
    ({"last_outcome": "rolled_back", "owed": ["r"], "staged": ""}, RetryKind.PENDING),
    ({"last_outcome": "applied"}, RetryKind.PENDING),
    ({}, RetryKind.PENDING),
]


@pytest.mark.parametrize(("row", "kind"), KINDS)
def test_a_failure_of_a_certificate_is_retried_by_its_outcome(
    store: StateStore, row: dict[str, object], kind: RetryKind
) -> None:
    failed = {"attempts": 2, "last_error": "bad", "next_try_at": 5.0}
    write(store.layout.certificates, certificates={"5": certificate(5), "7": certificate(7, **row, **failed)})
    expected = Retry(resource="cert:7", kind=kind, attempts=2, failures=2, last_error="bad", next_try_at=5.0)
    assert store.installed.load_retries() == ((expected,), True)


@pytest.mark.parametrize(
    ("failed", "kind", "failures"),
    [
        ({"attempts": 3}, RetryKind.REFUSED, 3),
        ({"attempts": 0, "last_error": "no route"}, RetryKind.WAITING, 1),
        ({"attempts": 1, "last_error": "check", "next_try_at": 5.0}, RetryKind.REFUSED, 1),
    ],
)
def test_a_failed_signal_is_retried_by_its_attempts(
    store: StateStore, failed: dict[str, Any], kind: RetryKind, failures: int
) -> None:
    write(store.layout.inbox, entries=[entry(FRESH), entry(RENEWED, **failed)])
    expected = Retry(
        resource="cert:7", kind=kind, failures=failures, signal=RENEWED, reported=failed.get("last_error", ""), **failed
    )
    assert store.installed.load_retries() == ((expected,), True)
    assert [one.signal for one in store.session.load_inbox()] == [FRESH]


@pytest.mark.parametrize(
    ("name", "body", "what"),
    [
        (
            "certificates",
            {"certificates": {"7": {"attempts": "x"}}},
            "certificates.7.attempts: expected a whole number",
        ),
        ("certificates", {"certificates": []}, "certificates: expected an object"),
        ("inbox", {"entries": [{"attempts": "x"}]}, "entries[0].attempts: expected a whole number"),
        ("inbox", {"entries": [{"attempts": 1, "signal": 5}]}, "entries[0].signal: expected an object"),
        ("inbox", {"entries": {}}, "entries: expected a list"),
    ],
)
def test_damage_in_the_files_of_an_earlier_release_is_named(
    store: StateStore, name: str, body: dict[str, Any], what: str
) -> None:
    path: Path = getattr(store.layout, name)
    write(path, **body)
    with pytest.raises(StateCorruptError) as caught:
        store.installed.load_retries()
    assert str(caught.value).startswith(f"{path} is damaged: {what}")
    assert caught.value.fix == (REBUILD if name == "certificates" else RESYNC)


def test_status_counts_each_signal_once_while_both_files_have_it(store: StateStore) -> None:
    earlier(store)
    root = store.layout.root
    assert read_only.waiting_signals(root) == 3
    store.installed.save_retries(store.installed.load_retries()[0])
    assert read_only.waiting_signals(root) == 3
    store.session.save_inbox(store.session.load_inbox())
    assert read_only.waiting_signals(root) == 3


def test_the_rows_of_certificates_keep_their_fields(store: StateStore) -> None:
    earlier(store)
    before = read_only.read_certificates(store.layout.root)
    retries, _ = store.installed.load_retries()
    store.installed.save_certificates(store.installed.load_certificates())
    store.installed.save_retries(retries)
    after = read_only.read_certificates(store.layout.root)
    assert before is not None and after is not None
    shown = [{key: row[key] for key in ("attempts", "last_error", "next_try_at")} for row in after]
    assert shown[0] == {"attempts": 4, "last_error": "nginx: bad", "next_try_at": 500.0}
    assert shown[1] == {"attempts": 2, "last_error": "check", "next_try_at": 900.0}
    assert shown[3] == {"attempts": 0, "last_error": "", "next_try_at": 0.0}
    assert [row.keys() >= {"attempts", "last_error", "next_try_at"} for row in before] == [True] * 4


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"state_version":1,"retries":3}', b'{"state_version":1,"retries":[1]}']
)
def test_damage_is_reported(store: StateStore, body: bytes) -> None:
    store.layout.retries.write_bytes(body)
    for load in (store.installed.load_retries, lambda: read_only.waiting_signals(store.layout.root)):
        with pytest.raises(StateCorruptError, match=r"retries\.json"):
            load()
