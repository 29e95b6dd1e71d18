"""Sockets of several processes on one database, of each engine: the sweep alone finds what concerns a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_plane import plane_on, registered
from plane_world import Client, Clock
from push_client import Closed, memory_client

from certctrl.plane.core import Plane
from certctrl.plane.http.app import make_app
from certctrl.plane.planes import RUNNING_SECONDS
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring


@pytest.fixture
async def planes(open_database: Callable[[], Database], clock: Clock) -> list[Plane]:
    """Two planes that have just started; no notification passes between them."""
    keyring = Keyring.open(None)
    made = []
    for _ in range(2):
        clock.advance(1)
        made.append(plane_on(open_database(), keyring, lambda: clock.wall, poll_rate=100.0, poll_burst=100))
    return made


async def device(plane: Plane) -> tuple[int, str]:
    found = await registered(plane)
    await plane.work(plane.database.run, "UPDATE devices SET features = ? WHERE id = ?", '["push"]', found[0])
    return found


def names(plane: Plane, device_id: int) -> dict[int, str]:
    """Return the names of the sockets of a device in the table."""
    rows = plane.database.all("SELECT device_id, name FROM sockets WHERE device_id = ?", device_id)
    return {row["device_id"]: row["name"] for row in rows}


def operator(plane: Plane) -> Client:
    return Client(make_app(plane), plane.operator_key)


async def test_a_newer_socket_at_another_process_replaces_the_older_one(planes: list[Plane]) -> None:
    one, two = planes
    device_id, token = await device(one)
    async with memory_client(make_app(one), token) as old, memory_client(make_app(two), token) as new:
        await old.upgrade()
        await old.hello()
        await new.upgrade()
        await new.hello()
        await one.stream.sweep()
        await two.stream.sweep()
        with trio.fail_after(30):
            assert (await old.closed()).code == 4409
        await two.resync(1, device_id)
        with trio.fail_after(30):
            await new.page()
        assert (one.push.count(), two.push.count()) == (0, 1)
        await one.push._remove_closed()
        assert await two.work(names, two, device_id) != {}, "the end of the old one left the new one alone"


async def test_a_device_that_is_revoked_elsewhere_ends_with_the_sweep(planes: list[Plane]) -> None:
    one, two = planes
    device_id, token = await device(one)
    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        assert (await operator(two)("DELETE", f"/apiv1/users/1/devices/{device_id}")).status == 200
        await one.stream.sweep()
        with trio.fail_after(30):
            assert await client.closed() == Closed(4403, "DEVICE_REVOKED")


async def test_a_device_that_registers_elsewhere_ends_with_the_sweep(planes: list[Plane]) -> None:
    one, two = planes
    device_id, token = await device(one)
    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        await two.work(two.sessions.start, device_id)
        await one.stream.sweep()
        with trio.fail_after(30):
            assert (await client.closed()).code == 4401


async def test_a_signal_of_another_process_is_pushed_with_the_sweep(planes: list[Plane]) -> None:
    one, two = planes
    device_id, token = await device(one)
    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        await two.resync(1, device_id)

        async def sweep() -> None:
            while True:  # one that meets a socket while it reads leaves it to the next one
                await one.stream.sweep()
                await trio.sleep(0.05)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sweep)
                assert len((await client.page())["signals"]) == 1
                nursery.cancel_scope.cancel()


async def test_a_sweep_without_changes_wakes_nothing(planes: list[Plane], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = planes
    _, token = await device(one)
    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        await trio.sleep(0.1)
        woken: list[int] = []
        monkeypatch.setattr(one.stream, "wake", woken.append)
        await one.stream.sweep()
        assert not woken


async def test_any_process_asks_an_agent(planes: list[Plane]) -> None:
    one, two = planes
    device_id, token = await device(one)
    answers: list[Any] = []

    async def ask() -> None:
        path = f"/apiv1/users/1/devices/{device_id}/questions"
        answers.append(await operator(two)("POST", path, {"question": "status"}))

    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                while not await one.work(one.push.questions.devices):
                    await trio.sleep(0.01)
                await one.stream.sweep()
                message = await client.expect("ask.question")
                await client.send("ask.answer", {"answer": {"state": "Polling"}}, message["id"])
    assert answers[0].data["answer"] == {"state": "Polling"}


async def test_a_device_is_online_for_every_process_until_that_of_its_socket_ends(
    planes: list[Plane], clock: Clock
) -> None:
    one, two = planes
    device_id, token = await device(one)

    async def online() -> bool:
        return bool((await operator(two)("GET", f"/apiv1/users/1/devices/{device_id}")).data["online"])

    assert await online() is False
    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        assert await online() is True
        clock.wall += RUNNING_SECONDS + 1  # the process of the socket has not recorded itself since
        assert await online() is False
        await one.work(one.planes.note, polls=0)
        assert await online() is True
        await one.work(one.sockets.remove_all)
        assert await online() is False


async def test_a_socket_outlives_a_time_without_the_database(planes: list[Plane], clock: Clock) -> None:
    """Another process has deleted what this one had recorded."""
    one, two = planes
    device_id, token = await device(one)
    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        clock.wall += RUNNING_SECONDS + 1
        await two.work(two.housekeeping.tidy)
        assert not await two.work(names, two, device_id)
        await one.work(one.housekeeping.tidy)
        await one.stream.sweep()
        await one.push._each_minute()
        assert await two.work(two.push.opened, [device_id]) != {}
        (opened,) = one.push._open.values()
        assert await two.work(names, two, device_id) == {device_id: opened.socket.name}


async def test_a_socket_that_is_recorded_late_leaves_a_newer_one_alone(planes: list[Plane], clock: Clock) -> None:
    one, two = planes
    device_id, token = await device(one)
    async with memory_client(make_app(one), token) as old, memory_client(make_app(two), token) as new:
        await old.upgrade()
        await old.hello()
        (opened,) = one.push._open.values()
        opened.recorded = False  # as while nothing can be stored
        clock.advance(1)
        await new.upgrade()
        await new.hello()
        await one.push._each_minute()
        await one.stream.sweep()
        with trio.fail_after(30):
            assert (await old.closed()).code == 4409
        await two.stream.sweep()
        await two.resync(1, device_id)
        with trio.fail_after(30):
            await new.page()


async def test_rows_of_a_killed_process_do_not_count_after_its_restart(planes: list[Plane], clock: Clock) -> None:
    one, two = planes
    device_id, token = await device(one)
    async with memory_client(make_app(one), token) as client:
        await client.upgrade()
        await client.hello()
        one.planes.started_at += 100  # as its successor
        await one.work(one.planes.note, polls=0)
        assert await two.work(two.sockets.opened_elsewhere, [device_id]) == {}
        clock.wall += RUNNING_SECONDS + 1
        await two.work(two.planes.note, polls=0)
        await two.work(two.sockets.delete_expired)
        assert not await two.work(names, two, device_id)


async def test_a_woken_socket_reads_with_one_statement(planes: list[Plane], monkeypatch: pytest.MonkeyPatch) -> None:
    plane = planes[0]
    device_id, token = await device(plane)
    async with memory_client(make_app(plane), token) as client:
        await client.upgrade()
        await client.hello()
        await trio.testing.wait_all_tasks_blocked()
        statements: list[str] = []
        read = plane.database.all

        def counted(sql: str, *parameters: object) -> Any:
            statements.append(sql)
            return read(sql, *parameters)

        plane.stream.announce = lambda _: monkeypatch.setattr(plane.database, "all", counted)
        await plane.resync(1, device_id)
        with trio.fail_after(30):
            await client.page()
    reads = {sql for sql in statements if "FROM devices" in sql or "FROM wanted" in sql}
    assert len(reads) == 1, "a later wake by the database may repeat it"
    assert not [sql for sql in statements if sql.startswith("SELECT * FROM questions")]
