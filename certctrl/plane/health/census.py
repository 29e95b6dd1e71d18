"""Census: count devices, agents, certificates, orders and jobs, for metrics and ``plane status``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from certctrl.plane.clock import rfc3339
from certctrl.plane.storage.database import Reader

SILENT_SECONDS = 900.0
"""Seconds without a poll after which an active device counts as silent."""
_ENDING_LIFE = 0.2
"""Remaining share of a certificate's life below which its renewal is late."""
OVERDUE_SECONDS = 60.0
_KINDS = 50
MOST_VERSIONS = 20
"""Versions of agents that are counted one by one: agents say theirs, so there could be any number of them."""
UNKNOWN, OTHER = "unknown", "other"
"""Counts of agents that have said no version, and of those with less common ones than the others."""


class Census:
    """Reads the counts."""

    def __init__(self, database: Reader, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._wall_now = wall_now

    def counts(self) -> dict[str, Any]:
        """Return ``devices``, ``certificates``, ``orders`` and ``jobs`` by state, ``agents`` by version, and ``issuers``.

        In the caller's unit of work.
        """
        return {
            "devices": self._devices(),
            "agents": self._agents(),
            "certificates": self._certificates(),
            "orders": self._orders(),
            "issuers": self._issuers(),
            "jobs": self._jobs(),
        }

    def ending(self, limit: int = 20) -> list[dict[str, Any]]:
        """Return the certificates of devices that end soon or have ended, the most urgent first."""
        rows = self._db.all(
            "SELECT id, user_id, domain_name, not_after FROM certificates c WHERE status = 'active'"
            " AND serial_number != '' AND not_after - ? < (not_after - not_before) * ?"
            " AND EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = c.id) ORDER BY not_after, id LIMIT ?",
            *(self._wall_now(), _ENDING_LIFE, limit),
        )
        shown = ("id", "user_id", "domain_name")
        return [{name: row[name] for name in shown} | {"not_after": rfc3339(row["not_after"])} for row in rows]

    def _devices(self) -> dict[str, int]:
        counts = dict.fromkeys(("expected", "active", "revoked"), 0)
        for row in self._db.all("SELECT status, count(*) AS n FROM devices GROUP BY status"):
            counts[row["status"]] = int(row["n"])
        silent = self._db.one(
            "SELECT count(*) AS n FROM devices WHERE status = 'active' AND coalesce(last_seen_at, registered_at) < ?",
            self._wall_now() - SILENT_SECONDS,
        )
        return counts | {"silent": int(silent["n"]) if silent is not None else 0}

    def _agents(self) -> dict[str, int]:
        """Count the agents of active devices by version, the most common first."""
        counts: dict[str, int] = {}
        rows = self._db.all(
            "SELECT app_version, count(*) AS n FROM devices WHERE status = 'active'"
            " GROUP BY app_version ORDER BY n DESC, app_version"
        )
        for row in rows:
            version = row["app_version"] or UNKNOWN
            name = version if version in counts or len(counts) < MOST_VERSIONS else OTHER
            counts[name] = counts.get(name, 0) + int(row["n"])
        return counts

    def _certificates(self) -> dict[str, int]:
        """Count active certificates, and of those that a device has, those that end soon or have ended."""
        now = self._wall_now()
        row = self._db.one(
            "SELECT count(*) AS active, coalesce(sum(CASE WHEN used AND not_after <= ? THEN 1 ELSE 0 END), 0) AS ended,"
            " coalesce(sum(CASE WHEN used AND not_after > ? AND not_after - ? < (not_after - not_before) * ?"
            " THEN 1 ELSE 0 END), 0) AS ending"
            " FROM (SELECT not_before, not_after,"
            " EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = c.id) AS used"
            " FROM certificates c WHERE status = 'active' AND serial_number != '') AS present",
            *(now, now, now, _ENDING_LIFE),
        )
        names = ("active", "ending", "ended")
        return {name: int(row[name]) if row is not None else 0 for name in names}

    def _orders(self) -> dict[str, int]:
        """Count the open orders; ``retried`` are those with a failed attempt."""
        counts = dict.fromkeys(("csr_wanted", "ready", "retried", "blocked"), 0)
        for row in self._db.all(
            "SELECT state, problem != '' AS failed, count(*) AS n FROM orders"
            " WHERE state IN ('csr_wanted', 'ready', 'blocked') GROUP BY state, problem != ''"
        ):
            state = "retried" if row["state"] == "ready" and row["failed"] else row["state"]
            counts[state] += int(row["n"])
        return counts

    def _issuers(self) -> dict[str, int]:
        """Return by name of an issuer whether its last use failed."""
        rows = self._db.all("SELECT name, problem FROM issuers ORDER BY name")
        return {row["name"]: int(row["problem"] != "") for row in rows}

    def _jobs(self) -> dict[str, dict[str, int]]:
        """Count the jobs of each kind that are due, overdue by a minute, running, and scheduled for later."""
        now = self._wall_now()
        rows = self._db.all(
            "SELECT kind, sum(CASE WHEN lease > ? THEN 1 ELSE 0 END) AS running,"
            " sum(CASE WHEN lease <= ? AND due <= ? AND due > ? THEN 1 ELSE 0 END) AS due,"
            " sum(CASE WHEN lease <= ? AND due <= ? THEN 1 ELSE 0 END) AS overdue, count(*) AS n"
            " FROM jobs GROUP BY kind ORDER BY kind LIMIT ?",
            *(now, now, now, now - OVERDUE_SECONDS, now, now - OVERDUE_SECONDS, _KINDS),
        )
        counts = {}
        for row in rows:
            known = {state: int(row[state]) for state in ("due", "overdue", "running")}
            counts[row["kind"]] = known | {"scheduled": int(row["n"]) - sum(known.values())}
        return counts
