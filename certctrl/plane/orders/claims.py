"""OrderClaims: choose the orders that a plane works on next.

Orders that an operator or a device waits for come before renewals in the background, of which few are claimed ahead. An
issuer may have as many attempts as places are left for others, so one whose CA hangs takes half of them at most, a second
one half of the rest; one without an attempt always gets its first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.orders.orders import BACKGROUND_JOB, JOB
from certctrl.plane.storage.database import Database, marks

MAX_CONCURRENT = 200
"""Orders that one plane works on at a time, except for the first one of each issuer; budgets of issuers are lower."""
MAX_CLAIMED = 10
"""Orders claimed at a time, and background orders claimed ahead: each is a task that starts."""
SWEEP_SECONDS = 5.0
"""Seconds between searches for orders that another plane has stored."""
LEASE_SECONDS = 120.0
_AGAIN_SECONDS = 0.005


def crowded(running: Mapping[str, int], together: int) -> list[str]:
    """Return the issuers that may begin no further attempt, from the number that each has now."""
    free = max(together - sum(running.values()), 1)
    return sorted(issuer for issuer, count in running.items() if count >= free)


class OrderClaims:
    """The orders that this plane has claimed."""

    def __init__(self, database: Database, jobs: Jobs, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._jobs = jobs
        self._wall_now = wall_now
        self._issuers: dict[int, str] = {}
        """The issuer of each order that is claimed."""
        self._ahead: set[int] = set()
        """Background orders that are claimed and not begun."""
        self._more = False
        """Whether orders may be due that were not claimed."""

    @property
    def is_ahead(self) -> bool:
        """Whether background orders are claimed and not begun."""
        return bool(self._ahead)

    async def claim(self) -> tuple[list[Job], float]:
        """Claim orders that are due; return them with the seconds until the next call has some, unless one is woken."""
        full = crowded(Counter(self._issuers.values()), MAX_CONCURRENT)
        limit = MAX_CLAIMED if len(self._issuers) < MAX_CONCURRENT else 1
        ahead = max(0, min(limit, MAX_CLAIMED - len(self._ahead)))
        claimed, pause = await self._db.work_long(self._claim, full, limit, ahead)
        for job, issuer in claimed:
            self._issuers[int(job.key)] = issuer
            if job.kind == BACKGROUND_JOB:
                self._ahead.add(int(job.key))
        self._more = bool(full) or len(self._ahead) >= MAX_CLAIMED or len(claimed) >= limit
        return [job for job, _ in claimed], _AGAIN_SECONDS if len(claimed) >= limit else pause

    def begun(self, order_id: int) -> bool:
        """Note that work on an order has begun; return whether others should be claimed now."""
        known = order_id in self._ahead
        self._ahead.discard(order_id)
        return known and self._more and len(self._ahead) == MAX_CLAIMED // 2

    def ended(self, order_id: int) -> bool:
        """Note that work on an order has ended; return whether others should be claimed now."""
        self._issuers.pop(order_id, None)
        self._ahead.discard(order_id)
        return self._more and len(self._ahead) <= MAX_CLAIMED // 2

    def _claim(self, full: Sequence[str], limit: int, ahead: int) -> tuple[list[tuple[Job, str]], float]:
        """Claim jobs of issuers that are not ``full``, except for orders that this plane works on.

        Returns them with their issuers, and the seconds until the next.
        """
        running = tuple(
            str(order_id) for order_id in self._issuers
        )  # their leases may have ended while the machine slept
        conditions = [f"job_key NOT IN ({marks(running)})"] if running else []
        if full:
            conditions.append(
                "NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = CAST(jobs.job_key AS BIGINT)"
                f" AND o.issuer IN ({marks(full)}))"
            )
        only, parameters = " AND ".join(conditions), (*running, *full)
        jobs: list[Job] = []
        for kind, most in ((JOB, limit), (BACKGROUND_JOB, ahead)):
            left = min(most, limit - len(jobs))
            if left > 0:
                jobs += self._jobs.claim(
                    kind, limit=left, lease_seconds=LEASE_SECONDS, only=only, parameters=parameters
                )
        now, ids = self._wall_now(), [int(job.key) for job in jobs]
        rows = self._db.all(f"SELECT id, issuer FROM orders WHERE id IN ({marks(ids)})", *ids) if ids else []
        issuer_of = {row["id"]: str(row["issuer"]) for row in rows}
        sql = "SELECT min(due) AS due FROM jobs WHERE kind IN (?, ?) AND due > ?"
        later = self._db.one(sql, JOB, BACKGROUND_JOB, now)
        seconds = SWEEP_SECONDS if later is None or later["due"] is None else later["due"] - now
        return [(job, issuer_of.get(int(job.key), "")) for job in jobs], min(max(seconds, 0.05), SWEEP_SECONDS)
