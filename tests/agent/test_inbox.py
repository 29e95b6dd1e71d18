"""The inbox: order and grouping of writes, full disks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from inbox_world import A, B, Disk, admitted, again, fail, inbox_of
from modeldisk import ModelFs

from certctrl.agent.inbox import ACK_LIMIT
from certctrl.errors import DiskError
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import Ack, InboxEntry
from certctrl.model.signals import CertRenewed, InstallUpdated
from certctrl.protocol.wire.signals import ack_event
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState


@pytest.fixture
def store(tmp_path: Path) -> SessionState:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return SessionState(layout, RealFs())


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
