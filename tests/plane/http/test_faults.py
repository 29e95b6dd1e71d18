"""Scripted faults: each kind and its count; without faults the app is unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from plane_world import World

from certctrl.plane.http.faults import CutError, Fault

UPDATES = "/apiv1/devices/self/updates"


async def test_a_fault_affects_the_given_number_of_requests(world: World) -> None:
    device = await world.device()
    world.faults.add(Fault(path=UPDATES, times=2, status=503, headers={"Retry-After": "7"}))
    replies = [await device.poll() for _ in range(3)]
    assert [reply.status for reply in replies] == [503, 503, 204]
    assert (replies[0].key, replies[0].headers["retry-after"]) == ("FAULT", "7")
    assert [path for _, path, _ in world.faults.happened] == [UPDATES] * 2


async def test_patterns_methods_order_and_clearing(world: World) -> None:
    device = await world.device()
    world.faults.add(Fault(path="/apiv1/devices/self/*", method="POST", times=None, status=500))
    world.faults.add(Fault(path=UPDATES, after=1, status=502))
    assert [(await device.poll()).status for _ in range(3)] == [204, 502, 204]
    assert (await device("POST", "/apiv1/devices/self/notify", {})).status == 500
    world.faults.clear()
    assert (await device("POST", "/apiv1/devices/self/notify", {})).status == 400


async def test_garbage_bodies_and_headers(world: World) -> None:
    device = await world.device()
    world.faults.add(Fault(body=b"<html>Sign in to the hotel</html>", headers={"content-type": "text/html"}))
    reply = await device.poll()
    assert (reply.status, reply.body[:6], reply.headers["content-type"]) == (200, b"<html>", "text/html")
    world.faults.add(Fault(headers={"etag": "", "content-encoding": "br"}))
    reply = await device.poll()
    assert (reply.status, reply.headers["etag"], reply.headers["content-encoding"]) == (204, "", "br")
    world.faults.add(Fault(status=304))
    assert (await device.poll()).body == b""


async def test_a_delay_alone_only_delays(build: Callable[..., Any], autojump_clock: trio.abc.Clock) -> None:
    world = build(virtual=True)
    device = await world.device()
    world.faults.add(Fault(delay=12))
    assert (await device.poll()).status == 204
    assert trio.current_time() == 12.0


async def test_cuts(world: World) -> None:
    device = await world.device()
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    world.faults.add(Fault(cut_after=-1))
    world.faults.add(Fault(cut_after=10))
    world.faults.add(Fault(cut_after=3, body=b"abcdef"))
    for _ in range(3):
        with pytest.raises(CutError):
            await device.poll()
    assert (await device.poll()).status == 200


async def test_a_swallowed_response_was_processed(world: World) -> None:
    row = await world.plane.certificates.issue(1, ["a.example"])
    world.faults.add(Fault(path="*/issues", swallow=True))
    with pytest.raises(CutError):
        await world.operator("POST", f"/apiv1/users/1/certificates/{row['id']}/issues", {"action": "renew"})
    assert world.plane.certificates.show(1, row["id"])["serial_number"] != row["serial_number"]


async def test_without_faults_the_app_is_not_wrapped(world: World) -> None:
    from certctrl.plane.http.app import make_app
    from certctrl.plane.http.middleware import Middleware

    assert isinstance(make_app(world.plane), Middleware)
    assert json.loads((await world.stranger("GET", "/health")).body)["data"]["status"] == "ok"
    assert world.faults.happened == []
