"""What devices see at their endpoints, on both engines: words, since when, bounds, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from engine_plane import WALL, plane_on, registered

from certctrl.model.features import SERVING_REPORTS
from certctrl.model.plan import OutcomeKind, named_cause
from certctrl.plane.clock import when
from certctrl.plane.core import Plane
from certctrl.plane.devices.endpoints import AGE_SECONDS, MAX_ENDPOINTS, EndpointsReport, SeenEndpoint
from certctrl.plane.devices.reports import Ack, AgentVersion
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.storage.database import Database

DAY = 86_400.0
WHERE = "127.0.0.1:443 for a.test"


@attrs.define
class Site:
    """A plane with a device that serves a certificate, and a clock."""

    plane: Plane
    now: list[float]
    device: int = 0
    cert: int = 0

    async def begin(self) -> None:
        self.device, _ = await registered(self.plane, "web-1")
        self.cert = int((await self.plane.certificates.issue(1, ["a.test"], device_ids=[self.device]))["id"])
        await self.deployed()

    async def serial(self) -> str:
        row = await self.plane.work(self.plane.database.one, "SELECT * FROM certificates WHERE id = ?", self.cert)
        assert row is not None
        return str(row["serial_number"])

    async def deployed(self, outcome: OutcomeKind = OutcomeKind.APPLIED, codes: str = "", **more: Any) -> None:
        """Report an outcome of the newest certificate."""
        self.now[0] += 1
        listed = [{"cert_id": self.cert, "serial": await self.serial(), **more}]
        ack = Ack(
            type="cert.renewed",
            ts_ms=int(self.now[0]),
            ref={"cert_id": self.cert},
            outcome=outcome,
            cause=named_cause(*codes.split()) if codes else None,
            deployed=listed,
        )
        await self.plane.work(self.plane.reports.store, self.device, [ack])

    async def sees(self, *seen: SeenEndpoint, deployed: str | None = None) -> None:
        """Report what the endpoints serve."""
        self.now[0] += 1
        report = EndpointsReport(cert_id=self.cert, deployed=deployed or await self.serial(), endpoints=seen)
        await self.plane.work(self.plane.reports.store, self.device, [report])

    async def rows(self) -> list[Any]:
        return await self.plane.work(self.plane.database.all, "SELECT * FROM endpoints ORDER BY endpoint")

    async def causes(self) -> list[tuple[str, str]]:
        await self.heard()
        answer = await self.plane.work_long(self.plane.fleet.causes, 1)
        return [(one["state"], one["reason"]) for one in answer["causes"]]

    async def heard(self) -> None:
        self.plane.devices.seen(self.device, "", "", self.now[0])
        await self.plane.work(self.plane.devices.save_sightings)

    async def ends(self) -> float:
        row = await self.plane.work(self.plane.database.one, "SELECT * FROM certificates WHERE id = ?", self.cert)
        assert row is not None
        return float(row["not_after"])

    async def why(self) -> dict[str, Any]:
        await self.heard()
        (row,) = (await self.plane.work_long(self.plane.fleet.devices, 1, Query()))["devices"]
        return dict(row["why"] or {})

    async def certificate(self, **query: Any) -> dict[str, Any]:
        answer = await self.plane.work_long(self.plane.fleet.certificates, 1, Query(**query))
        return dict(answer["certificates"][0]) if answer["certificates"] else {}


@pytest.fixture
async def site(open_database: Callable[[], Database]) -> Site:
    now = [WALL]
    made = Site(plane_on(open_database(), wall_now=lambda: now[0]), now)
    await made.begin()
    return made


def seen(reason: str = "", serial: str = "", endpoint: str = WHERE, **more: Any) -> SeenEndpoint:
    return SeenEndpoint(endpoint=endpoint, serial=serial, reason=reason, **more)


async def test_a_look_proves_what_is_deployed(site: Site) -> None:
    assert await site.certificate(states=("deployed",))
    await site.sees(seen(serial=await site.serial()))
    found = await site.certificate(states=("served",))
    assert (found["newest_served"], found["not_served"], await site.causes()) == (1, 0, [])
    assert found["last_proof_at"]


async def test_a_former_certificate_is_older_and_others_are_other(site: Site) -> None:
    old = await site.serial()
    await site.plane.certificates.renew(1, site.cert)
    await site.deployed(served=True)
    await site.sees(seen("other-certificate", old))
    assert await site.causes() == [("not served", "older-served")]
    why = await site.why()
    assert (why["copy"], why["step"], why["message"]) == ("not served", "probe", f"{WHERE} serves {old}")
    await site.sees(seen("other-certificate", "0a:0b"))
    assert await site.causes() == [("not served", "other-certificate")]
    await site.sees(seen("endpoint-refuses"))
    assert (await site.why())["message"] == WHERE
    found = await site.certificate(states=("not served",), reason="endpoint-refuses")
    assert (found["state"], found["newest_deployed"], found["newest_served"], found["not_served"]) == (
        "not served",
        1,
        0,
        1,
    )


async def test_since_is_kept_while_it_stays_the_same(site: Site) -> None:
    await site.sees(seen("no-tls"))
    first = (await site.why())["since"]
    await site.sees(seen("no-tls"), seen(serial="0a", endpoint="127.0.0.1:8443"))
    assert (await site.why())["since"] == first
    await site.sees(seen("endpoint-silent"))
    assert (await site.why())["since"] > first
    assert [row["endpoint"] for row in await site.rows()] == [WHERE], "the list replaces the former one"
    await site.sees()
    assert (await site.rows(), await site.causes()) == ([], [])


async def test_one_wrong_endpoint_of_several_counts_and_proves_nothing(site: Site) -> None:
    await site.sees(seen(serial=await site.serial()), seen("no-tls", endpoint="127.0.0.1:8443"))
    assert await site.causes() == [("not served", "no-tls")]
    assert not (await site.certificate())["last_proof_at"]


async def test_a_later_deployment_ends_what_was_seen_before_it(site: Site) -> None:
    await site.sees(seen("no-tls"))
    await site.deployed(OutcomeKind.UNCHANGED)
    assert await site.causes() == [("not served", "no-tls")], "it looked at nothing"
    await site.deployed(served=True)
    assert await site.causes() == []
    await site.sees(seen("no-tls"))
    await site.plane.certificates.renew(1, site.cert)
    assert await site.causes() == [("not served", "no-tls")]
    await site.deployed()
    assert await site.causes() == [], "of another certificate"


async def test_a_failed_deployment_says_more_than_a_look(site: Site) -> None:
    await site.sees(seen("no-tls"))
    await site.deployed(OutcomeKind.ROLLED_BACK, "run command-failed")
    assert await site.causes() == [("stuck", "command-failed")]


async def test_what_is_served_counts_for_the_end(site: Site) -> None:
    now = site.now[0]
    await site.sees(seen("other-certificate", "0a", not_after=now + 40 * DAY))
    assert (await site.certificate())["ends_first_at"] == when(now + 40 * DAY)
    await site.sees(seen("other-certificate", "0b", not_after=now - DAY))
    assert await site.causes() == [("expired", "other-certificate")]


async def test_what_ends_soon_is_expiring(site: Site) -> None:
    await site.sees(seen(serial=await site.serial()))
    site.now[0] = (ends := await site.ends()) - 8 * DAY
    assert (await site.causes(), (await site.certificate())["state"]) == ([], "valid")
    site.now[0] = ends - 6 * DAY
    assert (await site.causes(), (await site.certificate())["state"]) == ([("expiring", "expiring")], "expiring")
    found = await site.certificate(states=("expiring",))
    assert (found["newest_deployed"], found["newest_served"]) == (1, 1)
    site.now[0] = ends + 1
    assert (await site.causes(), (await site.certificate())["state"]) == ([("expired", "expired")], "expired")


async def test_what_is_old_is_not_believed(site: Site) -> None:
    await site.sees(seen("no-tls"))
    site.now[0] += AGE_SECONDS + 1
    assert await site.causes() == []


async def test_rows_end_with_the_assignment_the_device_and_the_feature(site: Site) -> None:
    announce = AgentVersion("9", (SERVING_REPORTS,))
    await site.sees(seen("no-tls"))
    await site.plane.work(site.plane.reports.store, site.device, [announce])
    assert await site.rows()
    await site.plane.work(site.plane.reports.store, site.device, [AgentVersion("9", ())])
    assert await site.rows() == []
    await site.sees(seen("no-tls"))
    await site.plane.certificates.unassign(1, site.device, site.cert)
    assert await site.rows() == []
    await site.sees(seen("no-tls"))
    assert await site.rows() == [], "it is not assigned"
    site.cert = int((await site.plane.certificates.issue(1, ["b.test"], device_ids=[site.device]))["id"])
    await site.sees(seen("no-tls"))
    await site.plane.work(site.plane.devices.revoke, 1, site.device, "lost")
    assert await site.rows() == []


async def test_a_device_cannot_fill_the_table(site: Site) -> None:
    for start in range(0, 1000, 200):
        await site.sees(*(seen("no-tls", endpoint=f"127.0.0.1:{start + port}") for port in range(200)))
    assert len(await site.rows()) == MAX_ENDPOINTS
    for cert_id in (0, -1, 999, 2**53 - 1):
        await site.plane.work(
            site.plane.reports.store, site.device, [EndpointsReport(cert_id=cert_id, endpoints=(seen("no-tls"),))]
        )
    assert {row["cert_id"] for row in await site.rows()} == {site.cert}
