"""Limits that all planes of a database share: lock-outs after wrong entries, and token buckets.

They are counted in the table ``limits``, in units of work that write anyway or that handle a wrong entry.
"""

from __future__ import annotations

from collections.abc import Callable

from certctrl.plane.errors import rate_limited
from certctrl.plane.limits import MAX_CALLERS, refilled, spent
from certctrl.plane.storage.database import Database


class SharedAttempts:
    """Failed attempts per caller: after ``limit`` failures the caller is locked out for a while."""

    def __init__(
        self, database: Database, kind: str, limit: int, lock_out_seconds: float, wall_now: Callable[[], float]
    ) -> None:
        self._db = database
        self._kind = kind
        self._limit = limit
        self._seconds = lock_out_seconds
        self._wall_now = wall_now

    def check(self, caller: str) -> None:
        """Raise ErrorResponse 429 while the caller is locked out."""
        row = self._db.one("SELECT level, at FROM limits WHERE kind = ? AND caller = ?", self._kind, caller)
        if row is None or row["level"] < self._limit:
            return
        passed = self._wall_now() - row["at"]
        if abs(passed) < self._seconds:  # a clock that was set back does not lock out for longer
            left = min(self._seconds - passed, self._seconds)
            raise rate_limited(left, f"{self._limit} attempts", "Too many wrong attempts")

    def failed(self, caller: str) -> None:
        """Count a failure, which the caller must commit; the last one allowed starts the lock-out."""
        self._db.run(
            "INSERT INTO limits VALUES (?, ?, 1, ?) ON CONFLICT (kind, caller) DO UPDATE SET at = excluded.at,"
            " level = CASE WHEN abs(limits.at - excluded.at) < ? THEN limits.level + 1 ELSE 1 END",
            self._kind,
            caller,
            self._wall_now(),
            self._seconds,
        )

    def succeeded(self, caller: str) -> None:
        """Forget the caller's failures."""
        self._db.run("DELETE FROM limits WHERE kind = ? AND caller = ?", self._kind, caller)

    def delete_expired(self) -> None:
        """Delete failures that no longer count."""
        delete_expired(self._db, self._kind, self._seconds, self._wall_now())


class SharedBuckets:
    """One token bucket per caller."""

    def __init__(self, database: Database, kind: str, rate: float, burst: int, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._kind = kind
        self._rate = rate
        self._burst = burst
        self._wall_now = wall_now

    def take(self, caller: str) -> None:
        """Take a token; ErrorResponse 429 with the seconds until the next one if there is none."""
        now, tokens = self._wall_now(), float(self._burst)
        row = self._db.one_locked("SELECT level, at FROM limits WHERE kind = ? AND caller = ?", self._kind, caller)
        if row is not None:
            passed = abs(now - row["at"])  # a clock that was set back refills the bucket, rather than stop it
            tokens = refilled(row["level"], passed, self._rate, self._burst)
        self._db.run(
            "INSERT INTO limits VALUES (?, ?, ?, ?)"
            " ON CONFLICT (kind, caller) DO UPDATE SET level = excluded.level, at = excluded.at",
            self._kind,
            caller,
            spent(tokens, self._rate, self._burst),
            now,
        )

    def delete_expired(self) -> None:
        """Delete buckets that are full again."""
        delete_expired(self._db, self._kind, self._burst / self._rate, self._wall_now())


def delete_expired(database: Database, kind: str, seconds: float, now: float) -> None:
    """Delete the callers of a limit that were not counted for some seconds, and the oldest above `MAX_CALLERS`."""
    database.run("DELETE FROM limits WHERE kind = ? AND abs(at - ?) >= ?", kind, now, seconds)
    database.run(
        "DELETE FROM limits WHERE kind = ? AND at <= (SELECT at FROM limits WHERE kind = ? ORDER BY at DESC"
        " LIMIT 1 OFFSET ?)",
        kind,
        kind,
        MAX_CALLERS,
    )
