"""Long units of work do not stop the event loop; other units wait for them on SQLite, but not on PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from engine_plane import new_device, plane_on
from starlette.requests import Request

from certctrl.plane.ca.x509 import new_key
from certctrl.plane.core import Plane
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import conflict
from certctrl.plane.http.listing import SHORT_PAGE, listed
from certctrl.plane.polls import Poll
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.signal_stream import Waiter
from certctrl.plane.storage.sqlite import SqliteDatabase

HANGS = 60.0
"""Seconds after which a thread that should have been let go on gives up."""


class Gate:
    """A unit of work that adds a user and then waits in its thread, until it may go on."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._token = trio.lowlevel.current_trio_token()
        self.entered = trio.Event()
        self.may_go_on = threading.Event()
        self.thread = 0

    def unit(self, name: str = "long") -> str:
        self.thread = threading.get_ident()
        added = self._plane.devices.add_user(name)
        self._token.run_sync_soon(self.entered.set)
        assert self.may_go_on.wait(HANGS)
        return str(added["name"])


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


@pytest.fixture
def sqlite_plane(tmp_path: Path) -> Any:
    with Plane.open(tmp_path / "plane", offload=trio.to_thread.run_sync) as plane:
        yield plane


async def names(plane: Plane) -> list[str]:
    return [user["name"] for user in await plane.work(plane.devices.users)]


async def test_a_long_unit_does_not_stop_the_event_loop(plane: Plane) -> None:
    gate, results = Gate(plane), []

    async def long() -> None:
        results.append(await plane.work_long(gate.unit))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(long)
        await gate.entered.wait()
        for _ in range(10):
            await trio.lowlevel.checkpoint()  # another task runs while the unit waits for it
        assert results == []
        gate.may_go_on.set()
    assert results == ["long"]
    assert gate.thread != threading.get_ident()
    assert await names(plane) == ["operator", "long"]


async def test_callbacks_of_a_long_unit_run_on_the_event_loop(plane: Plane) -> None:
    threads: list[int] = []

    def unit() -> None:
        plane.database.after_commit(lambda: threads.append(threading.get_ident()))
        assert not threads

    await plane.work_long(unit)
    assert threads == [threading.get_ident()]


async def test_a_long_unit_that_fails_is_rolled_back(plane: Plane) -> None:
    called: list[str] = []
    refused = conflict("This name is taken")

    def fail() -> None:
        plane.devices.add_user("a")
        plane.database.after_commit(lambda: called.append("never"))
        raise refused

    with pytest.raises(type(refused)) as caught:
        await plane.work_long(fail)
    assert caught.value is refused
    assert await names(plane) == ["operator"]
    await plane.work_long(plane.devices.add_user, "b")
    assert (await names(plane), called) == (["operator", "b"], [])


async def test_a_long_unit_whose_caller_is_cancelled_ends_whole(plane: Plane) -> None:
    gate, scope = Gate(plane), trio.CancelScope()

    async def long() -> None:
        with scope:
            await plane.work_long(gate.unit)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(long)
        await gate.entered.wait()
        scope.cancel()
        await trio.lowlevel.checkpoint()
        gate.may_go_on.set()
    assert await names(plane) == ["operator", "long"]


# --- turns on SQLite ----------------------------------------------------------------------------------------------------


async def started(nursery: trio.Nursery, function: Callable[[], Awaitable[Any]]) -> None:
    """Start a task, and return when it waits."""
    nursery.start_soon(function)
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("kind", ["work", "work_now", "work_long"])
async def test_other_units_wait_for_a_long_one_and_see_its_changes(sqlite_plane: Plane, kind: str) -> None:
    gate, seen = Gate(sqlite_plane), []

    async def other() -> None:
        work = getattr(sqlite_plane.database, kind)
        seen.append([user["name"] for user in await work(sqlite_plane.devices.users)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sqlite_plane.work_long, gate.unit)
        await gate.entered.wait()
        await started(nursery, other)
        assert seen == []
        assert (sqlite_plane.database.backlog() > 0) is (kind != "work_long"), "long units wait apart"
        gate.may_go_on.set()
    assert seen == [["operator", "long"]]
    assert sqlite_plane.database.backlog() == 0


async def test_a_unit_that_reads_does_not_wait_for_a_long_one(plane: Plane) -> None:
    """It sees what was committed before; the next one sees the changes."""
    gate = Gate(plane)

    async def seen() -> list[str]:
        return [user["name"] for user in await plane.database.work_read(plane.devices.users)]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.work_long, gate.unit)
        await gate.entered.wait()
        with trio.fail_after(HANGS):
            assert await seen() == ["operator"]
            assert await seen() == ["operator"]
        gate.may_go_on.set()
    assert await seen() == ["operator", "long"]


async def test_a_poll_is_answered_during_a_long_unit(plane: Plane) -> None:
    device = await new_device(plane)
    await plane.resync(1, device)
    gate = Gate(plane)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.work_long, gate.unit)
        await gate.entered.wait()
        with trio.fail_after(HANGS):
            held = await plane.database.work_read(plane.polls.begin, DeviceSession(device, 1, 1), Poll(limit=20))
        gate.may_go_on.set()
    assert [signal["type"] for signal in held.page.signals] == ["state.resync_required"]


async def test_a_unit_that_reads_must_not_change_anything(plane: Plane) -> None:
    with pytest.raises(RuntimeError, match="should only read"):
        await plane.database.work_read(plane.devices.add_user, "b")
    assert await names(plane) == ["operator"]


async def test_a_unit_that_reads_cannot_change_anything_during_a_long_one(sqlite_plane: Plane) -> None:
    gate = Gate(sqlite_plane)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sqlite_plane.work_long, gate.unit)
        await gate.entered.wait()
        with pytest.raises(RuntimeError, match="should only read"):
            await sqlite_plane.database.work_read(sqlite_plane.devices.add_user, "b")
        with pytest.raises(RuntimeError, match="should only read"):
            await sqlite_plane.database.work_read(sqlite_plane.database.after_commit, list)
        assert await sqlite_plane.database.work_read(sqlite_plane.devices.users) != []
        gate.may_go_on.set()
    assert await names(sqlite_plane) == ["operator", "long"]


async def test_short_units_wait_for_no_queue_of_long_ones(sqlite_plane: Plane) -> None:
    """Many lists at once hold up no poll: short units run in order of arrival, at most one more long one before them."""
    gate, order = Gate(sqlite_plane), []

    async def other(number: int, work: Any) -> None:
        await work(order.append, number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sqlite_plane.work_long, gate.unit)
        await gate.entered.wait()
        kinds = [sqlite_plane.work_long] * 3 + [sqlite_plane.work] * 2
        for number, work in enumerate(kinds):
            await started(nursery, lambda number=number, work=work: other(number, work))
        gate.may_go_on.set()
    assert order == [3, 4, 0, 1, 2]


async def test_a_unit_that_is_cancelled_while_it_waits_never_runs(sqlite_plane: Plane) -> None:
    gate, ran, scope = Gate(sqlite_plane), [], trio.CancelScope()

    async def other() -> None:
        with scope:
            await sqlite_plane.work(ran.append, 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sqlite_plane.work_long, gate.unit)
        await gate.entered.wait()
        await started(nursery, other)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert sqlite_plane.database.backlog() == 0
        gate.may_go_on.set()
    assert ran == []
    assert await names(sqlite_plane) == ["operator", "long"]


async def test_a_short_page_of_a_list_waits_for_no_long_unit(sqlite_plane: Plane) -> None:
    """Found by the bench: in a wave of 10 000 renewals, a list of 100 devices took up to 0.6 s to come."""
    gate, texts = Gate(sqlite_plane), []
    await new_device(sqlite_plane, "a")

    async def listed_with(limit: int) -> None:
        scope = {"type": "http", "path_params": {"uid": "1"}, "query_string": f"limit={limit}".encode(), "headers": []}
        texts.append((await listed(sqlite_plane, Request(scope), sqlite_plane.devices.page)).body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sqlite_plane.work_long, gate.unit)
        await gate.entered.wait()
        await listed_with(SHORT_PAGE)
        nursery.start_soon(listed_with, SHORT_PAGE + 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(texts) == 1
        gate.may_go_on.set()
    assert texts[0] == texts[1]


async def test_a_statement_outside_of_units_is_refused_while_a_long_one_runs(sqlite_plane: Plane) -> None:
    gate = Gate(sqlite_plane)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sqlite_plane.work_long, gate.unit)
        await gate.entered.wait()
        with pytest.raises(RuntimeError, match="outside of a unit of work"):
            sqlite_plane.devices.users()
        with pytest.raises(RuntimeError, match="outside of a unit of work"), sqlite_plane.database.transaction():
            sqlite_plane.devices.add_user("b")
        gate.may_go_on.set()
    assert await names(sqlite_plane) == ["operator", "long"]


async def test_the_wait_for_a_long_unit_is_none_for_a_lock(
    sqlite_plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that had to wait for its turn is still patient with another process."""
    monkeypatch.setattr("certctrl.plane.storage.sqlite._LOCKED_SECONDS", 1.0)
    gate = Gate(sqlite_plane)
    assert sqlite_plane.data is not None
    other = sqlite3.connect(sqlite_plane.data.database, isolation_level=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sqlite_plane.work_long, gate.unit)
        await gate.entered.wait()
        await started(nursery, lambda: sqlite_plane.work(sqlite_plane.devices.add_user, "patient"))
        await trio.sleep(1.1)
        sqlite_plane.database.after_commit(partial(other.execute, "BEGIN IMMEDIATE"))  # as soon as the long one ends
        gate.may_go_on.set()
        await trio.sleep(0.3)
        other.execute("ROLLBACK")
    assert await names(sqlite_plane) == ["operator", "long", "patient"]
    other.close()


async def test_keys_that_are_being_made_hold_up_no_long_unit(
    sqlite_plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More renewals than Trio has threads: a long unit, and all that wait for it, must not wait for a thread."""
    may_go_on = threading.Event()

    def slow(key_type: str) -> Any:
        assert may_go_on.wait(HANGS)
        return new_key("ecdsa-p256")

    monkeypatch.setattr("certctrl.plane.ca.issuer.new_key", slow)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(partial(sqlite_plane.certificates.issue, 1, [f"{number}.example"], key_type="rsa-2048"))
        await trio.sleep(0.2)
        with trio.move_on_after(10) as scope:
            await sqlite_plane.work_long(sqlite_plane.devices.users)
        may_go_on.set()
    assert not scope.cancelled_caught


async def test_a_short_unit_is_no_checkpoint(sqlite_plane: Plane) -> None:
    """Not even after a long one."""
    await sqlite_plane.work_long(sqlite_plane.devices.users)
    with trio.testing.assert_no_checkpoints():
        await sqlite_plane.work(sqlite_plane.devices.users)
        await sqlite_plane.database.work_now(sqlite_plane.devices.users)


async def test_without_threads_a_long_unit_runs_inline() -> None:
    plane = plane_on(SqliteDatabase(None))
    with trio.testing.assert_no_checkpoints():
        assert await plane.work_long(threading.get_ident) == threading.get_ident()
    plane.database.close()


# --- waves ----------------------------------------------------------------------------------------------------------------


async def test_a_renewal_runs_in_a_thread_and_wakes_its_devices(sqlite_plane: Plane) -> None:
    plane, threads, announced = sqlite_plane, [], []
    devices = [await new_device(plane, f"device-{number}") for number in range(3)]
    row = await plane.certificates.issue(1, ["a.example"], device_ids=devices)
    append_to_all = plane.stream.append_to_all

    def noted(*args: Any) -> None:
        threads.append(threading.get_ident())
        append_to_all(*args)

    plane.stream.append_to_all = noted  # type: ignore[method-assign]
    plane.stream.announce = announced.append
    woken: list[int] = []

    async def wait(device_id: int, task_status: trio.TaskStatus[Waiter]) -> None:
        with plane.stream.waiter(device_id) as waiter:
            task_status.started(waiter)
            assert await waiter.wait("")
            woken.append(device_id)

    async with trio.open_nursery() as nursery:
        for device_id in devices:
            await nursery.start(wait, device_id)
        await plane.certificates.renew(1, row["id"])
    assert sorted(woken) == devices
    assert len(threads) == 1 and threads != [threading.get_ident()]
    assert announced == [devices]
