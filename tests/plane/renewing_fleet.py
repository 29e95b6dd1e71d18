"""A fleet whose certificate is renewed in waves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from engine_plane import WALL, plane_on, registered

from certctrl.model.plan import OutcomeKind
from certctrl.plane.core import Plane
from certctrl.plane.devices.acks import Ack
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

CERT = 1


@attrs.define
class Fleet:
    """Five devices that share a certificate, and two planes that they use."""

    planes: list[Plane]
    devices: list[int]
    now: list[float]
    first: str = ""
    """Serial number of the certificate at the start."""

    @property
    def plane(self) -> Plane:
        return self.planes[0]

    async def start(self, *waves: str, certs: tuple[int, ...] = (CERT,), **rules: Any) -> int:
        given = RolloutRules(waves=waves or ("1", "2"), **rules)
        done = await self.plane.work_long(self.plane.renewal_rollouts.start, 1, certs, given)
        return int(done["id"])

    async def round(self) -> None:
        for plane in self.planes:
            await plane.rollout_runner.round()
            await plane.order_runner.run_once()

    async def serial(self, cert_id: int = CERT) -> str:
        return str((await self.plane.work(self.plane.certificates.show, 1, cert_id))["serial_number"])

    async def told(self, place: int, cert_id: int = CERT) -> str:
        """Return the serial number that a device is told, after checking that all answers agree."""
        device, certificates = self.devices[place], self.plane.certificates
        detail = await self.plane.work(certificates.detail, device, cert_id)
        (row,) = [one for one in await self.plane.work(certificates.page, device, 0, 100) if one["id"] == cert_id]
        (listed,) = [one for one in (await self.plane.work(certificates.list_of, device)).rows if one["id"] == cert_id]
        serials = {detail["serial_number"], row["serial_number"], listed["serial_number"]}
        if row["status"] != "revoked":
            material = await self.plane.work(certificates.materials, device, cert_id)
            assert material["certificate_pem"] == detail["certificate_pem"]
            serials.add(material["serial_number"])
        (serial,) = serials
        return str(serial)

    async def new(self) -> list[int]:
        """Return the devices that are told another certificate than the first, by their place."""
        return [place for place in range(len(self.devices)) if await self.told(place) != self.first]

    async def signals(self, place: int) -> list[tuple[str, str]]:
        """Return the signals of a device about its certificate, with their serial numbers."""
        page = await self.plane.work(self.plane.stream.read, self.devices[place], None, 100)
        return [
            (one["type"], one["ref"].get("serial", "")) for one in page.signals if one["ref"].get("cert_id") == CERT
        ]

    async def ack(
        self, *places: int, outcome: OutcomeKind = OutcomeKind.APPLIED, serial: str = "", cert_id: int = CERT
    ) -> None:
        serial = serial or await self.serial(cert_id)
        good = outcome in (OutcomeKind.APPLIED, OutcomeKind.UNCHANGED)
        for place in places:
            ack = Ack(
                type="cert.renewed", ts_ms=int(self.now[0] * 1000), ref={"cert_id": cert_id, "serial": serial},
                outcome=outcome, detail="" if good else "because",
                deployed=[{"cert_id": cert_id, "serial": serial, "served": True}] if good else [],
            )  # fmt: skip
            self.now[0] += 1
            await self.plane.work(self.plane.reports.store, self.devices[place], [ack])

    async def heard(self) -> None:
        for device in self.devices:
            self.plane.devices.seen(device, "192.0.2.7", "", self.now[0])
        await self.plane.work(self.plane.devices.save_sightings)

    async def state(self, rollout: int) -> tuple[str, str]:
        shown = await self.plane.work(self.plane.rollouts.show, 1, rollout)
        return shown["state"], shown["reason"] or shown["waits"]

    async def keys(self) -> int:
        """Return the number of former versions that the plane keeps."""
        rows = await self.plane.work(self.plane.database.all, "SELECT 1 FROM held_certificates")
        return len(rows)


async def renewing_fleet(open_database: Callable[[], Database]) -> Fleet:
    """Return a fleet that has deployed its certificate."""
    keyring, now = Keyring.open(None), [WALL]
    planes = [plane_on(open_database(), keyring, wall_now=lambda: now[0]) for _ in range(2)]
    devices = [(await registered(planes[0], f"d{number}"))[0] for number in range(5)]
    found = Fleet(planes, devices, now)
    await planes[0].certificates.issue(1, ["www.example.com"], device_ids=devices)
    found.first = await found.serial()
    now[0] += 100
    await found.ack(*range(5))
    await found.heard()
    return found
