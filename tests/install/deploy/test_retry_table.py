"""RetryTable: failures, their owners, and when they are retried."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import trio
import trio.testing

from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.retries import Failure
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import Retry, RetryKind
from certctrl.model.signals import CertRenewed, CertRevoked, CertUnassigned, Signal, identity

OLD, NEW, REVOKED = CertRenewed(ts_ms=1, cert_id=7), CertRenewed(ts_ms=2, cert_id=7), CertRevoked(ts_ms=3, cert_id=7)


class Host:
    """A table and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps = 0.0
        """Seconds by which the wall clock has been set."""
        self.start(())

    def start(self, stored: Sequence[Retry]) -> None:
        """Begin a new run with these retries on disk."""
        self.table = RetryTable(
            load=lambda: (stored, False), wall_now=lambda: self.now, steady_now=lambda: self.now - self.steps,
            random=lambda: 1.0, settings=ApplicationConfig,
        )  # fmt: skip

    def set_clock(self, by: float) -> None:
        """Set the wall clock, without time passing."""
        self.now += by
        self.steps += by

    def stored(self) -> list[Retry]:
        """Return the written rows."""
        return list(self.table.rows().values())

    def fail(self, kind: RetryKind, signal: Signal | None = None, error: str = "why") -> Retry:
        return self.table.failed(Failure(resource="cert:7", kind=kind, error=error, signal=signal))


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_resource_without_a_failure_is_due(host: Host) -> None:
    assert host.table.is_due("cert:7")
    host.fail(RetryKind.PENDING)
    assert (host.table.is_due("cert:7"), host.table.due_at("cert:7")) == (False, 1030.0)
    host.now = 1030.0
    assert host.table.is_due("cert:7")


def test_a_signal_delayed_while_the_clock_was_ahead_is_due_in_its_time(host: Host) -> None:
    host.set_clock(1e9)
    host.fail(RetryKind.REFUSED, OLD)
    host.set_clock(-1e9)
    assert [one.next_try_at for one in host.table.scheduled_signals()] == [1005.0], "a retry is never delayed that long"
    host.fail(RetryKind.REFUSED, OLD)
    waits = host.table.signals()
    assert host.table.scheduled_signals() == waits and 1000.0 < waits[0].next_try_at < 1100.0


@pytest.mark.parametrize("step", [-3 * 3600.0, -10 * 86_400.0, 3 * 3600.0, 10 * 86_400.0])
def test_no_retry_waits_longer_or_shorter_because_the_clock_was_set(host: Host, step: float) -> None:
    host.fail(RetryKind.PENDING)
    host.now += 10
    host.set_clock(step)
    assert (host.table.left("cert:7"), host.table.due_at("cert:7")) == (20, host.now + 20)
    host.now += 20
    assert host.table.is_due("cert:7")


@pytest.mark.parametrize("step", [-3 * 3600.0, 3 * 3600.0])
def test_a_restart_after_the_clock_was_set_waits_the_rest(host: Host, step: float) -> None:
    host.fail(RetryKind.PENDING)
    host.now += 10
    host.set_clock(step)
    version = host.table.version
    host.table.clock_was_set()
    assert host.table.version > version, "it is to be written"
    assert host.table.of("cert:7") == attrs.evolve(host.stored()[0], next_try_at=host.now + 20)
    host.start(host.stored())
    assert host.table.left("cert:7") == 20


@pytest.mark.parametrize("step", [-3 * 3600.0, -5.0, 3 * 3600.0])
def test_a_restart_that_finds_the_clock_set_waits_no_longer_than_the_pause(host: Host, step: float) -> None:
    """It was set while no run watched."""
    for _ in range(5):
        retry = host.fail(RetryKind.PENDING)
    assert retry.pause == 480
    host.now += 100
    host.set_clock(step)
    host.start([retry])
    assert host.table.left("cert:7") == (385 if step == -5 else 0)


def test_a_pause_of_an_earlier_release_is_bounded_by_the_longest(host: Host) -> None:
    for ahead, left in ((3600.0, 3600.0), (3601.0, 0.0)):
        host.start([Retry(resource="cert:7", kind=RetryKind.PENDING, next_try_at=host.now + ahead)])
        assert host.table.left("cert:7") == left


@pytest.mark.parametrize(("step", "left"), [(0.0, 80), (-600.0, 80), (60.0, 20), (80.0, 0), (7200.0, 0)])
def test_a_retry_for_a_date_follows_a_clock_that_is_set(host: Host, step: float, left: float) -> None:
    """Not later than before: by a clock that was set back, the date itself may have been wrong."""
    failure = Failure(resource="cert:7", kind=RetryKind.WAITING, error="why", retry_after=90.0, until=host.now + 90)
    host.table.failed(failure)
    host.now += 10
    host.set_clock(step)
    assert host.table.left("cert:7") == 80
    host.table.clock_was_set()
    assert host.table.left("cert:7") == left
    host.start(host.stored())
    assert host.table.left("cert:7") == left
    host.table.remove("cert:7")


def test_another_failure_does_not_wait_for_the_date_of_an_earlier_one(host: Host) -> None:
    early = Failure(resource="cert:7", kind=RetryKind.WAITING, error="why", retry_after=90.0, until=host.now + 90)
    for forget in (lambda: host.fail(RetryKind.REFUSED), lambda: host.table.remove("cert:7")):
        host.table.failed(early)
        forget()
        left = host.fail(RetryKind.REFUSED).pause
        host.set_clock(7200.0)
        host.table.clock_was_set()
        assert host.table.left("cert:7") == left
        host.table.remove("cert:7")


def test_setting_the_clock_keeps_due_retries_due(host: Host) -> None:
    host.fail(RetryKind.PENDING)
    host.now += 60
    before = host.stored()
    host.set_clock(3600.0)
    host.table.clock_was_set()
    assert host.stored() == before
    host.set_clock(-3 * 3600.0)
    host.table.clock_was_set()
    assert host.table.is_due("cert:7")
    host.start(host.stored())
    assert host.table.is_due("cert:7")


def test_the_remaining_life_bounds_the_pause(host: Host) -> None:
    host.table.ends_at = {"cert:7": host.now + 2000.0}.__getitem__
    for _ in range(20):
        assert host.fail(RetryKind.REFUSED).next_try_at <= host.now + 200


def test_a_success_ends_a_retry_without_a_signal(host: Host) -> None:
    host.fail(RetryKind.PENDING)
    host.table.succeeded("cert:7")
    assert host.table.of("cert:7") is None


def test_a_success_leaves_a_signal_to_its_own_next_try(host: Host) -> None:
    retry = host.fail(RetryKind.REFUSED, OLD)
    host.table.succeeded("cert:7")
    assert host.table.of("cert:7") == retry
    host.table.ended(OLD)
    assert host.table.of("cert:7") is None


def test_items_stay_pending_when_their_signal_ends(host: Host) -> None:
    host.fail(RetryKind.REFUSED, OLD)
    host.fail(RetryKind.PENDING)
    host.table.ended(OLD)
    kept = host.table.of("cert:7")
    assert kept is not None and (kept.kind, kept.signal) == (RetryKind.PENDING, None)


def test_items_that_succeeded_do_not_come_back_with_their_signal(host: Host) -> None:
    host.fail(RetryKind.REFUSED, OLD)
    host.fail(RetryKind.PENDING)
    host.table.succeeded("cert:7")
    host.table.ended(OLD)
    assert host.table.of("cert:7") is None


def test_a_new_signal_replaces_a_failure_without_one(host: Host) -> None:
    host.fail(RetryKind.REFUSED)
    host.table.replaced(NEW)
    assert host.table.of("cert:7") is None
    pending = host.fail(RetryKind.PENDING)
    host.table.replaced(NEW)
    assert host.table.of("cert:7") == pending, "items are not of the material"


def test_another_failure_does_not_postpone_an_unassignment(host: Host) -> None:
    order = CertUnassigned(ts_ms=1, cert_id=7)
    waits = Failure(resource="cert:7", kind=RetryKind.GRACE, error="unassigned", retry_after=600.0, signal=order)
    before = host.table.failed(waits)
    assert host.fail(RetryKind.PENDING) == before
    assert host.stored() == [before]
    host.now += 600.0
    after = host.fail(RetryKind.WAITING)
    assert (after.kind, after.signal, host.table.is_due("cert:7")) == (RetryKind.WAITING, order, False)


def test_a_revocation_and_a_renewal_are_retried_separately(host: Host) -> None:
    revocation, renewal = host.fail(RetryKind.WAITING, REVOKED), host.fail(RetryKind.WAITING, NEW)
    assert host.table.signals() == [revocation, renewal]
    host.table.ended(NEW)
    assert host.table.signals() == [revocation]
    assert host.table.is_due("cert:7"), "the items of the certificate do not wait for a revocation"


def test_due_now_is_for_everything_or_for_one_resource(host: Host) -> None:
    host.fail(RetryKind.PENDING)
    host.table.failed(Failure(resource="install", kind=RetryKind.REFUSED, error="why"))
    host.table.due_now("install")
    assert (host.table.is_due("install"), host.table.is_due("cert:7")) == (True, False)
    assert len(host.table.due_now()) == 2
    assert host.table.is_due("cert:7")
    kept = host.table.of("cert:7")
    assert kept is not None and kept.attempts == 1, "it is still the same failure"


def test_a_crash_between_two_files_repeats_nothing_that_is_done(host: Host) -> None:
    host.fail(RetryKind.REFUSED, OLD)
    host.table.forget({identity(NEW)}, set())
    assert len(host.table.signals()) == 1
    host.table.forget({identity(OLD)}, set())
    assert host.table.signals() == []


@pytest.mark.parametrize("end", ["fails again", "is done"])
async def test_a_retry_is_waited_for(host: Host, end: str) -> None:
    retry = host.fail(RetryKind.WAITING, OLD)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.table.wait_tried, [retry])
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        host.fail(RetryKind.REFUSED, OLD, "new") if end == "fails again" else host.table.ended(OLD)
