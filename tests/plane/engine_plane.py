"""A plane on a database of any engine, and devices in it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from nacl.public import PrivateKey

from certctrl.plane.ca.issuer import inline
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

WALL = 1_790_000_000.123456


def plane_on(
    database: Database, keyring: Keyring | None = None, wall_now: Callable[[], float] = lambda: WALL, **settings: Any
) -> Plane:
    with database.transaction():
        return Plane(
            None, database, keyring or Keyring.open(None), settings=PlaneSettings(**settings), wall_now=wall_now,
            monotonic=monotonic, offload=inline,
        )  # fmt: skip


async def new_device(plane: Plane, name: str = "device-1") -> int:
    device = await plane.work(plane.devices.expect, 1, DeviceFacts(device_public_id=name, name=name))
    return int(device["id"])


async def registered(plane: Plane, name: str = "device-1") -> tuple[int, str]:
    """Return a registered device with its access token."""
    device_id = await new_device(plane, name)

    def register() -> str:
        key = bytes(PrivateKey.generate().public_key)
        plane.devices.activate(device_id, DeviceFacts(device_public_id=name, name=name), key)
        return str(plane.sessions.start(device_id)["access_token"])

    return device_id, await plane.work(register)
