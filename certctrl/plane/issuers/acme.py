"""Issuers of the kind ``acme``: a CA that speaks ACME, by one account."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from certctrl.plane.acme import accounts, orders
from certctrl.plane.acme.client import AcmeClient, CaState
from certctrl.plane.acme.http import CaHttp, CaPlaces, connected
from certctrl.plane.acme.jws import AccountKey
from certctrl.plane.acme.nonces import Nonces
from certctrl.plane.acme.problems import AcmeError
from certctrl.plane.challenges.solver import Proof
from certctrl.plane.clock import monotonic
from certctrl.plane.issuers.acme_account import AcmeAccount
from certctrl.plane.issuers.acme_budget import SharedBudget
from certctrl.plane.issuers.acme_order import AcmeOrder
from certctrl.plane.issuers.acme_settings import AcmeSettings, checked_settings
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerContext, IssuerError, RenewalWindow

MAX_BLOCK = 3600.0
"""Most seconds that a rate limit stops all orders of an issuer; many limits are about one name only."""
DEFAULT_BLOCK = 900.0
_TOO_MANY, _NOT_FOUND = 429, 404


class AcmeIssuer:
    """One account at one CA."""

    def __init__(self, settings: AcmeSettings, secrets: Mapping[str, bytes], context: IssuerContext) -> None:
        self._settings = settings
        self._secrets = secrets
        self._context = context
        self._known = CaState(Nonces(monotonic))
        self._account = AcmeAccount(context, settings, self._known)
        self._budget = SharedBudget(context.database, context.name, settings.budget)
        self._places = CaPlaces(settings.directory_url, settings.other_hosts)

    def __repr__(self) -> str:
        return f"AcmeIssuer({self._settings.directory_url})"

    async def issue(self, request: CertificateRequest) -> IssuedChain:
        """Return a certificate, after the challenges of its names."""
        settings = self._settings
        await self._require_open()
        async with self._connected() as http:
            order = AcmeOrder(
                await self._account.client(http),
                self._context.solvers(settings.challenges, self._secrets, request),
                request,
                directory_url=settings.directory_url,
                profile=settings.profile,
                preferred_chain=settings.preferred_chain,
                take=self._take,
            )
            return await order.run()

    async def revoke(self, certificate_pem: str, chain_pem: str, reason: str) -> None:
        """Revoke a certificate that the account has ordered."""
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode("ascii"))
        async with self._connected() as http:
            await orders.revoke(await self._account.client(http), certificate, reason)

    async def renewal_window(self, certificate_pem: str, chain_pem: str) -> RenewalWindow | None:
        """Return the window that the CA suggests (RFC 9773); needs no account."""
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode("ascii"))
        async with self._connected() as http:
            return await orders.renewal_window(self._anonymous(http), certificate)

    async def check(self) -> dict[str, str]:
        """Return facts about the CA and the account, which is registered if needed."""
        async with self._connected() as http:
            directory = await self._anonymous(http).directory(max_age=0)
            client = await self._account.client(http)
            account = await accounts.fetch(client)
        if account.status != "valid":
            raise IssuerError(
                f"the account {account.url} is {account.status}",
                fix="add the issuer again under another name, which registers a new account",
                is_permanent=True,
            )
        facts = {
            "directory": self._settings.directory_url,
            "account": f"{account.url} ({account.status})",
            "orders left": await self._left(),
            "renewal information": "yes" if directory.renewal_info else "no",
        }
        if directory.meta.profiles:
            facts["profiles"] = ", ".join(directory.meta.profiles)
        blocked = await self._blocked_until()
        if blocked > self._context.wall_now():
            facts["blocked until"] = _time(blocked)
        return facts

    async def take_back(self, proofs: Sequence[Proof]) -> None:
        """Remove proofs that orders have left."""
        await self._context.solvers(self._settings.challenges, self._secrets, None).clean_up(proofs)

    async def change_key(self) -> None:
        """Replace the key of the account."""
        async with self._connected() as http:
            await self._account.change_key(http)

    async def deactivate(self) -> None:
        """End the account at the CA."""
        async with self._connected() as http:
            await self._account.deactivate(http)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[CaHttp]:
        """Yield a connection to the CA; rate limits and account errors that it reports are recorded."""
        try:
            async with connected(self._places, self._settings.ca_file, self._settings.proxy) as http:
                yield http
        except AcmeError as error:
            if error.is_permanent and await self._account.was_changed():
                error.is_permanent, error.fix = False, "wait; the order is tried again with the present account"
            self._account.reload()
            if error.problem.status == _NOT_FOUND:
                self._known.directory = None  # its URLs may have changed
            if error.problem.is_about("accountDoesNotExist"):
                await self._account.mark_unregistered()
                error.is_permanent, error.fix = (
                    False,
                    "wait; the order is tried again with a new account of the same key",
                )
            if error.problem.kind == "rateLimited" or error.problem.status == _TOO_MANY:
                error.retry_after = DEFAULT_BLOCK if error.retry_after is None else error.retry_after
                error.is_permanent = False
                await self._block(min(error.retry_after, MAX_BLOCK))
            raise

    def _anonymous(self, http: CaHttp) -> AcmeClient:
        """Return a client for requests that need no account."""
        return AcmeClient(http, self._settings.directory_url, AccountKey.new(), self._known, self._context.wall_now)

    async def _take(self) -> None:
        await self._context.database.work(self._budget.take, self._context.wall_now())

    async def _left(self) -> str:
        left = await self._context.database.work(self._budget.left, self._context.wall_now())
        return "unlimited" if left is None else f"{left} of {self._settings.budget}"

    async def _require_open(self) -> None:
        blocked, now = await self._blocked_until(), self._context.wall_now()
        if now < blocked <= now + MAX_BLOCK:  # a clock that was set back does not block for longer
            raise IssuerError(
                f"the CA of {self._context.name} has asked for a pause until {_time(blocked)}",
                fix="wait; the order is tried again then",
                retry_after=blocked - now,
            )

    async def _blocked_until(self) -> float:
        sql = "SELECT blocked_until FROM issuers WHERE name = ?"
        row = await self._context.database.work(self._context.database.one, sql, self._context.name)
        return 0.0 if row is None else float(row["blocked_until"])

    async def _block(self, seconds: float) -> None:
        database, until = self._context.database, self._context.wall_now() + seconds
        sql = "UPDATE issuers SET blocked_until = ? WHERE name = ? AND blocked_until < ?"
        await database.work(database.run, sql, until, self._context.name, until)


class AcmeKind:
    """The kind ``acme``."""

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return the settings in full; raises ConfigError."""
        return checked_settings(settings, secrets)

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> AcmeIssuer:
        """Return the issuer of checked settings."""
        return AcmeIssuer(AcmeSettings.of(settings, secrets), secrets, context)


KIND = AcmeKind()


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
