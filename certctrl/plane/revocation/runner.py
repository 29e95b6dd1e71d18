"""RevocationRunner: revoke certificates at their CAs, with at most one attempt per certificate across all planes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from certctrl.errors import CertctrlError
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.issuers.issuer import Issuer, IssuerError
from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.revocation.revocations import JOB, Revocations
from certctrl.plane.storage.database import Database, Row

MAX_CONCURRENT = 20
"""Revocations that one plane attempts at a time."""
SWEEP_SECONDS = 10.0
"""Interval of the search for revocations that are due, or that another plane has stored."""
ATTEMPT_SECONDS = 100.0
LEASE_SECONDS = 120.0
"""Longer than an attempt, so that leases need no extension."""

log = logging.getLogger("certctrl.Revocations")


class RevocationRunner:
    """Runs the attempts of one plane."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        revocations: Revocations,
        issuer_of: Callable[[str], Awaitable[Issuer]],
        problems: Problems,
    ) -> None:
        self._db = database
        self._jobs = jobs
        self._revocations = revocations
        self._issuer_of = issuer_of
        self._problems = problems
        self._due = trio.Event()

    def wake(self) -> None:
        """Check for due revocations now."""
        self._due.set()

    async def run(self) -> None:
        """Attempt revocations as they become due, until cancelled."""
        while True:
            self._due, done = trio.Event(), 0
            try:
                done = await self.run_once()
            except CertctrlError as error:
                log.error("revocations cannot be read: %s", error)
            if done < MAX_CONCURRENT:
                with trio.move_on_after(SWEEP_SECONDS):
                    await self._due.wait()

    async def run_once(self) -> int:
        """Attempt each revocation that is due; return their number."""
        jobs = await self._db.work(self._jobs.claim, JOB, limit=MAX_CONCURRENT, lease_seconds=LEASE_SECONDS)
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(self._run, job, name=f"revocation {job.key}")
        await self._report()
        return len(jobs)

    async def _run(self, job: Job) -> None:
        try:
            row = await self._db.work(self._revocations.begin_attempt, job)
            if row is None:
                return
            failure = await self._attempt(row)
            if failure is None:
                await self._db.work(self._revocations.succeed, job)
                log.info(
                    "issuer %s has revoked %s of certificate %d", row["issuer"], row["serial_number"], row["cert_id"]
                )
                return
            await self._db.work(self._revocations.fail, job, failure)
            log.warning(
                "certificate %d, serial %s, is not revoked at issuer %s: %s",
                *(row["cert_id"], row["serial_number"], row["issuer"], failure),
            )
        except CertctrlError as error:  # retried once the lease has expired: revoking twice is harmless
            log.error("revocation %s cannot be stored: %s", job.key, error)

    async def _attempt(self, row: Row) -> CertctrlError | None:
        """Ask the issuer once; return its failure, None if it has revoked."""
        try:
            with trio.move_on_after(ATTEMPT_SECONDS) as scope:
                issuer = await self._issuer_of(row["issuer"])
                await issuer.revoke(row["certificate_pem"], row["chain_pem"], row["code"] or "unspecified")
        except CertctrlError as error:
            return error
        except Exception as error:  # a bug in an issuer must not end the plane
            log.error("revocation %s: unexpected", row["serial_number"], exc_info=error)
            return IssuerError(f"unexpected {type(error).__name__} in issuer {row['issuer']}", fix="report it")
        if scope.cancelled_caught:
            what, fix = f"issuer {row['issuer']} has not answered in {ATTEMPT_SECONDS:.0f} s", "check the CA"
            return IssuerError(what, fix=fix)
        return None

    async def _report(self) -> None:
        count, oldest = await self._db.work(self._revocations.pending)
        if oldest is None:
            self._problems.clear(ProblemName.REVOCATIONS)
            return
        what = f"certificate {oldest['cert_id']} is not revoked at issuer {oldest['issuer']}: {oldest['problem']}"
        self._problems.report(ProblemName.REVOCATIONS, f"{count} revocations fail; {what}" if count > 1 else what)
