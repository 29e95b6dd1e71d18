"""Atomic batches are gathered across pages and retries, and never hold a signal of their certificates back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from certctrl.agent.atomic_batches import AtomicBatches
from certctrl.agent.batches import ReadyCertificate
from certctrl.agent.reconcile import compare
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.model.certificate import CertFacts, CertificateSummary
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import CertRecord, InboxEntry, Retry, RetryKind, Stage
from certctrl.model.signals import AtomicBatch, CertRenewed, CertRevoked, CertUnassigned, Signal

LIMIT = 600.0


class Staged:
    """A stand-in for a prepared certificate."""

    def __init__(self, cert_id: int) -> None:
        self.cert_id = cert_id


def renewed(cert_id: int, batch: str = "b", size: int = 3, ts_ms: int = 1) -> CertRenewed:
    return CertRenewed(ts_ms, cert_id, batch=AtomicBatch(id=batch, size=size))


def ready(signal: CertRenewed) -> ReadyCertificate:
    return ReadyCertificate(
        entry=InboxEntry(signal=signal), prepared=cast(Any, Staged(signal.cert_id)), started=0.0, deadline=300.0
    )


class Host:
    """The batches of a host, with a clock and a retry table."""

    def __init__(self) -> None:
        self.now = 0.0
        self.compared = 0
        self.retries = RetryTable(
            load=lambda: ((), False), wall_now=lambda: self.now, steady_now=lambda: self.now, random=lambda: 1.0,
            settings=ApplicationConfig,
        )  # fmt: skip
        self.withdrawn: set[int] = set()
        self.atomic = AtomicBatches(
            self.retries,
            limit=lambda: LIMIT,
            clock=lambda: self.now,
            compare=lambda: self.note_comparison(),
            is_withdrawn=lambda cert_id: cert_id in self.withdrawn,
        )

    def note_comparison(self) -> None:
        self.compared += 1

    def note(self, signals: Sequence[Signal], *waiting: Signal) -> list[int]:
        """Note signals, and such that failed and wait for their next try; return the certificates that were freed."""
        return ids(self.atomic.note([*signals, *waiting], signals))

    def hold(self, *signals: CertRenewed) -> None:
        for signal in signals:
            self.atomic.hold(ready(signal))

    def taken(self) -> list[int]:
        return ids(self.atomic.take_complete())

    def fail(self, signal: Signal, kind: RetryKind, error: str = "no") -> None:
        """Record a failure that is due in an hour."""
        at = self.now + 3600.0
        self.retries.put(
            Retry(resource=signal.resource, kind=kind, signal=signal, last_error=error, next_try_at=at, pause=3600.0)
        )


def ids(found: Iterable[ReadyCertificate]) -> list[int]:
    return sorted(one.prepared.cert_id for one in found)


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_batch_leaves_once_all_announced_certificates_are_ready(host: Host) -> None:
    first, second, third = (renewed(n) for n in (1, 2, 3))
    host.note([first, second])
    host.hold(first, second)
    assert host.taken() == [], "the third comes with the next page"
    host.note([first, second, third])
    assert host.taken() == []
    host.hold(third)
    assert host.taken() == [1, 2, 3] and host.atomic.held == []


def test_a_batch_waits_for_each_certificate_that_is_announced(host: Host) -> None:
    """The plane announced a smaller size than it sent: none of them is left behind."""
    signals = [renewed(n, size=2) for n in (1, 2, 3)]
    host.note(signals)
    host.hold(*signals[:2])
    assert host.taken() == []
    host.hold(signals[2])
    assert host.taken() == [1, 2, 3]


def test_batches_do_not_wait_for_each_other(host: Host) -> None:
    signals = [renewed(1, "one", 2), renewed(2, "one", 2), renewed(3, "two", 2), renewed(4, "two", 2)]
    host.note(signals)
    host.hold(signals[0], signals[2], signals[3])
    assert host.taken() == [3, 4]


@pytest.mark.parametrize("newer", [
    CertRevoked(2, 1), CertRenewed(2, 1), renewed(1, "other", 2, ts_ms=2), renewed(1, ts_ms=2), CertRevoked(0, 1),
])  # fmt: skip
def test_another_signal_of_a_certificate_frees_it(host: Host, newer: Signal) -> None:
    first, second = renewed(1, size=2), renewed(2, size=2)
    host.note([first, second])
    host.hold(first)
    assert host.note([first, second, newer]) == [1]
    assert host.atomic.held == []


def test_a_revocation_that_waits_for_its_next_try_frees_nothing(host: Host) -> None:
    """Its certificate would be fetched, ready, and freed again, without end."""
    first, second, revoked = renewed(1, size=2), renewed(2, size=2), CertRevoked(0, 1)
    host.note([first, second], revoked)
    host.hold(first)
    assert host.note([first, second], revoked) == []
    assert host.note([first, second, revoked]) == [1], "it is due"


def test_a_certificate_that_left_its_batch_is_not_waited_for(host: Host) -> None:
    signals = [renewed(n) for n in (1, 2, 3)]
    host.note(signals)
    host.hold(*signals[:2])
    host.note([*signals[:2], CertRenewed(5, 3)])
    assert host.taken() == [1, 2]


def test_the_newest_signal_says_how_many_there_are(host: Host) -> None:
    """After a restart, the comparison with the plane announces the two that are left of three."""
    old = [renewed(1), renewed(2)]
    host.note(old)
    host.hold(*old)
    assert host.taken() == []
    new = [renewed(1, size=2, ts_ms=9), renewed(2, size=2, ts_ms=9)]
    assert host.note([*old, *new]) == [1, 2]
    host.note(new)
    host.hold(*new)
    assert host.taken() == [1, 2]


def test_an_incomplete_batch_fails_with_its_reason_after_the_limit(host: Host) -> None:
    signals = [renewed(n) for n in (1, 2, 3)]
    host.fail(signals[2], RetryKind.REFUSED, "bad material")
    host.note(signals)
    host.now = 100.0
    host.hold(*signals[:2])
    assert host.atomic.next_end == 100.0 + LIMIT
    host.now += LIMIT - 1
    assert host.atomic.take_expired() == []
    host.now += 1
    found = host.atomic.take_expired()
    assert ids(one for one, _ in found) == [1, 2]
    assert {why for _, why in found} == {"not switched: atomic batch b lacks certificate 3: bad material"}
    assert host.compared == 0 and host.atomic.held == [] and host.atomic.next_end == float("inf")


def test_a_comparison_with_the_plane_does_not_prolong_the_limit(host: Host) -> None:
    """It announces again what differs; with a short ``reconcile_interval_seconds``, the limit would never be over."""
    signals = [renewed(1, size=2), renewed(2, size=2)]
    host.note(signals)
    host.hold(signals[0])
    for at in (300, 590):
        host.now = float(at)
        before, signals = signals[0], [renewed(1, size=2, ts_ms=at), renewed(2, size=2, ts_ms=at)]
        assert host.note([before, *signals]) == [1]
        host.note(signals)
        host.hold(signals[0])
        assert host.atomic.take_expired() == []
    host.now = 600.0
    assert ids(one for one, _ in host.atomic.take_expired()) == [1]
    host.hold(signals[0])
    assert host.atomic.next_end == 1200.0, "the next try has the whole limit"


def test_the_limit_begins_with_the_first_that_stays_in_the_batch(host: Host) -> None:
    first, second = renewed(1), renewed(2)
    host.note([first, second])
    host.hold(first)
    host.note([first, second, CertRevoked(2, 1)])
    host.now = 500.0
    host.hold(second)
    assert host.atomic.next_end == 1100.0


def test_a_plane_that_announces_more_and_more_needs_no_more_memory(host: Host) -> None:
    stuck = renewed(1, size=2)
    for number in range(2, 500):
        host.note([stuck, renewed(number, size=2)])
    assert len(host.atomic._found["b"].seen) == 100


def test_the_plane_is_asked_once_for_certificates_that_were_not_announced(host: Host) -> None:
    signal = renewed(1)
    for _ in range(2):
        host.note([signal])
        host.hold(signal)
        host.now += LIMIT
        ((_, why),) = host.atomic.take_expired()
        assert "2 of 3 certificates" in why
    assert host.compared == 1


def test_the_reason_names_a_few_certificates_and_is_bounded(host: Host) -> None:
    signals = [renewed(n, size=100) for n in range(1, 101)]
    for signal in signals[1:]:
        host.fail(signal, RetryKind.REFUSED, "x" * 1000)
    host.note(signals)
    host.hold(signals[0])
    host.now += LIMIT
    ((_, why),) = host.atomic.take_expired()
    assert len(why) <= 400


def test_those_that_fail_for_lack_of_one_are_due_once_it_is_ready(host: Host) -> None:
    signals = [renewed(n) for n in (1, 2, 3)]
    host.fail(signals[0], RetryKind.BATCH)
    host.fail(signals[1], RetryKind.REFUSED)
    host.fail(renewed(4, "other"), RetryKind.BATCH)
    host.note(signals)
    host.hold(signals[2])
    due = [host.retries.is_due(f"cert:{n}") for n in (1, 2, 4)]
    assert due == [True, False, False], "what was refused keeps its pause"


def test_a_run_that_ends_releases_all(host: Host) -> None:
    signals = [renewed(1), renewed(2)]
    host.note(signals)
    host.hold(*signals)
    assert ids(host.atomic.take_all()) == [1, 2] and host.atomic.held == []


def test_little_is_kept_of_batches_that_are_done(host: Host) -> None:
    for number in range(300):
        signals = [renewed(n, f"b{number}", size=2) for n in (1, 2)]
        host.note(signals)
        host.hold(*signals)
        assert host.taken() == [1, 2]
        host.note([])
        assert not host.atomic.may_have_any
    assert len(host.atomic._found) == 100


def test_a_signal_of_a_batch_that_is_done_does_not_wait_for_the_others(host: Host) -> None:
    """A comparison with the plane superseded those on the pages before; this one is on a later page."""
    late = renewed(3)
    host.note([renewed(1), renewed(2)])
    host.note([renewed(n, ts_ms=9) for n in (1, 2, 3)])
    host.note([])
    host.note([late])
    host.hold(late)
    assert host.taken() == [3]


# --- the comparison with the plane ----------------------------------------------------------------------------------


def listed(cert_id: int, batch: str = "", size: int = 3) -> CertificateSummary:
    of_batch = AtomicBatch(id=batch, size=size) if batch else None
    return CertificateSummary(
        id=cert_id, domain_name=f"c{cert_id}", serial_number="0b", status="active", batch=of_batch
    )


def here(cert_id: int, serial: str) -> CertRecord:
    facts = CertFacts(cert_id=cert_id, name=f"c{cert_id}", domains=(f"c{cert_id}",), serial=serial)
    return CertRecord(facts=facts, generation="g", activated="g", stage=Stage.ACTIVATED)


@pytest.mark.parametrize(("stale", "sizes"), [
    ((1, 2, 3), {1: 3, 2: 3, 3: 3}),
    ((1, 2), {1: 2, 2: 2}),
    ((1,), {1: None}),
])  # fmt: skip
def test_a_comparison_announces_what_differs_of_a_batch(stale: tuple[int, ...], sizes: dict[int, int | None]) -> None:
    records = {n: here(n, "0a" if n in stale else "0b") for n in (1, 2, 3)}
    found = compare([listed(n, "b") for n in (1, 2, 3)], records, 7).signals
    renewals = {one.cert_id: one.batch for one in found if isinstance(one, CertRenewed)}
    assert {one: batch and batch.size for one, batch in renewals.items()} == sizes


def test_a_comparison_keeps_batches_apart() -> None:
    records = {n: here(n, "0a") for n in (1, 2, 3, 4, 5)}
    rows = [listed(1, "a"), listed(2, "a"), listed(3, "b"), listed(4, "b"), listed(5)]
    found = {one.cert_id: one.batch for one in compare(rows, records, 7).signals if isinstance(one, CertRenewed)}
    a, b = AtomicBatch(id="a", size=2), AtomicBatch(id="b", size=2)
    assert found == {1: a, 2: a, 3: b, 4: b, 5: None}


def test_a_batch_of_the_list_that_is_larger_than_any_is_none() -> None:
    """Otherwise its signals could not be read again after a restart."""
    ids = range(1, 102)
    found = compare([listed(n, "b") for n in ids], {n: here(n, "0a") for n in ids}, 7).signals
    assert len(found) == 101 and not any(one.batch for one in found if isinstance(one, CertRenewed))


async def test_a_late_certificate_next_to_a_batch_is_noticed(autojump_clock: MockClock) -> None:
    """The certificates of an atomic batch have no deadline; others in the same switch keep theirs."""
    from certctrl.agent.batches import Batches
    from certctrl.agent.burst import BurstWatch

    async def hangs(*_: object) -> dict[int, Any]:
        await trio.sleep_forever()
        return {}

    burst = BurstWatch(debounce=lambda: (0.5, 5.0), clock=trio.current_time)
    batches, late = Batches(hangs, burst), list[int]()

    async def finish(finished: Any) -> None:
        late.extend(one.prepared.cert_id for one, _ in finished)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, finish)
        batches.add(attrs.evolve(ready(renewed(1)), deadline=float("inf")))
        batches.add(attrs.evolve(ready(renewed(2)), deadline=trio.current_time() + 90.0))
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert late == [2]


@pytest.mark.parametrize(("kind", "withdrawn", "leaves"), [
    (None, False, False), (None, True, False), (RetryKind.LAGGING, False, False), (RetryKind.WAITING, False, False),
    (RetryKind.GRACE, False, True), (RetryKind.REFUSED, False, False), (RetryKind.REFUSED, True, True),
])  # fmt: skip
def test_a_batch_waits_for_an_unassigned_certificate_until_the_plane_has_confirmed_it(
    kind: RetryKind | None, withdrawn: bool, leaves: bool
) -> None:
    """It need not be out of use: a service that does not reload would keep the others of the batch forever."""
    host, members = Host(), [renewed(1), renewed(2), renewed(3)]
    host.note(members)
    host.hold(*members[:2])
    unassigned = CertUnassigned(2, 3)
    if kind is not None:
        host.fail(unassigned, kind)
    host.withdrawn = {3} if withdrawn else set()
    host.note([*members[:2], *([unassigned] if kind is None else [])], *([] if kind is None else [unassigned]))
    assert host.taken() == ([1, 2] if leaves else [])
