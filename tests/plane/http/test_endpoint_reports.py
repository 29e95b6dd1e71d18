"""Reports of endpoints as devices send them: what is read, and what hostile ones can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from engine_plane import WALL, plane_on, registered
from plane_world import Client

from certctrl.plane.core import Plane
from certctrl.plane.devices.endpoints import MAX_ENDPOINTS
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.http.app import make_app
from certctrl.plane.polls import COSTLY_BURST
from certctrl.plane.storage.database import Database

NOTIFY = "/apiv1/devices/self/notify"
HUGE = "x" * 20_000
ODD: list[Any] = [None, True, -1, 2**70, 1.5, [], {}, {"a": 1}, "\0\x1b[2J", "", HUGE]


class Site:
    def __init__(self, plane: Plane, token: str, cert_id: int, client: Client) -> None:
        self.plane, self.token, self.cert_id, self.client = plane, token, cert_id, client

    async def report(self, endpoints: Any, /, **more: Any) -> int:
        event = {"type": "endpoints", "cert_id": self.cert_id, "deployed": "0a", "endpoints": endpoints} | more
        body = {"schema": "certctrl.device.notify.v1", "events": [event]}
        return int((await self.client("POST", NOTIFY, body)).status)

    async def rows(self) -> list[Any]:
        return await self.plane.work(self.plane.database.all, "SELECT * FROM endpoints ORDER BY endpoint")

    async def fleet(self) -> str:
        """Read all lists, as operators do."""
        lists = [
            await self.plane.work_long(read, 1, Query())
            for read in (self.plane.fleet.devices, self.plane.fleet.certificates)
        ]
        return json.dumps([*lists, await self.plane.work_long(self.plane.fleet.causes, 1)])


async def made(database: Database, **settings: Any) -> Site:
    plane = plane_on(database, **settings)
    device, token = await registered(plane)
    cert = (await plane.certificates.issue(1, ["a.test"], device_ids=[device]))["id"]
    return Site(plane, token, cert, Client(make_app(plane), token))


@pytest.fixture
async def site(open_database: Callable[[], Database]) -> Site:
    return await made(open_database(), poll_rate=1000.0, poll_burst=1000)


async def test_a_report_is_stored_as_sent(site: Site) -> None:
    ends = round(WALL + 86_400) * 1000
    right = {
        "endpoint": "127.0.0.1:443 for a.test",
        "serial": "0A:0b",
        "fingerprint_sha256": "AB" * 32,
        "not_after_ms": ends,
    }
    assert await site.report([right, {"endpoint": "127.0.0.1:8443", "reason": "endpoint-refuses"}]) == 204
    first, second = await site.rows()
    assert (first["serial_number"], first["fingerprint_sha256"]) == ("0a:0b", "ab" * 32)
    assert (first["not_after"], first["reason"], first["deployed"]) == (ends / 1000, "", "0a")
    assert (second["serial_number"], second["not_after"], second["reason"]) == ("", None, "endpoint-refuses")


@pytest.mark.parametrize("field", ["endpoint", "serial", "fingerprint_sha256", "not_after_ms", "reason"])
async def test_odd_values_are_stored_short_or_not_at_all(site: Site, field: str) -> None:
    whole = {"endpoint": "127.0.0.1:443", "serial": "0a", "not_after_ms": 1, "reason": "no-tls"}
    for odd in ODD:
        assert await site.report([whole | {field: odd}]) == 204, odd
        assert len(json.dumps([dict(row) for row in await site.rows()])) < 2000
        shown = await site.fleet()
        assert "\\u001b" not in shown and "\\u0000" not in shown
    for row in await site.rows():
        assert row["reason"] in ("", "no-tls", "other")


async def test_odd_reports_are_ignored_or_stored_short(site: Site) -> None:
    for odd in ODD:
        for field in ("cert_id", "deployed", "endpoints"):
            assert await site.report([{"endpoint": "127.0.0.1:443", "reason": "no-tls"}], **{field: odd}) == 204, odd
        assert await site.report([odd, [odd]]) == 204
        await site.fleet()
    assert await site.report([{"endpoint": f"127.0.0.1:{port}"} for port in range(5000)]) == 204
    assert len(await site.rows()) == MAX_ENDPOINTS


async def test_the_end_of_time_can_be_shown(site: Site) -> None:
    for end in (1, 253_402_300_799_999, 253_402_300_800_000, 2**53 - 1):
        assert (
            await site.report([{"endpoint": "a", "serial": "0a", "not_after_ms": end, "reason": "other-certificate"}])
            == 204
        )
        await site.fleet()


async def test_reports_are_limited_for_each_device(open_database: Callable[[], Database]) -> None:
    site = await made(open_database(), poll_rate=0.001, poll_burst=1)
    listed = [{"endpoint": f"127.0.0.1:{port}"} for port in range(3)]
    assert [await site.report(listed) for _ in range(COSTLY_BURST + 1)] == [204] * COSTLY_BURST + [429]
