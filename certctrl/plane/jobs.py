"""Jobs: scheduled work that only one plane does at a time.

A plane claims a job for the length of a lease. If it dies, the lease expires and another plane claims the job, so the
work must be safe to repeat.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from certctrl import lean
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database

FURTHEST_SECONDS = 8.0 * DAY
"""No job is scheduled further ahead, so one that is was scheduled before the clock was set back."""
MAX_LEASE_SECONDS = 3600.0


@lean.frozen
class Job:
    """A claimed job."""

    id: int
    kind: str
    key: str
    """The object of the job; a kind has one job per key."""
    due: float
    lease: float
    """When the claim ends; seconds since the epoch, as ``due``."""


class Jobs:
    """The table of jobs; all methods run in the caller's unit of work."""

    def __init__(self, database: Database, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._wall_now = wall_now
        self.owner = secrets.token_hex(8)
        """The name of this plane in its claims."""

    def put(self, kind: str, key: str, due: float) -> None:
        """Schedule or reschedule a job; a claim from before can no longer end it."""
        self._db.run(
            "INSERT INTO jobs (kind, job_key, due) VALUES (?, ?, ?)"
            " ON CONFLICT (kind, job_key) DO UPDATE SET due = excluded.due, owner = ''",
            kind,
            key,
            due,
        )

    def claim(
        self, kind: str, *, limit: int, lease_seconds: float, only: str = "", parameters: Sequence[Any] = ()
    ) -> list[Job]:
        """Claim jobs that are due and not claimed, the most overdue first; jobs that another plane claims are skipped.

        ``only`` is a further condition on the table ``jobs``, with its parameters.

        Jobs and claims too far in the future are from a clock that was ahead, and count as due.
        """
        now = self._wall_now()
        rows = self._db.all_unlocked(
            "SELECT id, kind, job_key, due FROM jobs WHERE kind = ? AND (due <= ? OR due > ?) AND (lease <= ? OR lease > ?)"
            f"{f' AND {only}' if only else ''} ORDER BY due, id LIMIT ?",
            *(kind, now, now + FURTHEST_SECONDS, now, now + lease_seconds + MAX_LEASE_SECONDS, *parameters, limit),
        )
        lease = now + lease_seconds
        for row in rows:
            self._db.run("UPDATE jobs SET owner = ?, lease = ? WHERE id = ?", self.owner, lease, row["id"])
        return [Job(row["id"], row["kind"], row["job_key"], row["due"], lease) for row in rows]

    def holds(self, job: Job) -> bool:
        """Return whether a claim that was not extended is still this plane's."""
        sql = "SELECT owner, lease FROM jobs WHERE id = ?"
        row = self._db.one_locked(sql, job.id)
        return row is not None and (row["owner"], row["lease"]) == (self.owner, job.lease)

    def extend(self, job: Job, lease_seconds: float) -> bool:
        """Extend a claim; return False if it was lost, so that the work must stop."""
        return self._change(job, "lease = ?", self._wall_now() + lease_seconds)

    def finish(self, job: Job) -> bool:
        """Remove a job; return False if the claim was lost, or the job was put again."""
        sql = "DELETE FROM jobs WHERE id = ? AND owner = ?"
        done = self._db.run(sql, job.id, self.owner) == 1
        if not done:
            self._release(job)
        return done

    def reschedule(self, job: Job, due: float) -> bool:
        """End a claim, and run the job at ``due``; return False if the claim was lost, or the job was put again."""
        done = self._change(job, "lease = 0, owner = '', due = ?", due)
        if not done:
            self._release(job)
        return done

    def _change(self, job: Job, assignments: str, value: float) -> bool:
        return self._db.run(f"UPDATE jobs SET {assignments} WHERE id = ? AND owner = ?", value, job.id, self.owner) == 1

    def _release(self, job: Job) -> None:
        """End the lease of a job that was put again while it was claimed."""
        self._db.run("UPDATE jobs SET lease = 0 WHERE id = ? AND owner = '' AND lease = ?", job.id, job.lease)
