"""A plane with a scripted issuer and a clock, on any engine, for tests of orders and revocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from cryptography import x509
from engine_plane import plane_on
from scripted_issuer import WALL, ScriptedCa, ScriptedKind

from certctrl.plane.ca.crl import issuer_key_id
from certctrl.plane.core import Plane
from certctrl.plane.issuers.registry import NewIssuer
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring


@attrs.define
class Scene:
    """A plane with an issuer ``le``, and a clock."""

    open_database: Callable[[], Database]
    kind: ScriptedKind
    keyring: Keyring = attrs.field(factory=lambda: Keyring.open(None))
    now: float = WALL
    plane: Plane = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.kind.ca.now = lambda: self.now
        self.plane = self.another()

    @property
    def ca(self) -> ScriptedCa:
        return self.kind.ca

    def another(self) -> Plane:
        """Return another plane on the database, or the next one after a crash."""
        return plane_on(self.open_database(), self.keyring, lambda: self.now, crl_url="http://plane.example/crl")

    async def add(self) -> None:
        """Add the issuer."""
        await self.plane.work(self.plane.issuers.put, NewIssuer(name="le", kind="scripted", settings={}))

    async def issue(self, *names: str, issuer: str = "le", **more: Any) -> dict[str, Any]:
        return await self.plane.certificates.issue(1, names or ["www.example.com"], issuer=issuer, **more)

    async def issued(self, *names: str, issuer: str = "le", **more: object) -> dict[str, Any]:
        """Issue a certificate, and run its order if there is one."""
        row = await self.issue(*names, issuer=issuer, **more)
        if row["status"] == "pending":
            assert await self.plane.order_runner.run_once() == 1
        return await self.certificate(row["id"])

    async def revoke(self, cert_id: int, **more: Any) -> dict[str, Any]:
        return await self.plane.certificates.revoke(1, cert_id, **more)

    async def run_revocations(self, expected: int = 1) -> None:
        """Run the revocations that are due, which must be as many as expected."""
        assert await self.plane.revocation_runner.run_once() == expected

    async def certificate(self, cert_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.certificates.show, 1, cert_id)

    async def order(self, order_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.orders.show, 1, order_id)

    async def pem(self, cert_id: int) -> str:
        sql = "SELECT certificate_pem FROM certificates WHERE id = ?"
        row = await self.plane.work(self.plane.database.one, sql, cert_id)
        assert row is not None
        return str(row["certificate_pem"])

    async def listed(self, pem: str, serial: str = "") -> x509.RevokedCertificate | None:
        """Return the entry of a certificate of the built-in CA in its list."""
        crl = await self.plane.crls.get(issuer_key_id(pem))
        assert crl is not None
        number = x509.load_pem_x509_certificate(pem.encode()).serial_number
        found = x509.load_der_x509_crl(crl.der)
        return found.get_revoked_certificate_by_serial_number(int(serial.replace(":", ""), 16) if serial else number)

    async def signals(self, device_id: int) -> list[tuple[str, Any]]:
        page = await self.plane.work(self.plane.stream.read, device_id, None, 100)
        return [(signal["type"], signal["ref"]) for signal in page.signals]

    async def signal_types(self, device_id: int) -> list[str]:
        return [kind for kind, _ in await self.signals(device_id)]


def revocation_states(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the serial number and the state of each revocation of a certificate."""
    return [(one["serial_number"], one["state"]) for one in row["revocations"]]
