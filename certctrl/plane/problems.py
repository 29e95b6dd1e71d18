"""Problems: what is wrong with the plane now, by name, for ``/health``, metrics and the log.

The part that fails reports a problem, and whatever shows that the failure is over clears it. Units of work may do both
in threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import StrEnum

from certctrl import lean

log = logging.getLogger("certctrl.Plane")


class ProblemName(StrEnum):
    """The kinds of problems; names in ``/health``."""

    DATABASE_AWAY = "database_away"
    """The database answers nothing: only waiting polls continue."""
    STORAGE = "storage"
    """Nothing can be stored: reads, polls and token refreshes continue."""
    READ_ONLY = "read_only"
    """The data were opened read-only, until the next start."""
    OVERLOAD = "overload"
    """Requests are being refused."""
    TLS_CERTIFICATE = "tls_certificate"
    """The plane's own certificate cannot be renewed or reloaded."""


@lean.frozen
class Problem:
    """One thing that is wrong."""

    name: ProblemName
    what: str
    """One line for operators; no secrets."""
    since: float
    """Seconds since the epoch."""


class Problems:
    """The present problems of one plane."""

    def __init__(self, wall_now: Callable[[], float]) -> None:
        self._wall_now = wall_now
        self._lock = threading.Lock()
        self._known: dict[ProblemName, Problem] = {}

    def report(self, name: ProblemName, what: str) -> None:
        """Note a problem; a known one keeps its time, and is logged only the first time."""
        with self._lock:
            known = self._known.get(name)
            self._known[name] = Problem(name, what, self._wall_now() if known is None else known.since)
        if known is None:
            log.error("problem %s: %s", name, what)

    def clear(self, name: ProblemName) -> None:
        """Forget a problem that is over; without it, do nothing."""
        with self._lock:
            known = self._known.pop(name, None)
        if known is not None:
            log.info("problem %s is over", name)

    def now(self) -> list[Problem]:
        """Return the problems, oldest first."""
        with self._lock:
            return sorted(self._known.values(), key=lambda problem: problem.since)
