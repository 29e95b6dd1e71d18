"""A plane whose certificates have keys made at their devices."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from csrs import csr
from engine_plane import WALL, new_device, plane_on
from nacl.public import PrivateKey

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.reports import AgentVersion
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage.database import Database

NAMES = ["www.example", "192.0.2.7"]


class Site:
    """A plane on some engine, with its own wall clock."""

    def __init__(self, database: Database) -> None:
        self.now = WALL
        self.plane: Plane = plane_on(database, wall_now=lambda: self.now)
        self.db = database

    async def device(self, name: str = "web-1", *features: str, key: PrivateKey | None = None) -> int:
        """Register a device; again, if it is known."""
        known = await self.plane.work(self.plane.devices.find, 1, name)
        device_id = await new_device(self.plane, name) if known is None else int(known["id"])
        public = bytes((key or PrivateKey.generate()).public_key)

        def register() -> None:
            row = self.plane.devices.find(1, name)
            assert row is not None
            facts = DeviceFacts(device_public_id=name, name=name, features=features or ("csr",))
            self.plane.enrolment._register(row, 1, facts, public)

        await self.plane.work(register)
        return device_id

    async def starts(self, device_id: int, *features: str) -> None:
        """Let the agent of a device start, with these features."""
        await self.plane.work(self.plane.reports.store, device_id, [AgentVersion("0.9", features)])

    async def issue(self, *device_ids: int, **options: Any) -> dict[str, Any]:
        options = {"key_origin": "device"} | options
        return await self.plane.certificates.issue(1, NAMES, device_ids=device_ids, **options)

    async def sends(self, device_id: int, cert_id: int, request: bytes, order_id: int | None = None) -> dict[str, Any]:
        """Send a signing request for the open order of a certificate."""
        pem = x509.load_der_x509_csr(request).public_bytes(Encoding.PEM).decode()
        order = order_id or (await self.shown(cert_id))["order_id"]
        return await self.plane.work(self.plane.device_keys.receive, device_id, cert_id, order, pem)

    async def meets(self, device_id: int, cert_id: int) -> dict[str, Any]:
        """Send a signing request with a new key, and let the certificate be issued."""
        await self.sends(device_id, cert_id, csr(NAMES))
        await self.run_orders()
        return await self.shown(cert_id)

    async def run_orders(self) -> None:
        """Run the orders that are due."""
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.plane.order_runner.run)
                while await self.plane.work(self.db.one, "SELECT 1 FROM orders WHERE state = 'ready'") is not None:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    async def shown(self, cert_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.certificates.show, 1, cert_id)

    async def detail(self, device_id: int, cert_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.certificates.detail, device_id, cert_id)

    async def signals(self, device_id: int) -> list[tuple[str, dict[str, Any]]]:
        page = await self.plane.work(self.plane.stream.read, device_id, None, 100)
        return [(one["type"], one["ref"]) for one in page.signals]

    async def types(self, device_id: int) -> list[str]:
        return [kind for kind, _ in await self.signals(device_id)]


async def refused(answer: Any) -> tuple[int, str, Any]:
    with pytest.raises(ErrorResponse) as caught:
        await answer
    return caught.value.status, caught.value.key, caught.value.params.get("reason")
