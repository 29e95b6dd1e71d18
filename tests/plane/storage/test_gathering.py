"""Units of work in one transaction, lists of devices, and reads after a wave: with both engines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from engine_plane import new_device, plane_on, registered

from certctrl.errors import DiskError
from certctrl.model.plan import OutcomeKind
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.reports import Ack
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import DatabaseLockedError, ErrorResponse, conflict
from certctrl.plane.polls import Poll
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.gathering import _TRANSACTIONS, MAX_UNITS, MOMENT, RUSH, Gathering, Rush
from certctrl.plane.storage.postgres import CONNECTIONS
from certctrl.plane.storage.signal_stream import Page
from certctrl.plane.storage.sqlite import SqliteDatabase


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def together(*calls: Callable[[], Any], plane: Plane) -> tuple[list[Any], int]:
    """Run units at once; return what each returned or raised, and the number of transactions."""
    results: list[Any] = [None] * len(calls)
    transactions = 0

    def counted(gathering: Gathering, units: Any) -> Any:
        nonlocal transactions
        transactions += 1
        return call_all(gathering, units)

    call_all = Gathering._call_all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gathering, "_call_all", counted)
        await run_together(Gathering(plane.database), calls, results)
    return results, transactions


async def run_together(gathering: Gathering, calls: Sequence[Callable[[], Any]], results: list[Any]) -> None:
    async def run(number: int) -> None:
        try:
            results[number] = await gathering.work(calls[number])
        except Exception as error:
            results[number] = error

    async with trio.open_nursery() as nursery:
        for number in range(len(calls)):
            nursery.start_soon(run, number)


async def names(plane: Plane) -> list[str]:
    return [user["name"] for user in await plane.work(plane.devices.users)]


async def test_units_that_come_together_share_a_transaction(plane: Plane) -> None:
    calls = [lambda number=number: plane.devices.add_user(f"user-{number}")["name"] for number in range(5)]
    results, transactions = await together(*calls, plane=plane)
    assert (results, transactions) == ([f"user-{number}" for number in range(5)], 1)
    results, transactions = await together(*[lambda: 7] * (MAX_UNITS + 1), plane=plane)
    assert (results, transactions) == ([7] * (MAX_UNITS + 1), 2)


async def test_a_refused_unit_does_not_fail_the_others(plane: Plane) -> None:
    error = conflict("This name is taken")

    def refuse() -> None:
        raise error

    results, transactions = await together(refuse, lambda: plane.devices.add_user("a")["name"], plane=plane)
    assert (results, transactions) == ([error, "a"], 1)
    assert await names(plane) == ["operator", "a"]


async def test_a_failed_unit_is_rolled_back_alone(plane: Plane) -> None:
    def fail() -> None:
        plane.devices.add_user("b")
        raise ZeroDivisionError

    results, _ = await together(fail, lambda: plane.devices.add_user("a")["name"], plane=plane)
    assert isinstance(results[0], ZeroDivisionError) and results[1] == "a"
    assert await names(plane) == ["operator", "a"]


@pytest.mark.parametrize("statement", ["insert", "run"])
async def test_nothing_is_stored_of_a_unit_that_is_refused_after_a_change(plane: Plane, statement: str) -> None:
    error, calls = conflict("This name is taken"), []

    def refuse_late() -> None:
        getattr(plane.database, statement)("INSERT INTO users (name, created_at) VALUES (?, ?)", "late", 1.0)
        raise error

    def succeed(name: str) -> str:
        calls.append(name)
        return str(plane.devices.add_user(name)["name"])

    results, transactions = await together(lambda: succeed("a"), refuse_late, lambda: succeed("b"), plane=plane)
    assert (results, transactions) == (["a", error, "b"], 1)
    assert sorted(await names(plane)) == ["a", "b", "operator"]
    assert sorted(calls[-2:]) == ["a", "b"], "each was called alone in the end"


async def test_a_unit_that_is_refused_after_changing_no_row_does_not_repeat_the_others(plane: Plane) -> None:
    error, calls = conflict("No such user"), []

    def refuse() -> None:
        if not plane.database.run("DELETE FROM users WHERE id = ?", 77):
            raise error

    results, transactions = await together(refuse, lambda: calls.append("a"), refuse, plane=plane)
    assert (results, transactions, calls) == ([error, None, error], 1, ["a"])


async def test_a_failing_database_fails_all_units(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: object) -> None:
        raise DiskError("no space", path="x")

    gathering = Gathering(plane.database)
    monkeypatch.setattr(plane.database, "work", full)
    monkeypatch.setattr(plane.database, "work_now", full)
    errors = []

    async def run() -> None:
        try:
            await gathering.work(lambda: 7)
        except DiskError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(run)
    assert len(errors) == 2


async def test_reads_succeed_together_with_a_change_that_cannot_be_stored(plane: Plane) -> None:
    def change() -> None:
        raise DiskError("no space", path="x")

    results, _ = await together(lambda: 7, change, plane.devices.users, plane=plane)
    assert results[0] == 7
    assert isinstance(results[1], DiskError)
    assert [user["name"] for user in results[2]] == ["operator"]


async def test_a_cancelled_unit_does_not_hold_up_the_others(plane: Plane) -> None:
    gathering, done = Gathering(plane.database), []

    async def run(number: int) -> None:
        done.append(await gathering.work(lambda: number))

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def leave() -> None:
            with scope:
                await run(1)

        nursery.start_soon(leave)
        nursery.start_soon(run, 2)
        scope.cancel()
    assert 2 in done


async def test_units_gather_while_all_transactions_are_busy(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    gathering, ended, sizes = Gathering(plane.database), trio.Event(), []

    async def slow(function: Callable[..., Any], units: Sequence[Any]) -> None:
        sizes.append(len(units))
        await ended.wait()
        function(units)

    monkeypatch.setattr(plane.database, "work_now", slow)
    done: list[int] = []

    async def run(number: int) -> None:
        done.append(await gathering.work(lambda: number))

    async with trio.open_nursery() as nursery:
        for number in range(_TRANSACTIONS):
            nursery.start_soon(run, number)
            await trio.testing.wait_all_tasks_blocked()
        for number in range(_TRANSACTIONS, _TRANSACTIONS + 5):
            nursery.start_soon(run, number)
            await trio.testing.wait_all_tasks_blocked()
        ended.set()
    assert sizes == [1] * _TRANSACTIONS + [5]
    assert sorted(done) == list(range(_TRANSACTIONS + 5))


async def test_gathered_units_leave_connections_free(open_database: Callable[[], Database]) -> None:
    """An operator's request does not wait for the devices of a wave, whose changes and reads are gathered."""
    plane = plane_on(open_database())
    if plane.database.engine == "SQLite":
        plane.close()
        return  # its units of work never wait for each other in a thread
    may_go_on = threading.Event()
    async with trio.open_nursery() as nursery:
        for number in range(4 * CONNECTIONS):
            nursery.start_soon(plane.work_together, may_go_on.wait, 60)
            nursery.start_soon(plane.read_alike, lambda items: [may_go_on.wait(60) for _ in items], number)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(30):
            assert await plane.work(plane.devices.users) == [{"id": 1, "name": "operator"}]
        may_go_on.set()


# --- lists of devices -------------------------------------------------------------------------------------------------


async def test_a_list_shows_each_device_as_it_is_shown_alone(plane: Plane) -> None:
    devices = [(await registered(plane, f"device-{number}"))[0] for number in range(3)]
    await new_device(plane, "silent")
    cursors = []
    for device in devices:
        cursors.append((await plane.work(plane.stream.read, device, None, 10)).cursor)
        await plane.work(plane.stream.append, device, "cert.renewed", {"cert_id": 1})
    ack = Ack(type="cert.renewed", ts_ms=1, ref={"cert_id": 1}, outcome=OutcomeKind.FAILED)
    await plane.work(plane.reports.store, devices[0], [ack])
    plane.devices.seen(devices[0], "192.0.2.1", cursors[0])
    await plane.work(plane.devices.save_sightings)
    plane.devices.seen(devices[1], "192.0.2.2", (await plane.work(plane.stream.read, devices[1], None, 10)).cursor)
    listed = await plane.work(plane.devices.show_all, 1)
    assert listed == [await plane.work(plane.devices.show, 1, row["id"]) for row in listed]
    assert [row["signals_waiting"] for row in listed] == [1, 0, 1, 0]
    assert [row["outcomes"] for row in listed] == [{"failed": 1}, {}, {}, {}]
    assert [row["last_address"] for row in listed] == ["192.0.2.1", "192.0.2.2", "", ""]


async def test_pages_of_devices(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.devices.devices.MAX_PAGE", 2)
    devices = [await new_device(plane, f"device-{number}") for number in range(5)]
    other = await plane.work(plane.devices.add_user, "other")
    await plane.work(plane.devices.expect, other["id"], DeviceFacts(device_public_id="foreign"))
    pages = [await plane.work(plane.devices.page, 1, after, 2) for after in (0, devices[1], devices[3], devices[4])]
    assert [[row["id"] for row in page] for page in pages] == [devices[:2], devices[2:4], devices[4:], []]
    assert [row["id"] for row in await plane.work(plane.devices.show_all, 1)] == devices


# --- reads after a wave ---------------------------------------------------------------------------------------------


async def test_units_that_are_alike_are_one_call(plane: Plane) -> None:
    calls: list[list[int]] = []
    missing = conflict("No such number")

    def doubled(numbers: Sequence[int]) -> list[int | ErrorResponse]:
        calls.append(list(numbers))
        return [missing if number == 2 else 2 * number for number in numbers]

    results: list[Any] = [None] * 4
    gathering = Gathering(plane.database)

    async def run(number: int) -> None:
        try:
            results[number] = await gathering.work_alike(doubled, number)
        except ErrorResponse as error:
            results[number] = error

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(run, number)
    assert sorted(calls[0]) == [0, 1, 2, 3] and len(calls) == 1
    assert results == [0, 2, missing, 6]


async def test_many_streams_are_read_as_one(plane: Plane) -> None:
    """A page for each device, and the errors that single reads raise."""
    devices = [(await registered(plane, f"device-{number}"))[0] for number in range(5)]
    cursors = [(await plane.work(plane.stream.read, device_id, None, 1)).cursor for device_id in devices]

    def change() -> None:
        for device_id in (devices[1], devices[2], devices[2], devices[2]):
            plane.stream.append(device_id, "cert.renewed", {"cert_id": 1})
        for _ in range(4):
            plane.stream.append(devices[3], "cert.renewed", {"cert_id": 1})
        plane.stream.trim(devices[3], 2)

    await plane.work(change)
    end = (await plane.work(plane.stream.read, devices[2], None, 9)).cursor
    reads = [*zip(devices, cursors, [9, 9, 2, 9, 9], strict=True), (devices[2], end, 9), (999, "1-1", 9)]

    def single(device_id: int, cursor: str, limit: int) -> Any:
        try:
            return plane.stream.read(device_id, cursor, limit)
        except ErrorResponse as error:
            return error.key

    expected = [await plane.work(single, *read) for read in reads]
    found = await plane.work(plane.stream.read_many, [*reads, (devices[0], None, 9)])
    assert found.pop().page is None
    assert [one.page.key if isinstance(one.page, ErrorResponse) else one.page for one in found] == expected
    assert [one.row is None for one in found] == [False] * 6 + [True]
    assert [len(one.signals) if isinstance(one, Page) else one for one in expected] == [
        0, 1, 2, "CURSOR_EXPIRED", 0, 0, "NOT_FOUND",
    ]  # fmt: skip


async def test_a_wave_is_read_with_few_statements(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = RUSH - 1 if plane.database.reads_inline else 0
    devices = [(await registered(plane, f"device-{number}"))[0] for number in range(alone + MAX_UNITS)]
    pages: dict[int, Page] = {}
    held = 0

    async def poll(device_id: int) -> None:
        nonlocal held
        cursor = (await plane.work(plane.stream.read, device_id, None, 1)).cursor
        with plane.stream.waiter(device_id) as waiter:
            session = DeviceSession(device_id, 1, 1)
            begun = await plane.work(plane.polls.begin, session, Poll(cursor=cursor, wait=30))
            held += 1
            pages[device_id] = await plane.polls.finish(begun, waiter)

    statements: list[str] = []
    read = plane.database.all

    def counted(sql: str, *parameters: object) -> Any:
        statements.append(sql)
        return read(sql, *parameters)

    def change() -> None:
        plane.stream.append_to_all(devices, "cert.renewed", {"cert_id": 1})
        plane.database.after_commit(lambda: monkeypatch.setattr(plane.database, "all", counted))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for device_id in devices:
                nursery.start_soon(poll, device_id)
            while held < len(devices):
                await trio.sleep(0.01)
            await plane.work(change)
    assert {len(page.signals) for page in pages.values()} == {1} and len(pages) == len(devices)
    assert len([sql for sql in statements if "FROM devices" in sql or "FROM wanted" in sql]) == alone + 1


async def test_a_woken_poll_waits_for_a_lock_of_another_process(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for its next wake otherwise."""
    device_id, _ = await registered(plane)
    cursor = (await plane.work(plane.stream.read, device_id, None, 1)).cursor

    async def locked(*args: object) -> None:
        raise DatabaseLockedError("locked", path="plane.db")

    with plane.stream.waiter(device_id) as waiter, trio.fail_after(60):
        begun = await plane.work(plane.polls.begin, DeviceSession(device_id, 1, 1), Poll(cursor=cursor, wait=30))
        await plane.work(plane.stream.append, device_id, "cert.renewed", {"cert_id": 1})
        monkeypatch.setattr(plane.database, "work_read", locked)
        page = await plane.polls.finish(begun, waiter, trio.lowlevel.checkpoint)
    assert len(page.signals) == 1


async def test_only_many_requests_within_a_moment_are_a_rush(autojump_clock: trio.testing.MockClock) -> None:
    rush = Rush()
    usual = []
    for _ in range(4 * RUSH):
        usual.append(rush.note())
        await trio.sleep(2 * MOMENT / RUSH)
    assert not any(usual)
    await trio.sleep(MOMENT)
    assert [rush.note() for _ in range(RUSH)] == [False] * (RUSH - 1) + [True]
    await trio.sleep(MOMENT)
    assert rush.note(), "it has just been one"
    await trio.sleep(2 * MOMENT)
    assert not rush.note(), "it is over"


@pytest.mark.parametrize("devices", [1, RUSH - 1 + 2 * MAX_UNITS])
async def test_polls_of_a_rush_share_their_reads(
    devices: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    alone, shared = 0, 0

    def read(items: Sequence[int]) -> Sequence[int]:
        nonlocal alone, shared
        alone, shared = alone + (len(items) == 1), shared + (len(items) > 1)
        return items

    with closing(SqliteDatabase(tmp_path / "plane.db")) as database:
        plane = plane_on(database)
        async with trio.open_nursery() as nursery:
            for number in range(devices):
                nursery.start_soon(plane.read_alone, read, number)
    assert alone == min(devices, RUSH - 1)
    assert bool(shared) is (devices > RUSH)
