"""Shared by poll tests: the path, and a certificate whose issue signals a device."""

from __future__ import annotations

from typing import Any

from plane_world import Device, World

UPDATES = "/apiv1/devices/self/updates"


async def issue(world: World, device: Device, domain: str = "example.com") -> dict[str, Any]:
    row: dict[str, Any] = await world.plane.certificates.issue(1, [domain], device_ids=[device.id])
    return row
