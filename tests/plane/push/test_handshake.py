"""The opening handshake: 101 for devices, the errors of polls for all others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from plane_world import World
from push_client import ACCEPT, PushClient, memory_client

from certctrl.plane.http.faults import Fault


async def opened(world: World, token: str, **changed: Any) -> PushClient:
    async with memory_client(world.app, token) as client:
        with trio.fail_after(60):
            await client.upgrade(**changed)
        return client


async def test_a_device_gets_101_with_the_protocol_and_no_extension(world: World) -> None:
    device = await world.device()
    client = await opened(world, device.token, Sec_WebSocket_Extensions="permessage-deflate")
    assert client.status == 101
    assert client.headers["sec-websocket-accept"] == ACCEPT
    assert client.headers["sec-websocket-protocol"] == "certctrl.v1"
    assert "sec-websocket-extensions" not in client.headers
    assert "cert-ctrl-copies" not in client.headers


@pytest.mark.parametrize(
    "changed",
    [
        {"Upgrade": None},
        {"Upgrade": "h2c"},
        {"Connection": None},
        {"Connection": "keep-alive"},
        {"Sec_WebSocket_Key": None},
        {"Sec_WebSocket_Key": "c2hvcnQ="},
        {"Sec_WebSocket_Key": "not base64 at all, at all"},
        {"Sec_WebSocket_Key": "\xff" * 24},
        {"Sec_WebSocket_Protocol": None},
        {"Sec_WebSocket_Protocol": "chat, certctrl.v2"},
        {"method": "HEAD"},
    ],
    ids=str,
)
async def test_what_is_not_the_handshake_gets_400(world: World, changed: dict[str, Any]) -> None:
    device = await world.device()
    assert (await opened(world, device.token, **changed)).status == 400


async def test_another_version_gets_426_with_ours(world: World) -> None:
    client = await opened(world, (await world.device()).token, Sec_WebSocket_Version="8")
    assert (client.status, client.key, client.headers["sec-websocket-version"]) == (426, "UPGRADE_REQUIRED", "13")


async def test_the_protocol_may_be_one_of_several(world: World) -> None:
    device = await world.device()
    client = await opened(
        world, device.token, Sec_WebSocket_Protocol="chat, certctrl.v1", Connection="keep-alive, Upgrade"
    )
    assert client.status == 101


async def test_other_paths_offer_no_websockets(world: World) -> None:
    client = await opened(world, (await world.device()).token, path="/health")
    assert (client.status, client.headers["connection"]) == (400, "close")


async def test_strangers_get_401_as_for_a_poll(world: World) -> None:
    for token in ("", "nonsense", "a.b.c"):
        client = await opened(world, token)
        assert (client.status, client.key) == (401, "INVALID_TOKEN")


async def test_an_expired_token_gets_401(world: World) -> None:
    device = await world.device()
    world.clock.advance(901)
    client = await opened(world, device.token)
    assert (client.status, client.key) == (401, "TOKEN_EXPIRED")


async def test_a_revoked_device_gets_403(world: World) -> None:
    device = await world.device()
    await world.operator("DELETE", device.home)
    client = await opened(world, device.token)
    assert (client.status, client.key) == (403, "DEVICE_REVOKED")


async def test_sockets_count_as_polls(build: Callable[..., World]) -> None:
    world = build(poll_rate=1.0, poll_burst=2)
    device = await world.device()
    found = [(await opened(world, device.token)).status for _ in range(3)]
    assert found == [101, 101, 429]
    client = await opened(world, device.token)
    assert client.headers["retry-after"] == "1"


async def test_a_stopping_plane_gets_503_with_a_pause(world: World) -> None:
    device = await world.device()
    world.plane.stop_polls()
    client = await opened(world, device.token)
    assert client.status == 503
    assert int(client.headers["retry-after"]) >= 1


async def test_copies_of_a_device_are_noticed(world: World) -> None:
    device = await world.device()
    answers = [await opened(world, device.token, Cert_Ctrl_Instance=name) for name in ("one", "two", "one")]
    assert ["cert-ctrl-copies" in client.headers for client in answers] == [False, False, True]


async def test_faults_affect_the_handshake(world: World) -> None:
    """Tests of agents inject them."""
    device = await world.device()
    world.faults.add(Fault(path="*/stream", status=503, headers={"retry-after": "7"}))
    client = await opened(world, device.token)
    assert (client.status, client.headers["retry-after"]) == (503, "7")
    assert json.loads(client.body)["error"]["key"] == "FAULT"


async def test_an_upgrade_is_counted_when_it_is_answered(world: World) -> None:
    device = await world.device()
    async with memory_client(world.app, device.token) as client:
        await client.upgrade()
        await client.hello()
        assert world.plane.counters.requests["GET", "/apiv1/devices/self/stream", "101"] == 1
