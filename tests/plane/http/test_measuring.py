"""Counted requests: by method, route and status, with bounded labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from plane_world import UPDATES, World

from certctrl.plane.http.app import make_app
from certctrl.plane.http.measuring import Routes


def test_the_route_of_a_path() -> None:
    routes = Routes(["/a", "/a/{id}", "/a/{id}/b", "/c/{x}/{y}", "/a/self"])
    found = {
        path: routes.route_of(path) for path in ("/a", "/a/7", "/a/self", "/a/7/b", "/c/1/2", "/c/1", "/", "", "/a/")
    }
    assert found == {
        "/a": "/a", "/a/7": "/a/{id}", "/a/self": "/a/self", "/a/7/b": "/a/{id}/b", "/c/1/2": "/c/{x}/{y}",
        "/c/1": "other", "/": "other", "": "other", "/a/": "/a/{id}",
    }  # fmt: skip


async def test_requests_are_counted_by_method_route_and_status(world: World) -> None:
    device = await world.device()
    counters = world.plane.counters
    counters.requests.clear()
    counters.request_seconds.clear()
    await device.poll()
    await device.poll(wait=0)
    await world.operator("GET", device.home)
    await world.stranger("GET", f"/apiv1/users/1/devices/{device.id}")
    await world.stranger("GET", "/nothing/at/all")
    await world.stranger("BREW", "/health")
    route = "/apiv1/users/{uid}/devices/{did}"
    assert counters.requests == {
        ("GET", UPDATES, "204"): 2, ("GET", route, "200"): 1, ("GET", route, "401"): 1,
        ("GET", "other", "404"): 1, ("other", "/health", "405"): 1,
    }  # fmt: skip
    assert {route: found.count for route, found in counters.request_seconds.items()} == {
        UPDATES: 1, route: 2, "other": 1, "/health": 1,
    }, "without the poll that could have waited"  # fmt: skip


async def test_a_client_that_leaves_is_counted_without_a_status(world: World) -> None:
    device = await world.device()
    world.plane.counters.requests.clear()
    with trio.CancelScope() as scope:
        scope.cancel()
        await device.poll(wait=30)
    assert world.plane.counters.requests == {("GET", UPDATES, "none"): 1}


async def test_every_documented_request_has_a_route(world: World) -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
    routes = make_app(world.plane)._routes  # type: ignore[attr-defined]
    for path in ("/apiv1/devices/self/updates", "/auth/token/refresh", "/health/ready", "/apiv1/devices/self/notify"):
        assert path in page and routes.route_of(path) == path


@pytest.mark.parametrize("seconds", [0, 3])
async def test_a_woken_poll_is_counted_with_its_latency(world: World, seconds: int) -> None:
    device = await world.device()
    cursor = (await device.poll()).headers["etag"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: device.poll(cursor, wait=30))
        await trio.testing.wait_all_tasks_blocked()
        assert world.plane.stream.waiting_polls() == 1
        with world.plane.database.transaction():
            world.plane.stream.append(device.id, "state.resync_required", {})
        world.clock.advance(seconds)  # before the poll runs
    found = world.plane.counters.wake_seconds
    assert found.count == 1 and abs(found.total - seconds) < 0.01
    assert world.plane.stream.waiting_polls() == 0
