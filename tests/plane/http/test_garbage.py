"""Garbage: what a few requests make is looked at soon, and what waits is never looked at again."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
from memory_stream import memory_streams
from push_client import pushed

from certctrl.plane.http import garbage
from certctrl.plane.http.connection import Connection
from certctrl.plane.http.garbage import REQUESTS_PER_COLLECTION, Collections

LOOK = """
import gc
from certctrl.plane.http import garbage
garbage.collect_new_objects_only()
most, *older = gc.get_threshold()
waiting = [[object()] for _ in range(10 * most)]
assert gc.get_freeze_count() > 1000
assert len(gc.get_objects(generation=0)) <= 2 * most
assert min(older) > 10**6
"""


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Only explicit collections."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_what_a_few_requests_leave_is_looked_at_once(by_hand: None) -> None:
    requests, waiting, cycles = Collections(), list[Any](), list[weakref.ref[Cycle]]()
    for number in range(1, 3 * REQUESTS_PER_COLLECTION + 1):
        waiting.append([object()])
        cycles.append(weakref.ref(Cycle()))
        requests.note()
        new = {id(one) for one in gc.get_objects(generation=0)}
        assert sum(id(one) in new for one in waiting) == number % REQUESTS_PER_COLLECTION
        assert sum(cycle() is not None for cycle in cycles) == number % REQUESTS_PER_COLLECTION


async def test_each_request_of_a_connection_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted(Collections):
        count = 0

        def note(self) -> None:
            self.count += 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    noted = Noted()
    monkeypatch.setattr(garbage, "answered", noted)
    stream, client = memory_streams()
    await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    await client.aclose()
    await Connection(app, stream, ("192.0.2.7", 5000), {}).run()
    assert noted.count == 3


async def test_held_polls_leave_no_cyclic_garbage(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock, by_hand: None
) -> None:
    """Otherwise it would stay for an hour, because what has survived a look is not looked at again."""
    world = build(virtual=True)
    device = await world.device()

    async def hold() -> None:
        cursor = (await device.poll(wait=1)).headers["etag"]
        async with trio.open_nursery() as nursery:
            for seconds in (7, 30):
                nursery.start_soon(partial(device.poll, cursor, wait=seconds))
            await trio.sleep(8)
            await world.operator("POST", f"{device.home}/resync", {})
        device.gone = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(device.poll, wait=30))
            await trio.sleep(1)
            device.gone.set()
        with trio.move_on_after(1):
            await device.poll(wait=30)

    await hold()  # makes also what is made only once
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    await hold()
    gc.collect()
    left = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
    assert not left, left


async def test_a_closed_push_socket_leaves_cycles_of_the_library_only(
    build: Callable[..., Any], autojump_clock: trio.abc.Clock, by_hand: None
) -> None:
    world = build(virtual=True)
    device = await world.device()

    async def open_and_close() -> None:
        async with pushed(world, device):
            await world.operator("POST", f"{device.home}/resync", {})
        async with pushed(world, device) as client:
            await client.text("no JSON")
            await trio.sleep(1)

    await open_and_close()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    await open_and_close()
    gc.collect()
    left = Counter(type(one).__module__.partition(".")[0] for one in gc.garbage if not isinstance(one, dict))
    assert not {
        name for name in left if name not in ("wsproto", "builtins", "collections", "h11", "_codecs", "codecs")
    }, left


def test_many_closed_sockets_have_all_objects_looked_at() -> None:
    collections = Collections(3, 2)
    gc.collect()
    gc.disable()
    try:
        cycle = Cycle()
        gone = weakref.ref(cycle)
        gc.collect(0), gc.collect(1)  # it is old now
        del cycle
        collections.note(), collections.note()
        assert gone() is not None
        collections.note()
        assert gone() is None
    finally:
        gc.enable()


def test_a_serving_plane_looks_at_new_objects_only() -> None:
    subprocess.run([sys.executable, "-c", LOOK], check=True)
