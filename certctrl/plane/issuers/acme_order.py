"""One attempt of an order at an ACME CA: continue the order of the last attempt, or make a new one.

The memo records the order's URL before anything else happens to it, and proofs before they are published. Proofs are
withdrawn once the CA has decided, even if the attempt is cancelled; after a crash, the next attempt withdraws them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import attrs
import trio

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.plane.acme import orders
from certctrl.plane.acme.answers import Authorization, Challenge, Order, invalid_answer
from certctrl.plane.acme.chains import check_leaf
from certctrl.plane.acme.client import AcmeClient
from certctrl.plane.acme.problems import AcmeError, Problem, refusal
from certctrl.plane.challenges.chosen import choose_kind
from certctrl.plane.challenges.solver import Asker, Proof, Solver
from certctrl.plane.issuers.acme_memo import MAX_AGE, Memo, csr_digest
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerError
from certctrl.text import one_line

CLEAN_UP_SECONDS = 120.0
STOPPING_SECONDS = 3.0
"""Time to withdraw proofs in a cancelled attempt; the next attempt withdraws the rest."""
_MAX_CONCURRENT = 4
_EXPLAINED = 5
_EXPLANATION = 600
_GONE = frozenset({"malformed", "unauthorized", "orderNotFound", "notFound", ""})

T = TypeVar("T")
V = TypeVar("V")

log = logging.getLogger("certctrl.Plane.acme")


@lean.frozen
class Attempt:
    """A challenge to answer."""

    authorization: Authorization
    challenge: Challenge
    proof: Proof


class AcmeOrder:
    """One attempt of one order."""

    def __init__(
        self,
        client: AcmeClient,
        solver: Solver,
        request: CertificateRequest,
        *,
        directory_url: str,
        profile: str,
        preferred_chain: str,
        take: Callable[[], Awaitable[None]],
    ) -> None:
        """``take`` counts a new order, and raises IssuerError if the budget is used up."""
        self._client = client
        self._solver = solver
        self._request = request
        self._directory_url = directory_url
        self._profile = request.profile or profile
        self._preferred_chain = preferred_chain
        self._take = take
        self._memo = Memo.parse(request.memo)

    async def run(self) -> IssuedChain:
        """Return the certificate; raises IssuerError."""
        order = await self._resume_order()
        if order is None:
            order = await self._make_order()
        if order.status == "pending":
            order = await self._authorize(order)
        elif self._memo.proofs:
            await self._clean_up()
        if order.status == "ready":
            order = await orders.finalize(self._client, order, self._request.csr_der)
        else:
            order = await orders.wait_until_finished(self._client, order)
        if order.status != "valid":
            await self._remember(attrs.evolve(self._memo, order_url=""))
            raise refusal("the order", order.problem or Problem(kind="", detail=f"the order is {order.status}"))
        chain = await orders.download(self._client, order, self._preferred_chain)
        check_leaf(chain.leaf, self._request.csr_der, self._request.names)
        if self._memo.proofs:  # an earlier attempt could not withdraw them
            await self._clean_up()
        return chain.issued()

    async def _resume_order(self) -> Order | None:
        """Return the order of an earlier attempt if it can still be completed."""
        memo, digest = self._memo, csr_digest(self._request.csr_der)
        age = self._client.wall_now() - memo.made_at
        if not memo.order_url or memo.directory_url != self._directory_url or not 0 <= age < MAX_AGE:
            return None
        try:
            order = await orders.fetch_order(self._client, memo.order_url)
        except AcmeError as error:
            if error.problem.kind in _GONE and error.problem.status in (400, 403, 404, 410):
                return None
            raise
        if order.status == "invalid" or (order.status in ("processing", "valid") and memo.csr_sha256 != digest):
            return None
        if memo.csr_sha256 != digest:
            await self._remember(attrs.evolve(memo, csr_sha256=digest))
        return order

    async def _make_order(self) -> Order:
        """Make an order, and record its URL in the memo."""
        request = self._request
        orders.require_profile(await self._client.directory(), self._profile)
        await self._take()
        order = await orders.new_order(
            self._client, request.names, profile=self._profile, replaces_pem=request.replaces_pem
        )
        memo = attrs.evolve(
            self._memo,
            directory_url=self._directory_url,
            order_url=order.url,
            made_at=self._client.wall_now(),
            csr_sha256=csr_digest(request.csr_der),
        )
        await self._remember(memo)
        return order

    async def _authorize(self, order: Order) -> Order:
        """Prove all names of an order that are not yet authorized."""
        found = await for_each(lambda url: orders.fetch_authorization(self._client, url), order.authorizations)
        self._refuse_others(found)
        await self._refuse_ended(found)
        attempts = [self._choose_challenge(one) for one in found if one.status == "pending"]
        try:
            if attempts:
                await self._prove(attempts)
            return await orders.wait_until_ready(self._client, order)
        finally:
            if self._memo.proofs:
                stopping = trio.current_effective_deadline() <= trio.current_time()
                with trio.CancelScope(shield=True):  # bounded by its own scope
                    await self._clean_up(STOPPING_SECONDS if stopping else CLEAN_UP_SECONDS)

    async def _prove(self, attempts: Sequence[Attempt]) -> None:
        proofs = tuple(one.proof for one in attempts)
        await self._remember(self._memo.with_proofs(proofs))
        await self._solver.present(proofs)
        unanswered = [one.challenge for one in attempts if one.challenge.status == "pending"]
        await for_each(lambda challenge: orders.answer_challenge(self._client, challenge), unanswered)
        authorizations = await for_each(
            lambda one: orders.wait_until_decided(self._client, one.authorization), attempts
        )
        refused = [(one, now) for one, now in zip(attempts, authorizations, strict=True) if now.status != "valid"]
        if refused:
            await self._remember(attrs.evolve(self._memo, order_url=""))
            raise await self._validation_error(refused)

    def _choose_challenge(self, authorization: Authorization) -> Attempt:
        """Return the challenge to answer. Raises a permanent IssuerError if no solver answers one that the CA offers."""
        name, wildcard = authorization.identifier.value, authorization.wildcard
        offered = {one.kind: one for one in authorization.challenges if one.status in ("pending", "processing")}
        kind = choose_kind(self._solver, name, wildcard, tuple(offered))
        proof = Proof(
            kind=kind,
            identifier=name,
            token=offered[kind].token,
            key_authorization=self._client.key.key_authorization(offered[kind].token),
        )
        return Attempt(authorization, offered[kind], proof)

    def _refuse_others(self, found: Sequence[Authorization]) -> None:
        """Raise IssuerError for authorizations of names that were not ordered: a CA must not decide what is published."""
        ordered = {orders.plain_name(name) for name in self._request.names}
        for one in found:
            if orders.plain_name(one.identifier.value) not in ordered:
                raise invalid_answer(
                    "order", f"it has an authorization for {one_line(one.name)}, which was not ordered"
                )

    async def _refuse_ended(self, found: Sequence[Authorization]) -> None:
        ended = [one for one in found if one.status not in ("pending", "valid")]
        if ended:
            await self._remember(attrs.evolve(self._memo, order_url=""))
            problem = next((two.problem for two in ended[0].challenges if two.problem is not None), None)
            raise refusal(
                f"the authorization of {ended[0].name}",
                problem or Problem(kind="", detail=f"it is {ended[0].status}"),
            )

    async def _validation_error(self, refused: Sequence[tuple[Attempt, Authorization]]) -> IssuerError:
        """Return the error for names whose validation failed, with the answers as this plane sees them."""
        texts, first = [], None
        for attempt, authorization in refused[:_EXPLAINED]:
            problem = _problem(attempt, authorization)
            first = first or problem
            seen = await self._explain(attempt)
            texts.append(f"{authorization.name} by {attempt.proof.kind}: {problem.text}{f' – {seen}' if seen else ''}")
        if len(refused) > _EXPLAINED:
            texts.append(f"and {len(refused) - _EXPLAINED} more names")
        assert first is not None
        error = refusal("a challenge", first)
        return AcmeError(
            f"the CA refused {'; '.join(texts)}",
            problem=first,
            is_permanent=error.is_permanent,
            retry_after=None,
            fix=error.fix,
        )

    async def _explain(self, attempt: Attempt) -> str:
        text = ""
        with trio.move_on_after(CLEAN_UP_SECONDS / _EXPLAINED):
            try:
                asker = Asker(
                    identities=(await self._client.directory()).meta.caa_identities,
                    account_url=self._client.account_url,
                    wildcard=attempt.authorization.wildcard,
                )
                text = await self._solver.explain(attrs.evolve(attempt.proof, asker=asker))
                text = one_line(text, _EXPLANATION)
            except CertctrlError as error:
                text = one_line(str(error), _EXPLANATION)
        return text

    async def _clean_up(self, seconds: float = CLEAN_UP_SECONDS) -> None:
        """Withdraw all proofs; the memo keeps those that could not be withdrawn."""
        proofs = self._memo.proofs
        names = ", ".join(sorted({proof.identifier for proof in proofs})[:5])
        with trio.move_on_after(seconds) as scope:
            try:
                await self._solver.clean_up(proofs)  # failures are tried again without this order
                await self._remember(attrs.evolve(self._memo, proofs=()))
            except CertctrlError as error:
                log.warning("Challenges of %s could not be withdrawn: %s", names, error)
        if scope.cancelled_caught:
            log.warning("Challenges of %s could not be withdrawn within %.0f s", names, seconds)

    async def _remember(self, memo: Memo) -> None:
        await self._request.remember(memo.dump())
        self._memo = memo


async def for_each(function: Callable[[T], Awaitable[V]], items: Sequence[T]) -> list[V]:
    """Run a function for all items, a few at a time; the first error cancels the others and is raised alone."""
    results: dict[int, V] = {}
    failed: list[CertctrlError] = []
    slots = trio.CapacityLimiter(_MAX_CONCURRENT)

    async def one(index: int, item: T) -> None:
        try:
            async with slots:
                results[index] = await function(item)
        except CertctrlError as error:
            failed.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            nursery.start_soon(one, index, item)
    if failed:
        raise failed[0]
    return [results[index] for index in range(len(items))]


def _problem(attempt: Attempt, authorization: Authorization) -> Problem:
    answered = {one.url: one.problem for one in authorization.challenges}
    return (
        answered.get(attempt.challenge.url)
        or next((one for one in answered.values() if one is not None), None)
        or Problem(kind="", detail=f"the authorization is {authorization.status}")
    )
