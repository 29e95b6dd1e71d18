"""The interface of issuers and of kinds of issuers, with their requests and results.

Kinds are entry points of the group ``certctrl.issuers``. An issuer gets a certificate signing request and returns a
chain; it never sees a private key, so that keys can be made on hosts. An order may take days, and a crash may happen at
any moment: an issuer keeps the state from which it continues in the memo of the order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError, ExitStatus
from certctrl.model.offload import Offload
from certctrl.plane.ca import crl
from certctrl.plane.ca.issuer import BuiltinCa
from certctrl.plane.challenges.solver import Proof, Solver
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

BUILTIN = "builtin"
"""The name of the issuer that is the plane's own CA; it needs no settings."""
REASONS = tuple(crl.REASONS)
"""Reasons for a revocation that an operator may give (RFC 5280, section 5.3.1)."""


class IssuerError(CertctrlError):
    """An issuer, or a server it depends on, refuses or fails."""

    exit_status = ExitStatus.UNAVAILABLE

    def __init__(
        self,
        what: str,
        *,
        fix: str | None = None,
        is_permanent: bool = False,
        about_request: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what, fix=fix)
        self.is_permanent = is_permanent
        """Whether the same request will be refused again until an operator changes something."""
        self.about_request = about_request
        """Whether a signing request for another key may be accepted."""
        self.retry_after = retry_after
        """Seconds until the issuer accepts a retry; None if unknown."""


async def forget(memo: str) -> None:
    """Store no memo, for requests that need not survive a crash."""


@lean.frozen(kw_only=True)
class CertificateRequest:
    """A certificate to issue."""

    names: tuple[str, ...]
    """Canonical; the first is primary. IP addresses as text; wildcards as ``*.example.com``."""
    csr_der: bytes
    """PKCS#10, signed by the certificate's key."""
    validity_seconds: int
    profile: str = ""
    must_staple: bool = False
    replaces_pem: str = ""
    """The certificate that this one replaces."""
    order_id: int = 0
    """The same at each attempt; 0: there is no order."""
    user_id: int = 0
    """The user of the certificate."""
    device_ids: tuple[int, ...] = ()
    """The devices that will serve it, for challenges at hosts."""
    memo: str = attrs.field(default="", repr=False)
    """The memo that an earlier attempt of the same order stored."""
    remember: Callable[[str], Awaitable[None]] = attrs.field(default=forget, repr=False)
    """Store a memo durably; the next attempt gets it, even after a crash."""


SolverMaker = Callable[[Sequence[Mapping[str, Any]], Mapping[str, bytes], CertificateRequest | None], Solver]
"""Makes the solver of the list ``challenges`` of an issuer's settings, with the issuer's secrets, for a request.

Without a request, the solver can only take proofs back.
"""


@lean.frozen(kw_only=True)
class IssuedChain:
    """An issued certificate."""

    certificate_pem: str
    chain_pem: str
    """The leaf's issuer first, without the root."""


@lean.frozen
class RenewalWindow:
    """When a CA wants a certificate to be renewed; seconds since the epoch."""

    start: float
    end: float
    explanation_url: str = ""
    check_again_at: float = 0


class Issuer(Protocol):
    """One issuer with its settings; raises IssuerError."""

    async def issue(self, request: CertificateRequest) -> IssuedChain:
        """Return a new certificate; repeating a request after a crash must be safe."""

    async def revoke(self, certificate_pem: str, chain_pem: str, reason: str) -> None:
        """Revoke a certificate for one of ``REASONS``; idempotent."""

    async def renewal_window(self, certificate_pem: str, chain_pem: str) -> RenewalWindow | None:
        """Return the window in which the CA wants a certificate renewed; None if it suggests none."""

    async def check(self) -> dict[str, str]:
        """Return facts for operators, such as the remaining limits; raises IssuerError if it cannot issue."""


@runtime_checkable
class AccountHolder(Protocol):
    """An issuer with an account at its CA that operators can change; raises IssuerError."""

    async def change_key(self) -> None:
        """Replace the key of the account."""

    async def deactivate(self) -> None:
        """End the account, which cannot be undone."""


@runtime_checkable
class ProofTaker(Protocol):
    """An issuer that publishes proofs; raises IssuerError."""

    async def take_back(self, proofs: Sequence[Proof]) -> None:
        """Remove proofs that its solver published for orders that no longer need them; failures are noted there."""


class IssuerContext:
    """The parts of the plane that an issuer uses."""

    def __init__(
        self,
        name: str,
        *,
        database: Database,
        keyring: Keyring,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
        offload: Offload,
        solvers: SolverMaker,
        ca: BuiltinCa | None = None,
    ) -> None:
        """``ca`` is the plane's own CA."""
        self.name = name
        self.database = database
        self.keyring = keyring
        self.settings = settings
        self.wall_now = wall_now
        self.offload = offload
        self.solvers = solvers
        self.ca = ca

    async def load(self, item: str) -> bytes | None:
        """Return a durable secret of this issuer."""
        return await self.database.work(self._load, item)

    async def store(self, item: str, value: bytes) -> None:
        """Store a durable secret of this issuer, sealed; all planes on the database see it."""
        await self.database.work(self._store, item, value)

    async def store_first(self, item: str, value: bytes) -> bytes:
        """Store a durable secret unless there is one; return the one that is stored."""
        return await self.database.work(self._store_first, item, value)

    def _store_first(self, item: str, value: bytes) -> bytes:
        self.database.run(
            "INSERT INTO issuer_items (issuer, name, value_enc) VALUES (?, ?, ?) ON CONFLICT (issuer, name) DO NOTHING",
            self.name,
            item,
            self.keyring.seal(self._purpose(item), value),
        )
        return self._load(item) or value

    def _load(self, item: str) -> bytes | None:
        sql = "SELECT value_enc FROM issuer_items WHERE issuer = ? AND name = ?"
        row = self.database.one(sql, self.name, item)
        return None if row is None else self.keyring.unseal(self._purpose(item), row["value_enc"])

    def _store(self, item: str, value: bytes) -> None:
        self.database.run(
            "INSERT INTO issuer_items (issuer, name, value_enc) VALUES (?, ?, ?)"
            " ON CONFLICT (issuer, name) DO UPDATE SET value_enc = excluded.value_enc",
            self.name,
            item,
            self.keyring.seal(self._purpose(item), value),
        )

    def _purpose(self, item: str) -> str:
        return f"issuer {self.name} {item}"


class IssuerKind(Protocol):
    """A kind of issuer; an entry point of ``certctrl.issuers`` names an object like this."""

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return the settings in full; ConfigError names the field, and how to fix it."""

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> Issuer:
        """Return an issuer with settings of ``check_settings``."""
