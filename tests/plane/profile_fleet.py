"""A fleet whose profile is changed in waves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from engine_plane import WALL, new_device, plane_on

from certctrl.model.plan import OutcomeKind
from certctrl.plane.audit.log import Filter
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import Ack
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

FILES = {
    "id": "files", "type": "copy", "ob_name": "www.example.com", "from": ["combined.pem"], "to": ["/etc/tls/www.pem"],
}  # fmt: skip
NEW = FILES | {"to": ["/etc/tls/new.pem"]}


@attrs.define
class Fleet:
    """Devices that have the first version of a profile, and the planes that they use."""

    planes: list[Plane]
    devices: list[int]
    now: list[float]

    @property
    def plane(self) -> Plane:
        return self.planes[0]

    async def start(self, *waves: str, **rules: Any) -> int:
        given = RolloutRules(waves=waves or ("1", "10%"), **rules)
        done = await self.plane.rollouts.start(1, "p", ProfileChange(installs=[NEW]), given)
        return int(done["id"])

    async def round(self) -> None:
        for plane in self.planes:
            await plane.rollout_runner.round()

    async def ack(self, *devices: int, outcome: OutcomeKind = OutcomeKind.APPLIED) -> None:
        """Report an outcome of the newest config of devices, as their agents do."""
        for device in devices:
            version = (await self.plane.work(self.plane.installs.versions, [device]))[device]
            ack = Ack(
                type="install.updated", ts_ms=version, ref={"version": version}, outcome=outcome, detail="because"
            )
            await self.plane.work(self.plane.reports.store, device, [ack])

    async def heard(self, *devices: int) -> None:
        for device in devices:
            self.plane.devices.seen(device, "192.0.2.7", "", self.now[0])
        await self.plane.work(self.plane.devices.save_sightings)

    async def new(self) -> list[int]:
        """Return the devices that have the new version, by their place."""
        found = []
        for place, device in enumerate(self.devices):
            document = await self.plane.work(self.plane.installs.document, device)
            if document["installs"] == [NEW]:
                found.append(place)
        return found

    async def show(self, rollout: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.rollouts.show, 1, rollout)

    async def recorded(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what the planes have recorded of their own work, the oldest first."""
        entries = await self.plane.work(self.plane.audit.page, Filter(who="plane"), 0, 100)
        return [(entry["action"], entry["detail"]) for entry in reversed(entries)]

    async def state(self, rollout: int) -> tuple[str, str]:
        shown = await self.show(rollout)
        return shown["state"], shown["reason"] or shown["waits"]


async def profile_fleet(open_database: Callable[[], Database]) -> Fleet:
    """Return a fleet with the first version of a profile."""
    keyring, now = Keyring.open(None), [WALL]
    planes = [plane_on(open_database(), keyring, wall_now=lambda: now[0]) for _ in range(2)]
    devices = [await new_device(planes[0], f"d{number}") for number in range(6)]
    found = Fleet(planes, devices, now)
    await planes[0].profiles.put(1, "p", ProfileChange(devices="*", installs=[FILES]))
    await found.heard(*devices)
    return found
