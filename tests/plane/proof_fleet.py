"""Two planes that publish proofs in one DNS in memory, and what they leave there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from engine_plane import WALL, plane_on
from fake_dns import PRIMARY, RESOLVER, FakeDns
from shared_solver import shared

from certctrl.plane.challenges.dns_lookup import DnsLookup
from certctrl.plane.challenges.leftovers import Leftovers
from certctrl.plane.challenges.published import PublishedProofs
from certctrl.plane.challenges.rfc2136 import Rfc2136Settings, Rfc2136Solver
from certctrl.plane.challenges.shared import SharedSolver
from certctrl.plane.challenges.solver import Proof, dns_record_value
from certctrl.plane.core import Plane
from certctrl.plane.issuers.issuer import Issuer
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

NAME = "_acme-challenge.www.example.com"


def proof(token: str = "t1", identifier: str = "www.example.com") -> Proof:
    return Proof(kind="dns-01", identifier=identifier, token=token, key_authorization=f"{token}.account")


@attrs.define(eq=False)
class DnsIssuer:
    """An issuer whose proofs are in a DNS in memory."""

    fleet: Fleet
    plane: Plane

    async def take_back(self, proofs: Sequence[Proof]) -> None:
        await self.fleet.solver(self.plane, "").clean_up(proofs)


class Fleet:
    """Two planes on one database that publish in one DNS, and their clock."""

    def __init__(self, open_database: Callable[[], Database]) -> None:
        self.now = WALL
        self.dns = FakeDns().zone("example.com", PRIMARY)
        self._open, self._keyring = open_database, Keyring.open(None)
        self.one, self.other = self.started(), self.started()

    def started(self) -> Plane:
        return plane_on(self._open(), self._keyring, lambda: self.now)

    def solver(self, plane: Plane, holder: str | None = None) -> SharedSolver:
        inner = Rfc2136Solver(Rfc2136Settings(propagation_seconds=1), [], DnsLookup(self.dns, [RESOLVER]))
        return shared(inner, plane.database, lambda: self.now, holder=holder)

    def published(self, plane: Plane) -> PublishedProofs:
        return PublishedProofs(plane.database, lambda: self.now)

    def leftovers(self, plane: Plane, issuer: object = None) -> Leftovers:
        async def issuer_of(name: str) -> Issuer:
            assert name == "le"
            return issuer or DnsIssuer(self, plane)  # type: ignore[return-value]

        return Leftovers(plane.database, self.published(plane), issuer_of, plane.problems)

    def texts(self) -> list[str]:
        return self.dns.records.get((NAME, "TXT"), [])

    async def rows(self, table: str = "published_proofs") -> list[Any]:
        return await self.one.work(self.one.database.all, f"SELECT * FROM {table}")

    def refuse(self, refused: bool = True) -> None:
        if refused:
            self.dns.rcodes[PRIMARY.address, "UPDATE"] = "REFUSED"
        else:
            self.dns.rcodes.clear()


def txt(one: Proof) -> str:
    return f'"{dns_record_value(one)}"'
