"""Leftovers: take back the proofs that orders have left, because a server refused it or a plane ended."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from certctrl.errors import CertctrlError
from certctrl.plane.challenges.published import PublishedProofs
from certctrl.plane.challenges.solver import Proof
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.issuers.issuer import Issuer, IssuerError, ProofTaker
from certctrl.plane.storage.database import Database

SWEEP_SECONDS = 30.0
ATTEMPT_SECONDS = 120.0
"""Shorter than ``REMOVAL_SECONDS``, after which another plane tries it."""

log = logging.getLogger("certctrl.Plane")


class Leftovers:
    """Takes proofs back that are due, those of each issuer by its present settings."""

    def __init__(
        self,
        database: Database,
        published: PublishedProofs,
        issuer_of: Callable[[str], Awaitable[Issuer]],
        problems: Problems,
    ) -> None:
        self._db = database
        self._published = published
        self._issuer_of = issuer_of
        self._problems = problems

    async def run(self) -> None:
        """Take back what is due, until cancelled."""
        while True:
            try:
                await self.run_once()
            except CertctrlError as error:
                log.error("proofs that are to be taken back cannot be read: %s", error)
            await trio.sleep(SWEEP_SECONDS)

    async def run_once(self) -> int:
        """Make one attempt at each proof that is due, and report those that cannot be taken back; return their number."""
        due = await self._db.work(self._published.claim)
        async with trio.open_nursery() as nursery:
            for name, proofs in due.items():
                nursery.start_soon(self._take_back, name, proofs)
        await self._report()
        return sum(map(len, due.values()))

    async def _take_back(self, name: str, proofs: Sequence[Proof]) -> None:
        try:
            failure = await self._attempt(name, proofs)
            if failure is not None:
                await self._db.work(self._published.settle, proofs, dict.fromkeys(proofs, failure))
        except CertctrlError as error:  # they are due again when the removal should have ended
            log.error("proofs of issuer %s cannot be noted: %s", name, error)

    async def _attempt(self, name: str, proofs: Sequence[Proof]) -> CertctrlError | None:
        """Return why no proof could be taken back; those of single proofs are noted already."""
        try:
            issuer = await self._issuer_of(name)
            if not isinstance(issuer, ProofTaker):
                return IssuerError(f"issuer {name} publishes no proofs any longer", fix="remove it by hand")
            with trio.move_on_after(ATTEMPT_SECONDS) as scope:
                await issuer.take_back(proofs)
        except CertctrlError as error:
            return error
        except Exception as error:  # a bug in an issuer must not end the plane
            log.error("proofs of issuer %s: unexpected", name, exc_info=error)
            return IssuerError(f"unexpected {type(error).__name__} in issuer {name}", fix="report it")
        return IssuerError(f"no end within {ATTEMPT_SECONDS:.0f} s") if scope.cancelled_caught else None

    async def _report(self) -> None:
        count, oldest = await self._db.work(self._published.failing)
        if oldest is None:
            self._problems.clear(ProblemName.PROOFS)
            return
        what = f"the {oldest['kind']} proof of {oldest['identifier']}, issuer {oldest['issuer']}: {oldest['problem']}"
        self._problems.report(ProblemName.PROOFS, f"{count} proofs; {what}" if count > 1 else what)
