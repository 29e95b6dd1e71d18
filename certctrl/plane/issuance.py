"""Issuance: the parts of a plane that issue, order and revoke certificates, assembled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import random

from certctrl import lean
from certctrl.model.offload import Offload
from certctrl.plane.ca.issuer import BuiltinCa, Issuer
from certctrl.plane.certificates.bulk import Bulk
from certctrl.plane.certificates.certificates import Certificates, IssuingParts
from certctrl.plane.certificates.device_keys import DeviceKeys
from certctrl.plane.certificates.imports import Imports
from certctrl.plane.certificates.table import CertificateTable
from certctrl.plane.challenges.leftovers import Leftovers
from certctrl.plane.challenges.making import make_solver
from certctrl.plane.challenges.published import PublishedProofs
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.health.problems import Problems
from certctrl.plane.health.storage_check import StorageCheck
from certctrl.plane.issuers.issuer import IssuerContext
from certctrl.plane.issuers.registry import Issuers
from certctrl.plane.jobs import Jobs
from certctrl.plane.orders.attempts import Attempts
from certctrl.plane.orders.batches import Batches, OrderParts
from certctrl.plane.orders.orders import Orders
from certctrl.plane.orders.problems import OrderProblems
from certctrl.plane.orders.renewal_problems import RenewalProblems
from certctrl.plane.orders.renewals import Renewals
from certctrl.plane.orders.runner import OrderRunner
from certctrl.plane.reserved_names import ReservedNames
from certctrl.plane.revocation.crls import Crls
from certctrl.plane.revocation.revocations import Revocations
from certctrl.plane.revocation.runner import RevocationRunner
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.signal_stream import SignalStream


@lean.frozen(kw_only=True)
class PlaneParts:
    """The parts of a plane that ``Issuance`` uses."""

    database: Database
    keyring: Keyring
    stream: SignalStream
    jobs: Jobs
    settings: PlaneSettings
    ca: BuiltinCa
    crls: Crls
    counters: PlaneCounters
    problems: Problems
    storage_check: StorageCheck
    wall_now: Callable[[], float]
    offload: Offload
    reserved: ReservedNames


class Issuance:
    """The parts, which are attributes of the plane, too."""

    def __init__(self, plane: PlaneParts, issuer: Issuer) -> None:
        """``issuer`` issues within a request."""
        db, wall_now = plane.database, plane.wall_now
        self.reserved = plane.reserved
        self.issuers = Issuers(db, plane.keyring, wall_now, partial(_context, plane))
        self.orders = Orders(db, plane.jobs, wall_now)
        self.table = CertificateTable(db, plane.keyring, plane.stream, wall_now)
        self.revocations = Revocations(db, plane.jobs, plane.crls, wall_now, random)
        order_parts = self._order_parts(plane)
        self.batches = Batches(order_parts, plane.stream, self.reserved)
        self.table.on_stored, self.table.refuse_names = self.revocations.note_replaced, self.reserved.refuse_to_store
        self.device_keys = DeviceKeys(db, self.table, self.orders, plane.stream, wall_now, plane.ca.denied)
        self.orders.request_csr = self.device_keys.ask
        parts = IssuingParts(
            table=self.table,
            issuer=issuer,
            issuers=self.issuers,
            orders=self.orders,
            reserved=self.reserved,
            revocations=self.revocations,
            keys=self.device_keys,
            batches=self.batches,
        )
        self.certificates = Certificates(db, plane.stream, plane.settings, wall_now, parts)
        self.order_runner = OrderRunner(
            db,
            plane.jobs,
            self.issuers,
            Attempts(order_parts, plane.jobs, self.batches, random),
            self.reserved,
            OrderProblems(db, plane.problems, self.issuers),
            plane.counters,
            plane.storage_check,
            wall_now=wall_now,
            offload=plane.offload,
        )
        self.orders.on_due = self.order_runner.wake
        self.revocation_runner = RevocationRunner(db, plane.jobs, self.revocations, self.issuers.get, plane.problems)
        self.revocations.on_due = self.revocation_runner.wake
        self.leftovers = Leftovers(db, PublishedProofs(db, wall_now), self.issuers.get, plane.problems)
        self._assemble_life(plane, parts)

    def _order_parts(self, plane: PlaneParts) -> OrderParts:
        return OrderParts(
            database=plane.database,
            keyring=plane.keyring,
            table=self.table,
            orders=self.orders,
            issuers=self.issuers,
            wall_now=plane.wall_now,
        )

    def _assemble_life(self, plane: PlaneParts, parts: IssuingParts) -> None:
        """Assemble imports, renewals and requests about many certificates."""
        db, wall_now = plane.database, plane.wall_now
        self.imports = Imports(db, self.certificates, parts, wall_now)
        self.bulk = Bulk(db, self.certificates, parts)
        problems = RenewalProblems(db, plane.problems, wall_now)
        used = (
            plane.jobs,
            self.table,
            self.orders,
            self.batches,
            self.issuers,
            problems,
            plane.counters,
            plane.storage_check,
        )
        self.renewals = Renewals(db, *used, wall_now)


def _context(plane: PlaneParts, name: str) -> IssuerContext:
    """Return the context of an issuer."""
    published = PublishedProofs(plane.database, plane.wall_now)
    return IssuerContext(
        name,
        database=plane.database,
        keyring=plane.keyring,
        settings=plane.settings,
        wall_now=plane.wall_now,
        offload=plane.offload,
        solvers=partial(make_solver, SolverParts(plane.database, plane.stream, plane.wall_now, published, name)),
        ca=plane.ca,
    )
