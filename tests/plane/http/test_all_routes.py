"""Every route against hostile requests: bounded reading, an answer below 500, and the right one for strangers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import trio
from plane_world import Client, World
from starlette.routing import Route

from certctrl.plane.http.access_api import AccessApi
from certctrl.plane.http.alert_api import AlertApi
from certctrl.plane.http.audit_api import AuditApi
from certctrl.plane.http.ca_api import CaApi
from certctrl.plane.http.console.alert_pages import ConsoleAlerts
from certctrl.plane.http.console.changes import ConsoleChanges
from certctrl.plane.http.console.operator_pages import ConsoleOperators
from certctrl.plane.http.console.pages import Console
from certctrl.plane.http.console.records import ConsoleRecords
from certctrl.plane.http.device_api import DeviceApi
from certctrl.plane.http.fleet_api import FleetApi
from certctrl.plane.http.health import Health
from certctrl.plane.http.issuing_api import IssuingApi
from certctrl.plane.http.lifecycle_api import LifecycleApi
from certctrl.plane.http.operator_api import OperatorApi
from certctrl.plane.http.operator_resources import OperatorResources
from certctrl.plane.http.pages.approval import ApprovalPage
from certctrl.plane.http.profile_api import ProfileApi
from certctrl.plane.http.reading import BODY_CAP, LARGE_BODY_CAP
from certctrl.plane.http.rollout_api import RolloutApi

PART = 64 * 1024
IDS = {
    **dict.fromkeys(
        (
            "uid",
            "did",
            "cid",
            "caid",
            "tid",
            "oid",
            "rid",
            "ktid",
            "cert_id",
            "ca_id",
            "name",
            "operator",
            "channel",
            "mid",
        ),
        "1",
    ),
    "code": "ABCD-EFGH",
    "do": "pause",
}
STRANGE_IDS = ("0", "-1", "1.5", "9" * 30, "a", "\0", "..", "１", " ")
WITHOUT_KEY = {"/auth/device", "/auth/token/refresh", "/apiv1/device/registration"}
"""Routes of the API that strangers may call."""
CONFIG = "/apiv1/users/{uid}/devices/{did}/install-config"
BODIES = [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b'"x"', b"1e999", b"[" * 200 + b"]" * 200, b"[" * 30_000, b'{"a":NaN}',
    b'{"name":"\\ud800"}', json.dumps({"name": ["x"], "action": {}, "user_id": 2**70}).encode(), b"[1" + b",1" * 30_000 + b"]",
]  # fmt: skip


def routes_of(world: World) -> Iterator[tuple[str, str]]:
    """Yield the method and path of every route of the plane."""
    plane = world.plane
    parts = [
        Health, DeviceApi, OperatorApi, OperatorResources, CaApi, AuditApi, AccessApi, IssuingApi, LifecycleApi, ProfileApi,
        RolloutApi, FleetApi, AlertApi, ApprovalPage, Console, ConsoleRecords, ConsoleChanges,
        ConsoleAlerts, ConsoleOperators,
    ]  # fmt: skip
    for route in (route for part in parts for route in part(plane).routes()):
        assert isinstance(route, Route)
        for method in sorted(route.methods or ()):
            yield method, route.path


def path_of(path: str, **ids: str) -> str:
    return path.format(**IDS | ids)


class Endless:
    """A client that sends a body without end, and counts what is taken of it."""

    def __init__(self, client: Client, declared: int | None) -> None:
        self._client, self._declared = client, declared
        self.taken = 0

    async def send(self, method: str, path: str, headers: Mapping[str, str]) -> int:
        """Return the status of the answer."""
        client, started = self._client, []
        sent = {"host": "plane.test", "authorization": f"Bearer {client.token}", **headers}
        sent |= {"transfer-encoding": "chunked"} if self._declared is None else {"content-length": str(self._declared)}
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "https", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "client": (client.address, 12345), "server": ("plane.test", 443), "state": {},
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            self.taken += PART
            assert self.taken < 100 * PART, f"{method} {path} reads without end"
            return {"type": "http.request", "body": b" " * PART, "more_body": True}

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                started.append(message)

        await client.app(scope, receive, answer)
        (start,) = started
        return int(start["status"])


async def callers(world: World) -> tuple[Client, ...]:
    """Return an operator, a device with a certificate, and a stranger."""
    device = await world.device()
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    return world.operator, device, world.stranger


@pytest.mark.parametrize("declared", [None, 10**9, PART * 50])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
async def test_no_route_reads_more_than_its_limit(world: World, declared: int | None, kind: str) -> None:
    clients = await callers(world)
    for method, path in routes_of(world):
        for client in clients:
            endless = Endless(client, declared)
            status = await endless.send(method, path_of(path), {"content-type": kind})
            assert status < 500, (method, path, status)
            most = LARGE_BODY_CAP if client.token else BODY_CAP
            assert endless.taken <= most + 2 * PART, (method, path, endless.taken)


async def test_no_body_is_an_internal_error(world: World) -> None:
    clients = await callers(world)
    for method, path in routes_of(world):
        for body in BODIES:
            for client in clients:
                reply = await client(method, path_of(path), body=body, headers={"content-type": "application/json"})
                assert reply.status < 500, (method, path, body[:20], reply.body)


async def test_no_id_is_an_internal_error(world: World) -> None:
    clients = await callers(world)
    for method, path in routes_of(world):
        for strange in STRANGE_IDS:
            target = path_of(path, **dict.fromkeys(IDS, strange))
            for client in clients:
                reply = await client(method, target, {} if method in ("POST", "PUT") else None)
                assert reply.status < 500, (method, target, reply.body)


async def test_strangers_get_401_before_their_body_is_read(world: World) -> None:
    for method, path in routes_of(world):
        public = path.startswith(("/device", "/fleet", "/health")) or path in WITHOUT_KEY
        endless = Endless(world.stranger, None)
        status = await endless.send(method, path_of(path), {"content-type": "application/json"})
        assert public or (status == 401 and endless.taken <= PART), (method, path, status, endless.taken)


async def test_overload_refuses_all_but_operators_and_health(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, device, stranger = await callers(world)
    monkeypatch.setattr(world.plane.database, "backlog", lambda: 3.5)
    for method, path in routes_of(world):
        for client in (device, stranger):
            endless = Endless(client, None)
            status = await endless.send(method, path_of(path), {})
            health = path.startswith("/health")
            assert (status == 503) is not health or "ready" in path, (method, path, status)
            assert endless.taken <= PART, "refused before the body is read"
    refused = await device.poll()
    assert (refused.status, refused.key) == (503, "SERVICE_UNAVAILABLE")
    assert refused.json["error"]["params"]["problem"] == "overload"
    assert 5 <= int(refused.headers["retry-after"]) <= 10
    assert (await operator("GET", "/apiv1/users")).status == 200
    health = (await stranger("GET", "/health")).data
    assert (health["status"], [shown["key"] for shown in health["problems"]]) == ("degraded", ["overload"])
    monkeypatch.undo()
    await world.plane.storage_check.once()
    assert (await device.poll()).status == 200
    assert (await stranger("GET", "/health")).data["status"] == "ok"


async def test_bodies_that_arrive_have_a_limit_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.http.reading.MAX_ARRIVING", PART)
    body = b"{" + b" " * PART
    reply = await world.operator("PUT", path_of(CONFIG), body=body, headers={"content-type": "application/json"})
    assert (reply.status, reply.json["error"]["params"]["problem"]) == (503, "overload")
    for number in range(3):
        body = b" " * 40_000 + b'{"name":"user-%d"}' % number
        reply = await world.operator("POST", "/apiv1/users", body=body, headers={"content-type": "application/json"})
        assert reply.status == 201, "the memory is free again"
