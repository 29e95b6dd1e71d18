"""A plane that knows what its devices report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from engine_plane import WALL, plane_on, registered

from certctrl.model.plan import OutcomeKind, named_cause
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import Ack
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.storage.database import Database

APPLIED, FAILED, ROLLED_BACK = OutcomeKind.APPLIED, OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK


@attrs.define
class Site:
    """A plane with devices, and a clock."""

    plane: Plane
    now: list[float]
    sent: int = 0

    async def device(self, name: str) -> int:
        device_id, _ = await registered(self.plane, name)
        return device_id

    async def certificate(self, name: str, *devices: int) -> int:
        return int((await self.plane.certificates.issue(1, [name], device_ids=devices))["id"])

    async def serial(self, cert_id: int) -> str:
        row = await self.plane.work(
            self.plane.database.one, "SELECT serial_number FROM certificates WHERE id = ?", cert_id
        )
        assert row is not None
        return str(row["serial_number"])

    async def noted(self) -> list[Any]:
        return await self.plane.work(self.plane.database.all, "SELECT * FROM deployments")

    async def report(
        self,
        device_id: int,
        cert_id: int,
        outcome: OutcomeKind = APPLIED,
        codes: str = "",
        *,
        serial: str = "",
        served: bool = False,
        kind: str = "cert.renewed",
        detail: str = "it says no",
        ref: dict[str, Any] | None = None,
        together: bool = False,
    ) -> None:
        """Report an outcome, as a device does."""
        self.sent += 1
        deployed = [{"cert_id": cert_id, "serial": serial} | ({"served": True} if served else {})] if serial else []
        ack = Ack(
            type=kind,
            ts_ms=self.sent,
            ref={"cert_id": cert_id} if ref is None else ref,
            outcome=outcome,
            detail=detail if outcome in (FAILED, ROLLED_BACK) else "",
            cause=named_cause(*codes.split()) if codes else None,
            deployed=deployed,
        )
        if together:
            await self.plane.work(self.plane.reports.store_acks, [(DeviceSession(device_id, 1, 1), [ack])])
        else:
            await self.plane.work(self.plane.reports.store, device_id, [ack])

    async def devices(self, **query: Any) -> dict[str, Any]:
        return await self.plane.work_long(self.plane.fleet.devices, 1, Query(**query))

    async def certificates(self, **query: Any) -> dict[str, Any]:
        return await self.plane.work_long(self.plane.fleet.certificates, 1, Query(**query))

    async def causes(self) -> list[dict[str, Any]]:
        answer = await self.plane.work_long(self.plane.fleet.causes, 1)
        found: list[dict[str, Any]] = answer["causes"]
        return found

    async def word(self, cert_id: int) -> str:
        """Return the word of a certificate on its only device."""
        for word in ("expired", "still served", "stuck", "waiting", "deployed", "served", "withdrawn"):
            rows = (await self.certificates(states=(word,)))["certificates"]
            if word == "expired":  # also a word of certificates
                rows = [row for row in rows if row["devices"]]
            if cert_id in [row["id"] for row in rows]:
                return word
        raise AssertionError("no word")


def fleet_site(open_database: Callable[[], Database]) -> Site:
    """Return a plane without devices."""
    now = [WALL]
    return Site(plane_on(open_database(), wall_now=lambda: now[0]), now)


def names(answer: dict[str, Any], kind: str = "devices") -> list[str]:
    return [row["name"] for row in answer[kind]]
