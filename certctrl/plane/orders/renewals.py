"""Renewals: order renewals of certificates that are due, and ask CAs for their renewal windows.

Each round is run by one plane of a database, which claims its job. A round orders certificates that are due, a few at a
time, so that requests are answered meanwhile. Imported certificates, and those on no device, are not renewed. Orders
are retried for days, and the certificate in use stays until its successor is issued.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from certctrl.errors import CertctrlError
from certctrl.plane.certificates.table import CertificateTable
from certctrl.plane.clock import rfc3339
from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.health.storage_check import StorageCheck
from certctrl.plane.issuers.issuer import RenewalWindow
from certctrl.plane.issuers.registry import IMPORT, Issuers
from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.orders.batches import Batches
from certctrl.plane.orders.orders import OrderRequest, Orders
from certctrl.plane.orders.renewal_problems import RenewalProblems
from certctrl.plane.orders.renewal_times import Life, ask_again_at, due_at
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import one_line

JOB = "renewals"
WINDOW_JOB = "renewal_window"
"""One job per certificate whose CA may suggest a window; its key is ``ID:SERIAL``, so that each renewal has its own."""
ROUND_SECONDS = 10.0
PLAN_SECONDS = 30.0
"""Interval of the search for certificates without a due time, or without a request for a window to their CA."""
LEASE_SECONDS = 120.0
MAX_PLANNED = 100
MAX_ORDERED = 5
MAX_WAITING = 40
"""Most renewals of an issuer that are ordered but not begun, so that a fleet that is due together does not queue up."""
BUSY_PAUSE = 0.1
"""Seconds between two rounds while more certificates are due."""
FULL_PAUSE = 0.5
"""Seconds between two rounds while an issuer has ``MAX_WAITING``."""
MAX_ASKED = 10
ASK_SECONDS = 60.0
WITHOUT_WINDOWS = "command"
"""The kind of issuers that never suggest one."""
NO_WINDOW_PAUSE = 86_400.0
"""Seconds until a CA that suggests no window is asked again."""
_OPEN = "SELECT 1 FROM orders o WHERE o.cert_id = c.id AND o.state IN ('csr_wanted', 'ready', 'blocked')"
_USED = "SELECT 1 FROM assignments a WHERE a.cert_id = c.id"
_HELD = "SELECT 1 FROM certificate_holds h WHERE h.cert_id = c.id AND h.serial_number = c.serial_number"
"""A rollout is to renew it, when its first device is released."""

log = logging.getLogger("certctrl.Renewals")


class Renewals:
    """Orders renewals automatically."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        table: CertificateTable,
        orders: Orders,
        batches: Batches,
        issuers: Issuers,
        problems: RenewalProblems,
        counters: PlaneCounters,
        storage_check: StorageCheck,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._jobs = jobs
        self._table = table
        self._orders = orders
        self._batches = batches
        self._issuers = issuers
        self._problems = problems
        self._counters = counters
        self._storage_check = storage_check
        self._wall_now = wall_now
        self._planned_at = float("-inf")
        self.roll_out: Callable[[Row], bool] = lambda certificate: False
        """Called in the unit of work with a certificate that is due, whose row is locked: whether a rollout renews it."""

    async def run(self) -> None:
        """Order what is due and ask for windows, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forever, self.round, JOB, name="renewals")
            nursery.start_soon(self._forever, self.ask, WINDOW_JOB, name="renewal windows")

    async def _forever(self, work: Callable[[], Awaitable[float]], kind: str) -> None:
        while True:
            pause = ROUND_SECONDS
            try:
                pause = await work()
                self._counters.jobs[kind, "ok"] += 1
            except CertctrlError as error:  # the next round retries
                self._counters.jobs[kind, "failed"] += 1
                self._storage_check.note_failure(error)
                log.error("%s failed: %s", kind, error)
            await trio.sleep(pause)

    # --- what is due ------------------------------------------------------------------------------------------------

    async def round(self) -> float:
        """Run one round; return the seconds until the next one."""
        pause = await self._db.work_long(self._round)
        await self._problems.update()
        return pause

    def _round(self) -> float:
        now = self._wall_now()
        self._ensure_job(now)
        claimed = self._jobs.claim(JOB, limit=1, lease_seconds=LEASE_SECONDS)
        if not claimed:
            return ROUND_SECONDS  # another plane runs this round
        self._batches.release_ready()
        pause = self._order(now)
        if abs(now - self._planned_at) >= PLAN_SECONDS:
            planned = self._plan(now)
            if planned < MAX_PLANNED:
                self._db.after_commit(lambda: self._note_planned(now))
            if planned == MAX_PLANNED:
                pause = BUSY_PAUSE
        self._jobs.reschedule(claimed[0], now + pause / 2)  # due by the time any plane checks again
        return pause

    def _note_planned(self, now: float) -> None:
        self._planned_at = now

    def _ensure_job(self, now: float) -> None:
        """Schedule the first round, or the next one if the clock was set back since."""
        known = self._db.one("SELECT due FROM jobs WHERE kind = ?", JOB)
        if known is None or known["due"] > now + 2 * ROUND_SECONDS:
            self._jobs.put(JOB, "", now)

    def _plan(self, now: float) -> int:
        """Set due times that an older release did not store, and schedule questions for windows; return their number."""
        rows = self._db.all(
            "SELECT id, serial_number, not_before, not_after FROM certificates"
            " WHERE renew_at IS NULL AND status = 'active' AND serial_number != '' ORDER BY id LIMIT ?",
            MAX_PLANNED,
        )
        for row in rows:
            self._set_due(row, due_at(_life(row), row["serial_number"]))
        unasked = self._db.all(
            "SELECT c.id, c.serial_number FROM certificates c JOIN issuers i ON i.name = c.issuer AND i.kind != ?"
            " WHERE c.status = 'active' AND c.serial_number != '' AND NOT EXISTS"
            " (SELECT 1 FROM jobs j WHERE j.kind = ? AND j.job_key = CAST(c.id AS TEXT) || ':' || c.serial_number) ORDER BY c.id LIMIT ?",
            *(WITHOUT_WINDOWS, WINDOW_JOB, MAX_PLANNED),
        )
        for row in unasked:
            self._jobs.put(WINDOW_JOB, f"{row['id']}:{row['serial_number']}", now)
        return max(len(rows), len(unasked))

    def _set_due(self, row: Row, due: float) -> None:
        """Store when a certificate is due, unless it was replaced since."""
        sql = "UPDATE certificates SET renew_at = ? WHERE id = ? AND serial_number = ?"
        self._db.run(sql, due, row["id"], row["serial_number"])

    def _order(self, now: float) -> float:
        """Order renewals that are due, the most overdue first; return the seconds until more may be."""
        rows = self._db.all(
            "SELECT issuer, count(*) AS n FROM orders WHERE state IN ('csr_wanted', 'ready', 'blocked')"  # written like its index, to use it
            " AND state = 'ready' AND action = 'renew' AND attempts = 0 GROUP BY issuer"
        )
        waiting = Counter({row["issuer"]: int(row["n"]) for row in rows})
        excluded = [IMPORT, *(issuer for issuer, count in waiting.items() if count >= MAX_WAITING)]
        rows = self._db.all(
            "SELECT c.id, c.issuer FROM certificates c WHERE c.renew_at <= ? AND c.status = 'active' AND c.serial_number != ''"
            f" AND c.issuer NOT IN ({marks(excluded)}) AND EXISTS ({_USED}) AND NOT EXISTS ({_OPEN})"
            f" AND NOT EXISTS ({_HELD})"
            " ORDER BY c.renew_at, c.id LIMIT ?",
            *(now, *excluded, MAX_ORDERED),
        )
        self._batches.lock_whole([row["id"] for row in rows])
        for row in rows:
            if waiting[row["issuer"]] >= MAX_WAITING:
                continue
            waiting[row["issuer"]] += 1
            certificate = self._table.locked_by_id(row["id"])
            if certificate is not None and _is_due(certificate, now):  # otherwise it has changed since
                request = OrderRequest(action="renew", reason="due", in_background=True)
                if self.roll_out(certificate):
                    continue
                if not self._batches.start_set(certificate, request):
                    self._orders.start(certificate, request)
        if len(rows) == MAX_ORDERED:
            return BUSY_PAUSE
        return FULL_PAUSE if max(waiting.values(), default=0) >= MAX_WAITING else self._until_next(now)

    def _until_next(self, now: float) -> float:
        row = self._db.one("SELECT min(renew_at) AS at FROM certificates WHERE renew_at > ? AND status = 'active'", now)
        seconds = ROUND_SECONDS if row is None or row["at"] is None else row["at"] - now
        return min(max(seconds, 1.0), ROUND_SECONDS)

    # --- windows of CAs -----------------------------------------------------------------------------------------

    async def ask(self) -> float:
        """Ask CAs for the windows of some certificates; return the seconds until the next ones."""
        jobs = await self._db.work(self._jobs.claim, WINDOW_JOB, limit=MAX_ASKED, lease_seconds=LEASE_SECONDS)
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(self._ask, job)
        return BUSY_PAUSE if len(jobs) == MAX_ASKED else ROUND_SECONDS

    async def _ask(self, job: Job) -> None:
        """Ask for the window of one certificate, and store when it is due."""
        try:
            row = await self._db.work(self._begin, job)
            if row is None:
                return
            window, failure = await self._window(row)
            await self._db.work(self._end, job, row, window, failure)
        except CertctrlError as error:  # retried once the claim has expired
            self._storage_check.note_failure(error)

    async def _window(self, row: Row) -> tuple[RenewalWindow | None, str]:
        """Return the window that a CA suggests, and why it could not be asked."""
        with trio.move_on_after(ASK_SECONDS):
            try:
                issuer = await self._issuers.get(row["issuer"])
                return await issuer.renewal_window(row["certificate_pem"], row["chain_pem"]), ""
            except CertctrlError as error:
                return None, one_line(str(error))
            except Exception as error:  # a bug in an issuer must not end the plane
                return None, f"unexpected {type(error).__name__}"
        return None, f"no answer within {ASK_SECONDS:.0f} s"

    def _begin(self, job: Job) -> Row | None:
        """Return the certificate of a job; end the job of one that needs no renewal."""
        cert_id, _, serial = job.key.partition(":")
        sql = "SELECT * FROM certificates WHERE id = ? AND status = 'active' AND serial_number = ?"
        row = self._db.one(sql, int(cert_id), serial)
        if row is None:
            self._jobs.finish(job)
        return row

    def _end(self, job: Job, row: Row, window: RenewalWindow | None, failure: str) -> None:
        now = self._wall_now()
        if failure:
            log.info("certificate %d: issuer %s names no renewal window: %s", row["id"], row["issuer"], failure)
        if window is None:
            self._jobs.reschedule(job, ask_again_at(None, now) if failure else now + NO_WINDOW_PAUSE)
            return
        self._jobs.reschedule(job, ask_again_at(window, now))
        due = due_at(_life(row), row["serial_number"], window)
        self._set_due(row, due)
        if due <= now:
            why = f", see {one_line(window.explanation_url)}" if window.explanation_url else ""
            since = rfc3339(window.start)
            log.info("certificate %d: issuer %s wants it renewed since %s%s", row["id"], row["issuer"], since, why)


def _is_due(certificate: Row, now: float) -> bool:
    due = certificate["renew_at"]
    return certificate["status"] == "active" and due is not None and due <= now


def _life(row: Row) -> Life:
    return Life(row["not_before"], row["not_after"])
