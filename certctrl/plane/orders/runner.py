"""OrderRunner: attempt orders that are due, with at most one attempt per order across all planes.

An attempt may take hours. Meanwhile its claim is extended; memos of an issuer are stored before it continues, so that
after a crash another attempt continues from there. While the database is away, attempts continue, and their results
wait until they can be stored. At a stop, attempts get a few seconds to end; then their claims are released.

All units of work are long ones, and those of several orders share a transaction, so that a poll waits for one only.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection
from functools import partial

import trio

from certctrl.errors import CertctrlError
from certctrl.model.offload import Offload
from certctrl.plane.ca.issuer import Issued
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.health.storage_check import StorageCheck
from certctrl.plane.issuers.issuer import BUILTIN, CertificateRequest, IssuerError
from certctrl.plane.issuers.registry import Issuers
from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.orders.attempts import Attempt, Attempts, ClaimLostError
from certctrl.plane.orders.claims import LEASE_SECONDS, SWEEP_SECONDS, OrderClaims
from certctrl.plane.orders.orders import JOB
from certctrl.plane.orders.problems import OrderProblems
from certctrl.plane.orders.requests import checked_chain, new_request
from certctrl.plane.reserved_names import ReservedNames, refuse_reserved
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, P, T
from certctrl.plane.storage.gathering import Gathering

EXTEND_SECONDS = 40.0
ATTEMPT_SECONDS = float(DAY)
DRAIN_SECONDS = 5.0
GIVE_BACK_SECONDS = 2.0
STORE_PAUSE = 2.0
_MAX_KEYS_IN_MAKING = 4
BACKGROUND_SHARE = 4.0
BACKGROUND_PAUSES = 0.05, 1.0
"""The next background order begins after this multiple of the time that the last one took to begin, within bounds.

So they use a part of the machine only, however busy it is, and requests are answered meanwhile.
"""

log = logging.getLogger("certctrl.Orders")


class OrderRunner:
    """Runs the attempts of one plane."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        issuers: Issuers,
        attempts: Attempts,
        reserved: ReservedNames,
        problems: OrderProblems,
        counters: PlaneCounters,
        storage_check: StorageCheck,
        *,
        wall_now: Callable[[], float],
        offload: Offload,
    ) -> None:
        self._db = database
        self._together = Gathering(database, long=True)
        self._jobs = jobs
        self._issuers = issuers
        self._attempts = attempts
        self._reserved = reserved
        self._problems = problems
        self._counters = counters
        self._storage_check = storage_check
        self._wall_now = wall_now
        self._offload = offload
        self._claims = OrderClaims(database, jobs, wall_now)
        self._due = trio.Event()
        self._making_keys = trio.CapacityLimiter(_MAX_KEYS_IN_MAKING)
        self._turn = trio.CapacityLimiter(1)
        """Serialises computations, so that requests are answered between those of any number of orders."""
        self._background = trio.CapacityLimiter(1)
        """Which background order begins."""
        self._unstored: set[int] = set()
        """Orders whose certificates are issued but not yet stored."""

    def wake(self) -> None:
        """Search for orders now."""
        self._due.set()

    async def run(self) -> None:
        """Attempt orders as they become due, until cancelled."""
        scope, stopping = trio.CancelScope(), trio.Event()
        async with trio.open_nursery() as nursery:
            attempts = await nursery.start(_hold_attempts, scope, stopping)
            scope.shield = True  # only now: a shielded start could never be stopped
            try:
                await self._claim_forever(attempts)
            finally:
                scope.deadline = trio.current_time() + DRAIN_SECONDS
                stopping.set()

    async def run_once(self) -> int:
        """Attempt each order that is due now; return their number."""
        count = 0
        async with trio.open_nursery() as nursery:
            while (jobs := (await self._claims.claim())[0]) or self._claims.is_ahead:
                for job in jobs:
                    nursery.start_soon(self._run_counted, job)
                count += len(jobs)
                await trio.sleep(0 if jobs else BACKGROUND_PAUSES[0])
        return count

    async def _claim_forever(self, attempts: trio.Nursery) -> None:
        while True:
            self._due, pause = trio.Event(), SWEEP_SECONDS
            try:
                jobs, pause = await self._claims.claim()
                for job in jobs:
                    attempts.start_soon(self._run_counted, job, name=f"order {job.key}")
                await self._problems.update()
            except CertctrlError as error:
                self._storage_check.note_failure(error)
            with trio.move_on_after(pause):
                await self._due.wait()

    async def _run_counted(self, job: Job) -> None:
        try:
            await self._run(job)
        finally:
            self._unstored.discard(int(job.key))
            if self._claims.ended(int(job.key)):
                self._due.set()

    async def _run(self, job: Job) -> None:
        ended = False
        try:
            await self._run_claimed(job)
            ended = True
        finally:
            if not ended:  # the plane stops
                with trio.move_on_after(GIVE_BACK_SECONDS, shield=True):
                    await self._give_back(job)

    async def _begun(self, job: Job) -> Attempt | None:
        """Begin an attempt; one in the background in its turn, with a pause."""
        if job.kind == JOB:
            async with self._turn:
                return await self._together.work(self._attempts.begin, job)
        async with self._background:
            began = trio.current_time()
            async with self._turn:
                attempt = await self._together.work(self._attempts.begin, job)
            if self._claims.begun(int(job.key)):
                self._due.set()
            least, most = BACKGROUND_PAUSES
            await trio.sleep(min(max((trio.current_time() - began) * BACKGROUND_SHARE, least), most))
            return attempt

    async def _run_claimed(self, job: Job) -> None:
        try:
            attempt = await self._begun(job)
        except CertctrlError as error:  # retried once the lease has expired
            self._storage_check.note_failure(error)
            log.error("order %s cannot be read: %s", job.key, error)
            return
        except Exception as error:  # an order that cannot be begun must not end the plane
            log.error("order %s cannot be begun: unexpected %s", job.key, type(error).__name__, exc_info=error)
            return
        if attempt is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._extend, attempt, nursery.cancel_scope)
            await self._attempt(attempt)
            nursery.cancel_scope.cancel()

    async def _extend(self, attempt: Attempt, scope: trio.CancelScope) -> None:
        """Extend the claim; cancel the attempt once another plane may have claimed it.

        While the database is away, an issued certificate waits; the claim is checked when it is stored.
        """
        ends = trio.current_time() + LEASE_SECONDS
        while trio.current_time() < ends or attempt.order_id in self._unstored:
            await trio.sleep(EXTEND_SECONDS / 2)
            try:
                if not await self._db.work_long(self._jobs.extend, attempt.job, LEASE_SECONDS):
                    break
            except CertctrlError as error:
                self._storage_check.note_failure(error)
            else:
                ends = trio.current_time() + LEASE_SECONDS
        log.info("order %d: stopped, because another plane works on it or it has ended", attempt.order_id)
        scope.cancel()

    async def _attempt(self, attempt: Attempt) -> None:
        """Make one attempt, and store its outcome."""
        failure: CertctrlError
        try:
            issued = await self._issued(attempt)
            await self._stored(self._attempts.succeed, attempt, issued)
        except ClaimLostError:
            return
        except CertctrlError as error:
            failure = error
        except Exception as error:  # a bug in an issuer must end neither the plane nor other orders
            log.error("order %d: unexpected %s", attempt.order_id, type(error).__name__, exc_info=error)
            failure = IssuerError(f"unexpected {type(error).__name__} in issuer {attempt.issuer}", fix="report it")
        else:
            self._counters.jobs[JOB, "ok"] += 1
            self._counters.order_attempts[attempt.issuer, "ok"] += 1
            log.info("order %d: issuer %s has issued certificate %d", attempt.order_id, attempt.issuer, attempt.cert_id)
            return
        await self._fail(attempt, failure)

    async def _fail(self, attempt: Attempt, error: CertctrlError) -> None:
        self._counters.jobs[JOB, "failed"] += 1
        refused = isinstance(error, IssuerError) and error.is_permanent
        self._counters.order_attempts[attempt.issuer, "refused" if refused else "failed"] += 1
        try:
            due = await self._stored(self._attempts.fail, attempt, error)
        except ClaimLostError:
            return
        again = "given up" if due is None else f"next attempt in {due - self._wall_now():.0f} s"
        log.warning(
            "order %d: certificate %d (%s) from issuer %s failed: %s; %s",
            *(attempt.order_id, attempt.cert_id, attempt.domain_name, attempt.issuer, error, again),
        )

    async def _issued(self, attempt: Attempt) -> Issued:
        """Return the issuer's certificate, checked."""
        _refuse(attempt.names, await self._stored(self._reserved.all))
        issuer = await self._issuers.get(attempt.issuer)
        key, csr = attempt.key_der, attempt.csr_der
        if not csr:
            async with self._making_keys:
                key, csr = await self._offload(
                    new_request, attempt.key_type, attempt.names, attempt.must_staple, attempt.old_key_der
                )
            async with self._turn:
                await self._together.work(self._attempts.keep_key, attempt, key, csr)
        request = CertificateRequest(
            names=attempt.names,
            csr_der=csr,
            validity_seconds=attempt.validity_seconds,
            profile=attempt.profile,
            must_staple=attempt.must_staple,
            replaces_pem=attempt.replaces_pem,
            order_id=attempt.order_id,
            user_id=attempt.user_id,
            device_ids=attempt.device_ids,
            memo=attempt.memo,
            remember=partial(self._remember, attempt),
        )
        with trio.move_on_after(ATTEMPT_SECONDS) as scope:
            async with self._turn if attempt.issuer == BUILTIN else contextlib.nullcontext():
                chain = await issuer.issue(request)
        if scope.cancelled_caught:
            what = f"issuer {attempt.issuer} has not answered for a day"
            raise IssuerError(what, fix=f"cert-ctrl plane issuers check {attempt.issuer}")
        self._unstored.add(attempt.order_id)
        refuse = partial(_refuse, reserved=await self._stored(self._reserved.all))  # names may have been added since
        async with self._turn:
            return checked_chain(chain, csr, attempt.names, key=key, now=self._wall_now(), refuse=refuse)

    async def _remember(self, attempt: Attempt, memo: str) -> None:
        await self._stored(self._attempts.remember, attempt, memo)

    async def _stored(self, unit: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Retry a unit of work until the database accepts it: an issued certificate must not be lost."""
        while True:
            try:
                async with self._turn:
                    return await self._together.work(unit, *args, **kwargs)
            except (ErrorResponse, ClaimLostError):
                raise
            except CertctrlError as error:
                self._storage_check.note_failure(error)
            await trio.sleep(STORE_PAUSE)

    async def _give_back(self, job: Job) -> None:
        try:
            await self._db.work_long(self._attempts.give_back, job)
        except CertctrlError as error:
            log.info("order %s continues when its lease ends: %s", job.key, error)


def _refuse(names: Collection[str], reserved: Collection[str]) -> None:
    """Raise a permanent IssuerError for names of a plane."""
    try:
        refuse_reserved(names, reserved)
    except ErrorResponse as error:
        raise IssuerError(error.what, is_permanent=True) from None


async def _hold_attempts(
    scope: trio.CancelScope, stopping: trio.Event, task_status: trio.TaskStatus[trio.Nursery]
) -> None:
    """Open a nursery for attempts, which outlive a cancellation until the deadline of ``scope``."""
    with scope:
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await stopping.wait()
