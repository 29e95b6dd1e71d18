"""Long polls return with the first signal or empty at their end, and end when the client leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from device_polls import issue
from plane_world import Device

from certctrl.plane.pace import FIRST_RETURN, LAST_RETURN, Pace


@asynccontextmanager
async def held_polls(device: Device, count: int = 1) -> AsyncIterator[list[Any]]:
    """Start long polls; yield the list of their replies, which is complete after the block."""
    replies: list[Any] = []

    async def poll() -> None:
        replies.append(await device.poll(wait=30))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(poll)
        yield replies


async def test_a_long_poll_returns_as_soon_as_a_signal_arrives(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True)
    device = await world.device()
    answers: list[tuple[float, Any]] = []

    async def poll() -> None:
        reply = await device.poll((await device.poll()).headers["etag"], wait=30)
        answers.append((trio.current_time(), reply))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await trio.sleep(7)
        await issue(world, device)
    ((at, reply),) = answers
    assert at == 7.0
    assert [signal["type"] for signal in reply.data["signals"]] == ["cert.renewed"]


async def test_a_long_poll_ends_empty_after_its_wait(build: Callable[..., Any], autojump_clock: trio.abc.Clock) -> None:
    world = build(virtual=True)
    device = await world.device()
    reply = await device.poll(wait=25)
    assert (reply.status, trio.current_time()) == (204, 25.0)


async def test_polls_that_begin_together_end_spread(build: Callable[..., Any], autojump_clock: trio.abc.Clock) -> None:
    """Found by measuring: one signal to all put the polls of a fleet in phase forever."""
    world = build(virtual=True)
    world.plane.polls.pace = Pace()
    device = await world.device()
    ends: list[float] = []

    async def poll() -> None:
        assert (await device.poll(wait=20)).status == 204
        ends.append(trio.current_time())

    world.plane.polls.take = lambda device: None
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(poll)
    assert min(ends) >= 0.7 * 20 and max(ends) <= 20
    assert max(Counter(int(end) for end in ends).values()) < 80, "six seconds of about 33 each"


async def test_a_stopping_plane_keeps_its_signals(build: Callable[..., Any]) -> None:
    """What they announce could no longer be fetched."""
    world = build()
    device = await world.device()
    start = (await device.poll()).headers["etag"]
    await issue(world, device)
    world.plane.stop_polls()
    for cursor in (start, None):
        reply = await device.poll(cursor)
        assert (reply.status, "retry-after" in reply.headers, reply.headers.get("etag")) == (204, True, cursor)


async def test_a_long_poll_with_new_signals_does_not_wait(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True)
    device = await world.device()
    await issue(world, device)
    assert (await device.poll(wait=30)).status == 200
    assert trio.current_time() == 0.0


async def test_a_signal_for_another_device_does_not_end_a_poll(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True)
    device, other = await world.device(), await world.device("device-number-2", "web-2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(issue, world, other)
        reply = await device.poll(wait=10)
    assert (reply.status, trio.current_time()) == (204, 10.0)


async def test_one_signal_reaches_every_poll_of_a_device(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True)
    device = await world.device()
    async with held_polls(device, 4) as replies:
        await trio.sleep(1)
        await issue(world, device)
    assert [reply.status for reply in replies] == [200] * 4
    assert trio.current_time() == 1.0


@pytest.mark.parametrize("how", ["revoke", "register again"])
async def test_a_held_poll_ends_with_its_session(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock, how: str
) -> None:
    world = build(virtual=True)
    device = await world.device()
    async with held_polls(device) as replies:
        await trio.sleep(2)
        if how == "revoke":
            world.plane.devices.revoke(1, device.id, "stolen")
        else:
            with world.plane.database.transaction():
                world.plane.sessions.start(device.id)
            world.plane.stream.wake(device.id)
    assert replies[0].key == ("DEVICE_REVOKED" if how == "revoke" else "INVALID_TOKEN")
    assert trio.current_time() == 2.0


async def test_a_disconnect_ends_a_held_poll(build: Callable[..., Any], autojump_clock: trio.abc.Clock) -> None:
    world = build(virtual=True)
    device = await world.device()
    device.gone = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.poll)
        nursery.start_soon(lambda: device.poll(wait=30))
        await trio.sleep(3)
        device.gone.set()
    assert trio.current_time() == 3.0


async def test_a_stopping_plane_answers_held_polls_and_closes_connections(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True)
    device = await world.device()
    async with held_polls(device) as replies:
        await trio.sleep(5)
        world.plane.polls.pace = Pace()
        world.plane.stop_polls()
    assert (replies[0].status, replies[0].headers["connection"]) == (204, "close")
    late = await device.poll(wait=30)
    assert (late.status, late.headers["connection"], trio.current_time()) == (204, "close", 5.0)
    for reply in (*replies, late):
        assert reply.headers["etag"] and FIRST_RETURN <= int(reply.headers["retry-after"]) <= LAST_RETURN
    health = await world.stranger("GET", "/health")
    assert (health.status, health.key, health.headers["retry-after"]) == (503, "SERVICE_UNAVAILABLE", "5")


async def test_a_burst_longer_than_the_stream_answers_a_held_poll_with_409(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True, stream_length=2)
    device = await world.device()
    async with held_polls(device) as replies:
        await trio.sleep(1)
        with world.plane.database.transaction():
            for cert_id in range(4):
                world.plane.stream.append(device.id, "cert.renewed", {"cert_id": cert_id})
    assert replies[0].key == "CURSOR_EXPIRED"
