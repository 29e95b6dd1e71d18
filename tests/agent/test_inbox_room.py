"""The room of the inbox: backpressure, and signals ahead of the cursor."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from inbox_world import A, B, Disk, admitted, again, fail, inbox_of

from certctrl.agent.inbox import DONE_LIMIT, Inbox
from certctrl.errors import DiskError
from certctrl.model.priority import Priority
from certctrl.model.signals import CertRenewed, CertRevoked, InstallUpdated, Signal, identity
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState


@pytest.fixture
def store(tmp_path: Path) -> SessionState:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return SessionState(layout, RealFs())


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


async def test_a_failing_signal_takes_no_room(store: SessionState) -> None:
    inbox = inbox_of(store, limit=1)
    (entry,) = await admitted(inbox, [A])
    assert not inbox.has_room(20)
    await fail(inbox, entry, "poison")
    assert inbox.has_room(20), "others continue"


async def test_signals_that_wait_for_the_next_page_take_no_room(store: SessionState) -> None:
    """Those of an atomic batch wait for its other signals: while they are not read, the batch cannot be complete."""
    inbox = inbox_of(store, limit=2)
    await admitted(inbox, [A, B])
    assert not inbox.has_room(2)
    inbox.idle = lambda: 2
    assert inbox.has_room(2)
    inbox.idle = lambda: 1
    assert inbox.has_room(1) and not inbox.has_room(2)


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
