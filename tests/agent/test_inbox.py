"""The inbox: order and grouping of writes, backpressure, full disks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from modeldisk import ModelFs

from certctrl.agent.inbox import ACK_LIMIT, DONE_LIMIT, Inbox
from certctrl.errors import DiskError
from certctrl.install.deploy.record_store import RecordStore
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.retries import Failure
from certctrl.model.config import ApplicationConfig
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.priority import Priority
from certctrl.model.records import Ack, InboxEntry, Retry, RetryKind
from certctrl.model.signals import CertRenewed, CertRevoked, InstallUpdated, Signal, identity
from certctrl.protocol.wire.signals import ack_event
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState
from certctrl.store.state.session import SessionState

A, B = CertRenewed(ts_ms=1, cert_id=1), CertRenewed(ts_ms=1, cert_id=2)


class Disk:
    """Runs the writes inline, and can be slow or full."""

    def __init__(self) -> None:
        self.writes = 0
        self.full = False

    async def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        await trio.sleep(0.01)
        if self.full:
            raise DiskError("disk full")
        self.writes += 1
        return call(*args)


@pytest.fixture
def store(tmp_path: Path) -> SessionState:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return SessionState(layout, RealFs())


def inbox_of(store: SessionState, disk: Disk | None = None, *, limit: int = 10) -> Inbox:
    """Return an inbox with a new record store, as in a new process."""
    disk = disk or Disk()
    installed = InstalledState(store.layout, store._fs)
    retries = RetryTable(
        load=installed.load_retries,
        wall_now=lambda: 1000.0,
        steady_now=lambda: 1000.0,
        random=lambda: 1.0,
        settings=ApplicationConfig,
    )
    records = RecordStore(installed, disk, lambda: 1000, retries)
    return Inbox(store, disk, retries, records.secure_retries, limit=limit)


def again(store: SessionState) -> Inbox:
    return inbox_of(store)


async def fail(inbox: Inbox, entry: InboxEntry, error: str = "no route") -> Retry:
    """Hand a signal over to the retries, as the dispatcher does."""
    failure = Failure(resource=entry.signal.resource, kind=RetryKind.REFUSED, error=error, signal=entry.signal)
    retry = inbox._retries.failed(failure)
    await inbox.hand_over(entry, {"failed": error})
    return retry


async def admitted(inbox: Inbox, signals: Sequence[Signal]) -> list[InboxEntry]:
    entries = inbox.admit(signals)
    await inbox.secure()
    return entries


async def test_a_new_ack_ends_the_wait_even_if_it_came_before(store: SessionState) -> None:
    """An ack that was offered and could not be sent waits for the next poll."""
    inbox = again(store)
    await inbox.finish(await admitted(inbox, [A]), [{"n": 1}])
    with trio.fail_after(1):
        await inbox.wait_for_ack()
    assert inbox.next_acks(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.wait_for_ack)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks, "the plane did not take it: the next poll tries again"
        await inbox.report({"n": 2})


async def test_a_page_is_durable_after_secure_and_duplicates_are_dropped(store: SessionState) -> None:
    inbox = again(store)
    assert [e.signal for e in inbox.admit([A, B, A])] == [A, B]
    assert inbox.behind
    assert inbox.admit([B]) == []
    await inbox.secure()
    assert not inbox.behind
    assert [e.signal for e in again(store).entries()] == [A, B]


async def test_a_signal_done_before_secure_is_never_written(store: SessionState) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk, limit=10)
    (entry,) = inbox.admit([A])
    await inbox.finish([entry], [ack_event(A, Outcome(kind=OutcomeKind.APPLIED), 1)])
    writes = disk.writes
    await inbox.secure()
    assert disk.writes == writes
    assert not inbox.behind
    assert (again(store).entries(), again(store).acks_pending) == ([], 1)


async def test_a_signal_failed_before_secure_survives_a_power_cut() -> None:
    layout, fs = ConfigDir(Path("/agent")), ModelFs()
    make_tree(fs, layout)
    inbox = again(SessionState(layout, fs))
    (entry,) = inbox.admit([A])
    await fail(inbox, entry)
    await inbox.secure()
    for left in fs.crash_states(100, random.Random(1)):
        (kept,) = again(SessionState(layout, left))._retries.signals()
        assert (kept.signal, kept.attempts) == (A, 1)


async def test_an_outcome_is_on_disk_before_its_signal_leaves(store: SessionState) -> None:
    inbox = again(store)
    (entry,) = await admitted(inbox, [A])
    await inbox.finish([entry], [{"type": "signal.ack"}])
    later = again(store)
    assert later.entries() == []
    assert later.next_acks(10) == [{"type": "signal.ack"}]
    assert later.admit([A]) == []  # a replay after a restart


async def test_a_failure_is_kept_with_its_attempts(store: SessionState) -> None:
    inbox = again(store)
    (entry,) = await admitted(inbox, [A])
    retry = await fail(inbox, entry)
    found = again(store)
    assert (found.entries(), found._retries.signals(), found.depth) == ([], [retry], 1)
    assert (retry.attempts, retry.last_error, retry.next_try_at) == (1, "no route", 1005.0)
    assert found.admit([A]) == [], "the page may come again"


async def test_a_signal_in_the_inbox_and_among_the_retries_is_handled_as_new(store: SessionState) -> None:
    """A crash came after the retry was durable and before the signal left."""
    inbox = again(store)
    (entry,) = await admitted(inbox, [A])
    await fail(inbox, entry)
    store.save_inbox([entry])
    found = again(store)
    assert ([one.signal for one in found.entries()], found._retries.signals()) == ([A], [])


async def test_a_retry_that_is_done_does_not_come_back(store: SessionState) -> None:
    """A crash came after the outcome was durable and before the retry left."""
    inbox = again(store)
    (entry,) = await admitted(inbox, [A])
    retry = await fail(inbox, entry)
    await inbox.finish([InboxEntry(signal=A, retry=retry)], [{"n": 1}])
    found = again(store)
    assert (found.depth, found.admit([A])) == (0, [])


async def test_no_signal_leaves_before_its_retry_is_durable(store: SessionState) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk)
    (entry,) = await admitted(inbox, [A])
    disk.full = True
    with pytest.raises(DiskError):
        await fail(inbox, entry)
    assert [one.signal for one in again(store).entries()] == [A]
    disk.full = False
    await inbox.secure()
    assert again(store).entries() == []
    assert [one.signal for one in again(store)._retries.signals()] == [A]


async def test_a_signal_that_ends_while_a_page_is_written_does_not_come_back(store: SessionState) -> None:
    inbox = again(store)
    first, second = await admitted(inbox, [A, B])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admitted, inbox, [InstallUpdated(ts_ms=3, config_id=1, version=1)])
        await trio.testing.wait_all_tasks_blocked()  # the page is on its way to the disk
        nursery.start_soon(inbox.finish, [first], [])
        nursery.start_soon(fail, inbox, second)
    for known in (inbox, again(store)):
        (page,), (kept,) = known.entries(), known._retries.signals()
        assert (kept.signal, kept.attempts, kept.last_error) == (B, 1, "no route")
        assert isinstance(page.signal, InstallUpdated)


async def test_a_full_disk_loses_nothing(store: SessionState) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk, limit=10)
    (entry,) = await admitted(inbox, [A])
    disk.full = True
    assert [e.signal for e in inbox.admit([B])] == [B]
    with pytest.raises(DiskError):
        await inbox.secure()
    with pytest.raises(DiskError):
        await inbox.finish([entry], [{"n": 1}])
    assert (inbox.acks_pending, inbox.behind) == (1, True)
    assert inbox.admit([B]) == [], "the page comes again, for the cursor stayed"
    disk.full = False
    await inbox.secure()  # the next write carries what could not be written
    assert again(store).next_acks(10) == [{"n": 1}]
    assert [e.signal for e in again(store).entries()] == [B]


async def test_a_burst_of_outcomes_takes_few_writes(
    store: SessionState, autojump_clock: trio.testing.MockClock
) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk, limit=1000)
    entries = await admitted(inbox, [CertRenewed(ts_ms=1, cert_id=n) for n in range(100)])
    before = disk.writes
    async with trio.open_nursery() as nursery:
        for entry in entries:
            nursery.start_soon(inbox.finish, [entry], [{"n": entry.signal.ts_ms}])
    assert disk.writes - before <= 2
    assert inbox.depth == 0
    assert again(store).acks_pending == 100


async def test_a_full_inbox_makes_the_poller_wait(store: SessionState, autojump_clock: trio.testing.MockClock) -> None:
    inbox = inbox_of(store, limit=2)
    assert inbox.has_room(20)  # empty: always, or a small limit would stop polling forever
    entries = await admitted(inbox, [A, B])
    assert not inbox.has_room(1)
    with trio.move_on_after(5) as waited:
        await inbox.wait_for_room(1)
    assert waited.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.wait_for_room, 1)
        await trio.sleep(1)
        await inbox.finish(entries[:1], [])


async def test_a_finished_signal_makes_room_even_if_the_disk_is_full(
    store: SessionState, autojump_clock: trio.testing.MockClock
) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk, limit=1)
    (entry,) = await admitted(inbox, [A])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.wait_for_room, 1)
        await trio.testing.wait_all_tasks_blocked()
        disk.full = True
        with trio.fail_after(1), pytest.raises(DiskError):
            await inbox.finish([entry], [])
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert not nursery.cancel_scope.cancelled_caught


@pytest.mark.parametrize("fails", [False, True])
async def test_waiting_for_outcomes_ends_with_the_last_one(
    store: SessionState, autojump_clock: trio.testing.MockClock, fails: bool
) -> None:
    inbox = again(store)
    one, two = await admitted(inbox, [A, B])
    reported = []

    async def waits() -> None:
        await inbox.wait_for_outcomes([one, two])
        reported.append("both")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await inbox.finish([one], [])
        await trio.testing.wait_all_tasks_blocked()
        assert reported == []
        if fails:
            await fail(inbox, two, "down")
        else:
            await inbox.finish([two], [])
    assert reported == ["both"]
    await inbox.wait_for_outcomes([one])


async def test_acks_are_bounded_and_counted(store: SessionState) -> None:
    inbox = again(store)
    for n in range(ACK_LIMIT + 5):
        inbox._acks.append(inbox_ack(n))
    await inbox.report({"n": "last"})
    assert inbox.acks_pending == ACK_LIMIT
    assert inbox.acks_dropped == 6
    assert inbox.next_acks(1) == [{"n": 6}]


async def test_sent_acks_leave_and_newer_ones_stay(store: SessionState) -> None:
    inbox = again(store)
    await inbox.report({"n": 1})
    batch = inbox.next_acks(100)
    await inbox.report(InstallUpdated(ts_ms=1, config_id=1, version=1).ref())
    inbox.sent(batch)
    assert inbox.next_acks(10) == [{"config_id": 1, "version": 1}]
    assert len(again(store).next_acks(10)) == 2, "a crash now sends the first again, which reports nothing new"
    await inbox.close()
    assert again(store).next_acks(10) == [{"config_id": 1, "version": 1}]


async def test_sent_acks_leave_the_disk_with_the_next_outcome_without_a_separate_write(
    store: SessionState,
) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk, limit=10)
    (entry,) = await admitted(inbox, [A])
    await inbox.report({"n": 1})
    writes = disk.writes
    inbox.sent(inbox.next_acks(100))
    assert not inbox.behind
    await inbox.secure()
    assert disk.writes == writes
    await inbox.finish([entry], [{"n": 2}])
    assert again(store).next_acks(10) == [{"n": 2}]
    await inbox.close()
    assert disk.writes == writes + 1


def inbox_ack(n: int) -> Any:
    return Ack(event={"n": n})


async def test_after_a_full_disk_outcomes_are_written_before_their_signals_leave(store: SessionState) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk, limit=10)
    (entry,) = await admitted(inbox, [A])
    disk.full = True
    with pytest.raises(DiskError):
        await inbox.finish([entry], [{"type": "signal.ack"}])
    disk.full = False
    await admitted(inbox, [B])
    found = again(store)  # as after a kill at this moment
    assert [e.signal for e in found.entries()] == [B]
    assert found.next_acks(10) == [{"type": "signal.ack"}], "the outcome was there before its signal left"


async def test_a_failed_write_is_repeated_without_another_change(store: SessionState) -> None:
    disk = Disk()
    inbox = inbox_of(store, disk, limit=10)
    (entry,) = await admitted(inbox, [A])
    disk.full = True
    with pytest.raises(DiskError):
        await inbox.finish([entry], [])
    assert inbox.behind
    disk.full = False
    await inbox.secure()
    assert not inbox.behind
    assert again(store).entries() == [], "a restart would have done it again"


async def test_a_failing_signal_takes_no_room(store: SessionState) -> None:
    inbox = inbox_of(store, limit=1)
    (entry,) = await admitted(inbox, [A])
    assert not inbox.has_room(20)
    await fail(inbox, entry, "poison")
    assert inbox.has_room(20), "others continue"


async def test_a_done_signal_restored_by_a_power_cut_is_not_handled_again(store: SessionState) -> None:
    inbox = again(store)
    (entry,) = await admitted(inbox, [A])
    await inbox.finish([entry], [ack_event(A, Outcome(kind=OutcomeKind.APPLIED), 1)])
    store.save_inbox([entry])  # the last rename was not durable
    found = again(store)
    assert found.entries() == []
    assert len(found.next_acks(10)) == 1
    assert found.behind
    await found.secure()
    assert store.load_inbox() == (), "nor does it stay on the disk"


# --- ahead of the cursor ---------------------------------------------------------------------------------------------


def revocations(first: int, last: int) -> list[Signal]:
    return [CertRevoked(ts_ms=5, cert_id=number) for number in range(first, last + 1)]


async def full_of_renewals(store: SessionState, limit: int = 20) -> Inbox:
    inbox = inbox_of(store, limit=limit)
    await admitted(inbox, [CertRenewed(ts_ms=1, cert_id=number) for number in range(1, limit + 1)])
    assert not inbox.has_room(1)
    return inbox


async def test_a_full_inbox_has_room_for_the_other_classes(store: SessionState) -> None:
    inbox = await full_of_renewals(store)
    assert inbox.classes_with_room() == (Priority.REVOCATION, Priority.EXPIRING, Priority.CONFIG)
    fresh = inbox.admit_ahead([*revocations(101, 105), CertRenewed(ts_ms=1, cert_id=99), InstallUpdated(5)])
    assert [entry.signal for entry in fresh] == [*revocations(101, 102), InstallUpdated(5)], "a tenth of 20 of each"
    assert inbox.classes_with_room() == (Priority.EXPIRING, Priority.CONFIG)
    assert inbox.admit_ahead(revocations(101, 105)) == [], "known, or without room"
    assert len(inbox.entries()) == 23


async def test_the_room_ahead_is_bounded_for_any_limit(store: SessionState) -> None:
    inbox = inbox_of(store, limit=100_000)
    assert len(inbox.admit_ahead(revocations(1, 500))) == 100
    small = inbox_of(store, limit=1)
    assert len(small.admit_ahead(revocations(1, 500))) == 1


async def test_what_was_taken_ahead_is_known_when_the_cursor_reaches_it(store: SessionState) -> None:
    inbox = await full_of_renewals(store)
    (entry,) = inbox.admit_ahead(revocations(101, 101))
    await inbox.finish([entry], [{"n": 0}])
    for number in range(2 * DONE_LIMIT):  # more signals than identities are kept
        (other,) = inbox.admit([CertRenewed(ts_ms=2, cert_id=number + 1)])
        inbox._entries.pop(identity(other.signal))
        inbox._done[identity(other.signal)] = None
        inbox._add_acks({"n": number})
    assert len(inbox._done) <= DONE_LIMIT + 1
    assert inbox.admit(revocations(101, 101)) == [], "its outcome is not replaced by that of a repetition"
    assert inbox.classes_with_room() == (Priority.REVOCATION, Priority.EXPIRING, Priority.CONFIG)


async def test_what_was_taken_ahead_is_durable_before_the_cursor_passes_it(store: SessionState) -> None:
    inbox = await full_of_renewals(store)
    inbox.admit_ahead(revocations(101, 101))
    assert len(again(store).entries()) == 20, "after a crash it comes again"
    await admitted(inbox, revocations(101, 101))
    assert again(store).entries()[-1].signal == CertRevoked(5, 101)


async def test_at_the_end_of_the_stream_nothing_is_ahead(store: SessionState) -> None:
    inbox = await full_of_renewals(store)
    inbox.admit_ahead(revocations(101, 102))
    assert Priority.REVOCATION not in inbox.classes_with_room()
    inbox.caught_up()
    assert Priority.REVOCATION in inbox.classes_with_room()


async def test_a_flood_of_one_class_leaves_room_for_the_others(store: SessionState) -> None:
    inbox = inbox_of(store, limit=20)
    inbox.admit(revocations(1, 30))
    assert inbox.classes_with_room() == (Priority.EXPIRING, Priority.RENEWAL, Priority.CONFIG)
