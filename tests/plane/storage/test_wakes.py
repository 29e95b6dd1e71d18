"""Waves to many streams, paced wakes, and who runs first after a commit: with both engines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import trio
import trio.testing
from engine_plane import new_device, plane_on

from certctrl.plane.core import Plane
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.signal_stream import _MAX_WOKEN, Waiter


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def test_a_wave_is_as_appending_to_each_stream(open_database: Callable[[], Database]) -> None:
    """Also for streams that have a signal of this millisecond, and for full ones."""
    plane = plane_on(open_database(), stream_length=2)
    devices = [await new_device(plane, f"device-{number}") for number in range(4)]
    stream = plane.stream
    await plane.work(stream.append, devices[1], "cert.renewed", {"cert_id": 1})
    for number in range(2):
        await plane.work(stream.append, devices[2], "cert.renewed", {"cert_id": number + 5})
    await plane.work(stream.append_to_all, devices[:3], "cert.renewed", {"cert_id": 1})
    await plane.work(stream.append_to_all, [], "cert.renewed", {"cert_id": 1})
    pages = [(await plane.work(stream.read, device, None, 10)).signals for device in devices]
    assert [[signal["ref"]["cert_id"] for signal in page] for page in pages] == [[1], [1, 1], [6, 1], []]
    first, second = (signal["ts_ms"] for signal in pages[1])
    assert first < second, "a repeat has a time of its own"
    await plane.work(stream.append_to_all, devices, "cert.renewed", {"cert_id": 2})
    assert [(await plane.work(stream.read, device, None, 10)).signals[-1]["ref"]["cert_id"] for device in devices] == [
        2
    ] * 4


async def test_paced_wakes_reach_all_waiters_and_also_those_left_at_the_end(plane: Plane) -> None:
    devices = [await new_device(plane, f"device-{number}") for number in range(40)]
    woken = []

    async def wait(device: int, task_status: trio.TaskStatus[Waiter]) -> None:
        with plane.stream.waiter(device) as waiter:
            task_status.started(waiter)
            assert await waiter.wait("")
            woken.append(device)

    async with trio.open_nursery() as nursery:
        for device in devices:
            await nursery.start(wait, device)
        async with trio.open_nursery() as pacing:
            pacing.start_soon(plane.stream.pace_wakes)
            await trio.testing.wait_all_tasks_blocked()
            plane.stream.wake_all()
            await trio.lowlevel.checkpoint()
            assert len(woken) < len(devices)
            pacing.cancel_scope.cancel()
    assert sorted(woken) == devices


async def test_the_first_wakes_of_a_turn_are_not_paced(plane: Plane) -> None:
    devices = [await new_device(plane, f"device-{number}") for number in range(3 * _MAX_WOKEN)]
    woken: list[int] = []

    class Counting(Waiter):
        def wake(self) -> None:
            woken.append(1)

    async with trio.open_nursery() as pacing:
        pacing.start_soon(plane.stream.pace_wakes)
        await trio.testing.wait_all_tasks_blocked()
        with contextlib.ExitStack() as waiting:
            for device in devices:
                waiting.enter_context(plane.stream.waiting_as(device, Counting()))
            for round_ in range(3):
                woken.clear()
                plane.stream.wake(devices[0])
                assert len(woken) == 1, f"round {round_}: one wake waits for nothing"
                for device in devices[1:]:
                    plane.stream.wake(device)
                assert len(woken) == _MAX_WOKEN
                await trio.testing.wait_all_tasks_blocked()
                assert len(woken) == len(devices)
        pacing.cancel_scope.cancel()


async def test_tasks_that_a_commit_wakes_run_before_the_one_that_has_committed(plane: Plane) -> None:
    device = await new_device(plane)
    order = []

    async def wait(task_status: trio.TaskStatus) -> None:
        with plane.stream.waiter(device) as waiter:
            task_status.started()
            await waiter.wait("")
            order.append("woken")

    def change() -> None:
        plane.stream.append(device, "state.resync_required", {})

    for work in (plane.work, plane.work_long, plane.work_together):
        for _ in range(10):  # the event loop takes the tasks of a turn in either order
            async with trio.open_nursery() as nursery:
                await nursery.start(wait)
                await trio.testing.wait_all_tasks_blocked()
                await work(change)
                order.append("committed")
    assert order == ["woken", "committed"] * 30
