"""Problems: current faults of the plane, by name, for ``/health``, metrics and the log.

A part that fails reports a problem, and clears it once the failure has ended. Both may happen in threads of units of
work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import StrEnum

from certctrl import lean
from certctrl.plane.clock import rfc3339

log = logging.getLogger("certctrl.Plane")


class ProblemName(StrEnum):
    """The kinds of problems; names in ``/health``."""

    STOPPING = "stopping"
    """The plane answers all waiting polls and closes its connections."""
    DATABASE_AWAY = "database_away"
    """The database answers nothing: only waiting polls continue."""
    STORAGE = "storage"
    """Nothing can be stored: reads, polls and token refreshes continue."""
    DISK_FULL = "disk_full"
    """As ``STORAGE``, for lack of space."""
    READ_ONLY = "read_only"
    """As ``STORAGE``: the data were opened read-only, or their server or file system is read-only."""
    DATABASE_LOCKED = "database_locked"
    """As ``STORAGE``: another process has a lock on the SQLite file."""
    SCHEMA_NEWER = "schema_newer"
    """A newer release has migrated the database, so that this one can no longer use it."""
    DISK_LOW = "disk_low"
    """The data directory has little space left."""
    OVERLOAD = "overload"
    """Requests are being refused."""
    TLS_CERTIFICATE = "tls_certificate"
    """The plane's own certificate cannot be renewed or reloaded."""
    ORDERS = "orders"
    """Issuers refuse or fail to issue certificates: those in use stay until they expire."""
    ISSUER = "issuer"
    """An issuer cannot be used on this plane."""
    REVOCATIONS = "revocations"
    """CAs refuse or fail to revoke certificates that are revoked here."""
    PROOFS = "proofs"
    """Proofs of names, such as DNS records, could not be taken back."""
    RENEWALS_LATE = "renewals_late"
    """Certificates on devices have a third of their life left and are not renewed."""
    RENEWALS_ENDING = "renewals_ending"
    """Certificates on devices have a tenth of their life left, or have expired, and are not renewed."""
    IMPORTS_ENDING = "imports_ending"
    """Imported certificates on devices end soon: only their owner can replace them."""
    ROLLOUT_HALTED = "rollout_halted"
    """A rollout has halted, and waits for an operator."""
    ALERTS = "alerts"
    """Messages about alerts are not delivered to their channel."""
    WAKES_DELAYED = "wakes_delayed"
    """The connection for notifications is lost: the sweep finds what other planes have stored."""

    @property
    def summary(self) -> str:
        """One sentence that is safe to publish: without host, path or cause."""
        return _SUMMARIES[self]

    @property
    def prevents_ready(self) -> bool:
        """Whether new connections should go to a plane without this problem, if there is one."""
        return self not in _LESSER


_LESSER = (
    ProblemName.DISK_LOW, ProblemName.OVERLOAD, ProblemName.TLS_CERTIFICATE, ProblemName.ORDERS, ProblemName.ISSUER,
    ProblemName.REVOCATIONS, ProblemName.PROOFS,
    ProblemName.RENEWALS_LATE, ProblemName.RENEWALS_ENDING, ProblemName.IMPORTS_ENDING, ProblemName.ROLLOUT_HALTED,
    ProblemName.ALERTS, ProblemName.WAKES_DELAYED,
)  # fmt: skip
_SUMMARIES = {
    ProblemName.STOPPING: "The control plane is stopping",
    ProblemName.DATABASE_AWAY: "The database does not answer",
    ProblemName.STORAGE: "The database cannot store changes",
    ProblemName.DISK_FULL: "The disk of the database is full: nothing can be changed",
    ProblemName.READ_ONLY: "The database is read-only: nothing can be changed",
    ProblemName.DATABASE_LOCKED: "Another process has locked the database: nothing can be changed",
    ProblemName.SCHEMA_NEWER: "The database was migrated by a newer release, which must be run",
    ProblemName.DISK_LOW: "The disk of the data directory is almost full",
    ProblemName.OVERLOAD: "Requests are refused because there are too many",
    ProblemName.TLS_CERTIFICATE: "The certificate of the control plane cannot be renewed or reloaded",
    ProblemName.ORDERS: "Certificates cannot be issued or renewed at present",
    ProblemName.ISSUER: "An issuer of certificates cannot be used",
    ProblemName.REVOCATIONS: "Revoked certificates are not revoked at their CA yet",
    ProblemName.PROOFS: "Proofs of names for a CA could not be taken back yet",
    ProblemName.RENEWALS_LATE: "Certificates should have been renewed and are not",
    ProblemName.RENEWALS_ENDING: "Certificates that are about to expire, or have expired, are not renewed",
    ProblemName.IMPORTS_ENDING: "Imported certificates expire soon and must be imported again",
    ProblemName.ROLLOUT_HALTED: "A rollout has halted because devices failed",
    ProblemName.ALERTS: "Alerts could not be delivered to a channel yet",
    ProblemName.WAKES_DELAYED: "Signals of other control planes reach waiting polls up to 10 s late",
}


@lean.frozen
class Problem:
    """A current fault."""

    name: ProblemName
    what: str
    """One line for operators, for the log; no secrets."""
    since: float
    """Seconds since the epoch."""

    def shown(self) -> dict[str, str]:
        """Return the public form, for ``/health``."""
        return {"key": self.name.value, "what": self.name.summary, "since": rfc3339(self.since)}


class Problems:
    """The present problems of one plane."""

    def __init__(self, wall_now: Callable[[], float]) -> None:
        self._wall_now = wall_now
        self._lock = threading.Lock()
        self._known: dict[ProblemName, Problem] = {}

    def report(self, name: ProblemName, what: str) -> None:
        """Report a problem; a known one keeps its time and is not logged again."""
        with self._lock:
            known = self._known.get(name)
            self._known[name] = Problem(name, what, self._wall_now() if known is None else known.since)
        if known is None:
            level = logging.INFO if name is ProblemName.STOPPING else logging.ERROR
            log.log(level, "problem %s: %s", name, what)

    def clear(self, name: ProblemName) -> None:
        """Clear a problem; idempotent."""
        with self._lock:
            known = self._known.pop(name, None)
        if known is not None:
            log.info("problem %s is over", name)

    def now(self) -> list[Problem]:
        """Return the problems, those that prevent readiness first, then the oldest."""
        with self._lock:
            known = list(self._known.values())
        return sorted(known, key=lambda problem: (not problem.name.prevents_ready, problem.since))

    def __contains__(self, name: ProblemName) -> bool:
        with self._lock:
            return name in self._known
