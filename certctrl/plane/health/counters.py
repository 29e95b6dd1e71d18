"""Counters of one plane since its start, as plain numbers; ``metric_families.py`` shows them to Prometheus."""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from types import TracebackType

import attrs

from certctrl import lean
from certctrl.errors import DiskError, PlaneError
from certctrl.model.duration import Duration
from certctrl.plane.errors import DatabaseAwayError

REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
WAKE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 30.0)

_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1012, 1013, 4401, 4403, 4409))


@lean.define
class DatabaseCalls:
    """The units of work of one database, and its notifications."""

    results: Counter[str] = attrs.field(factory=Counter)
    """By ``ok``, ``away``, ``storage`` and ``bug``."""
    seconds: Duration = attrs.field(factory=lambda: Duration(REQUEST_BUCKETS))
    """From the call to its end, including the wait for a free connection."""
    wakes_lost: str = ""
    """Why notifications of other planes do not arrive; empty if they do, or are not used."""

    def measured(self) -> _Measured:
        """Return a context manager that counts its block as one unit of work."""
        return _Measured(self)


class _Measured:
    """One unit of work; a class, because a generator takes three times as long."""

    __slots__ = ("_calls", "_started")

    def __init__(self, calls: DatabaseCalls) -> None:
        self._calls = calls

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.results[_result(kind)] += 1
        self._calls.seconds.add(perf_counter() - self._started)


def _result(kind: type[BaseException] | None) -> str:
    """Return the name of the result of a unit of work."""
    if kind is None or issubclass(kind, PlaneError):  # the unit of work answered with a refusal
        return "ok"
    if issubclass(kind, DatabaseAwayError):
        return "away"
    return "storage" if issubclass(kind, DiskError) else "bug"


@lean.define
class PlaneCounters:
    """The work of one plane."""

    requests: Counter[tuple[str, str, str]] = attrs.field(factory=Counter)
    """By method, route and status."""
    request_seconds: dict[str, Duration] = attrs.field(factory=dict)
    """By route; without polls that may wait."""
    wake_seconds: Duration = attrs.field(factory=lambda: Duration(WAKE_BUCKETS))
    """From a signal, appended by any plane, to the poll's answer or the socket's page that waited for it."""
    refused: Counter[str] = attrs.field(factory=Counter)
    """Connections refused, by reason."""
    jobs: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """By kind and ``ok`` or ``failed``."""
    order_attempts: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """By issuer and ``ok``, ``failed`` or ``refused``."""

    push_pages: int = 0
    """Pages sent on push sockets."""
    push_closes: Counter[str] = attrs.field(factory=Counter)
    """Push sockets that have ended, by close code."""
    questions: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """By question and result."""

    def push_closed(self, code: int) -> None:
        """Count the end of a push socket; codes that the protocol does not name are ``other``."""
        self.push_closes[str(code) if code in _CLOSE_CODES else "other"] += 1

    def job_runs(self, result: str) -> int:
        """Return the number of runs of all kinds with a result."""
        return sum(count for (_, found), count in self.jobs.items() if found == result)

    def request(self, method: str, route: str, status: str, seconds: float | None) -> None:
        """Count a request; ``seconds`` None: it may have waited."""
        self.requests[method, route, status] += 1
        if seconds is not None:
            self.request_seconds.setdefault(route, Duration(REQUEST_BUCKETS)).add(seconds)
