"""Memo: a poll of the same bytes is read once, any other anew, and each is authenticated."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest
import trio
from device_polls import UPDATES
from memory_stream import memory_streams
from plane_world import World

from certctrl.plane.http import device_api
from certctrl.plane.http.connection import Connection
from certctrl.plane.http.proxies import ForwardedFor, Proxies

PROXY = Proxies(http=(ip_network("10.0.0.0/8"),))


class Agent:
    """A connection to the application of a world, through a proxy at an address."""

    def __init__(self, world: World, nursery: trio.Nursery, proxy: str = "10.0.0.1") -> None:
        stream, self._client = memory_streams()
        app: Any = ForwardedFor(world.app, PROXY)
        nursery.start_soon(Connection(app, stream, (proxy, 5000), {}).run)

    async def poll(self, token: str, *, client: str = "192.0.2.1", query: str = "limit=2") -> int:
        """Return the status of the answer."""
        head = f"GET {UPDATES}?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        await self._client.send_all(f"{head}X-Forwarded-For: {client}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await self._client.receive_some()
        return int(answer.split(b" ")[1])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the polls that were read from their heads."""
    polls: list[Any] = []

    def reading(read_poll: Any, request: Any) -> Any:
        polls.append(read_poll(request))
        return polls[-1]

    monkeypatch.setattr(device_api, "_poll_of", partial(reading, device_api._poll_of))
    return polls


async def test_the_same_bytes_are_read_once(build: Any, read: list[Any]) -> None:
    world = build(poll_burst=100)
    device, other = await world.device(), await world.device("device-2", "web-2")
    seen = world.plane.devices._sightings
    async with trio.open_nursery() as nursery:
        agent = Agent(world, nursery)
        assert [await agent.poll(device.token) for _ in range(3)] == [204] * 3
        assert len(read) == 1 and seen[device.id].address == "192.0.2.1"
        await agent.poll(device.token, client="192.0.2.2")
        assert len(read) == 2 and seen[device.id].address == "192.0.2.2"
        await agent.poll(device.token, query="limit=3")
        assert [poll.limit for poll in read] == [2, 2, 3]
        await agent.poll(other.token)
        assert seen[other.id].address == "192.0.2.1"
        await Agent(world, nursery, "198.51.100.7").poll(other.token)
        assert seen[other.id].address == "198.51.100.7", "this one is not listed"
        nursery.cancel_scope.cancel()


async def test_a_repeated_poll_is_authenticated_and_limited(build: Any, read: list[Any]) -> None:
    world = build(poll_burst=3)
    device = await world.device()
    async with trio.open_nursery() as nursery:
        agent = Agent(world, nursery)
        assert [await agent.poll(device.token) for _ in range(4)] == [204, 204, 204, 429]
        await world.operator("DELETE", device.home)
        assert [await agent.poll(device.token), await agent.poll("x" + device.token[1:])] == [403, 401]
        assert len(read) == 1
        nursery.cancel_scope.cancel()


async def test_a_poll_that_cannot_be_read_is_refused_each_time(world: World) -> None:
    device = await world.device()
    async with trio.open_nursery() as nursery:
        agent = Agent(world, nursery)
        assert [await agent.poll(device.token, query="limit=x") for _ in range(2)] == [400, 400]
        nursery.cancel_scope.cancel()
