"""Metric families of the plane: counters of its work, and gauges of its current state.

Only enabled metrics import this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
from prometheus_client.metrics_core import Metric

from certctrl import __version__, lean
from certctrl.errors import CertctrlError
from certctrl.net.prometheus import Families, exposition
from certctrl.plane.core import Plane
from certctrl.plane.health.counters import DatabaseCalls, PlaneCounters
from certctrl.plane.health.problems import ProblemName

_FAMILIES = Families("certctrl_plane")


@lean.frozen(kw_only=True)
class View:
    """The data of one scrape."""

    counters: PlaneCounters
    database: DatabaseCalls
    polls: int = 0
    sockets: int = 0
    connections: int = 0
    database_wait: float = 0.0
    sightings_waiting: int = 0
    sightings_saved: int = 0
    problems: frozenset[ProblemName] = frozenset()
    started_at: float = 0.0
    census: Mapping[str, Any] = attrs.field(factory=dict)
    """As `Census.counts` makes it; empty while the database does not answer."""


async def scraped(plane: Plane) -> bytes:
    """Return the metrics of a plane; those that need the database are absent while it does not answer."""
    try:
        census = await plane.work_long(plane.census.counts)
    except CertctrlError:
        census = {}
    view = View(
        counters=plane.counters,
        database=plane.database.calls,
        polls=plane.stream.waiting_polls(),
        sockets=plane.push.count(),
        connections=plane.planes.connections(),
        database_wait=plane.database.backlog(),
        sightings_waiting=plane.devices.sightings_waiting(),
        sightings_saved=plane.devices.sightings_saved,
        problems=frozenset(problem.name for problem in plane.problems.now()),
        started_at=plane.planes.started_at,
        census=census,
    )
    return exposition(families(view))


def families(view: View) -> Iterator[Metric]:
    """Yield every family, even those without a value yet, so that alert rules can name them."""
    yield _FAMILIES.gauge("build_info", "Version of the control plane.", [({"version": __version__}, 1)])
    yield _FAMILIES.gauge("start_time_seconds", "When it started, since the epoch.", [({}, view.started_at)])
    ready = not any(name.prevents_ready for name in view.problems)
    yield _FAMILIES.gauge("ready", "1 while `/health/ready` answers 200.", [({}, int(ready))])
    rows = [({"problem": name.value}, int(name in view.problems)) for name in ProblemName]
    yield _FAMILIES.gauge("problem", "1 for each present problem of `/health`.", rows)
    yield from _work(view)
    yield from _present(view)


def _work(view: View) -> Iterator[Metric]:
    counters, database = view.counters, view.database
    labels = ("method", "route", "code")
    about = "Requests by route and HTTP status; `none`: the client left before the answer."
    yield _FAMILIES.counters("requests", about, labels, counters.requests.items())
    about = "Time to answer by route, without polls that may wait."
    yield _FAMILIES.histograms("request_duration_seconds", about, "route", counters.request_seconds)
    about = (
        "From a signal, appended by any control plane, to the poll's answer or the socket's page that waited for it."
    )
    yield _FAMILIES.histogram("wake_duration_seconds", about, counters.wake_seconds)
    about = "Transactions by result: `ok`, `away`, `storage`, `bug`."
    yield _FAMILIES.counter("database_calls", about, "result", database.results)
    about = "Time of a transaction, with the wait for a connection."
    yield _FAMILIES.histogram("database_duration_seconds", about, database.seconds)
    about = "Connections refused: `all` limit, `unauthenticated` limit, invalid `proxy` header."
    yield _FAMILIES.counter("connections_refused", about, "reason", counters.refused)
    yield _FAMILIES.plain_counter("push_pages", "Pages sent on push sockets.", counters.push_pages)
    about = "Push sockets that have ended, by close code; 1006: without a close frame, `other`: not in the protocol."
    yield _FAMILIES.counter("push_sockets_closed", about, "code", counters.push_closes)
    about = "Questions to agents by question and result: `answered`, `refused_by_policy`, `timed_out`, …"
    yield _FAMILIES.counters("questions", about, ("question", "result"), counters.questions.items())
    about = "Runs of jobs by kind and result: `ok`, `failed`."
    yield _FAMILIES.counters("job_runs", about, ("kind", "result"), counters.jobs.items())
    about = "Attempts to have an issuer issue, by result: `ok`, `failed`, `refused`."
    yield _FAMILIES.counters("order_attempts", about, ("issuer", "result"), counters.order_attempts.items())
    about = "Sightings of devices stored: time, address and cursor of polls."
    yield _FAMILIES.plain_counter("sightings_saved", about, view.sightings_saved)


def _present(view: View) -> Iterator[Metric]:
    yield _FAMILIES.gauge("polls_waiting", "Long polls that wait for signals.", [({}, view.polls)])
    yield _FAMILIES.gauge("push_sockets", "Open push sockets.", [({}, view.sockets)])
    yield _FAMILIES.gauge("connections", "Open connections.", [({}, view.connections)])
    about = "For how long the next transaction has been waiting for a connection to the database."
    yield _FAMILIES.gauge("database_wait_seconds", about, [({}, view.database_wait)])
    about = "Sightings that are not stored yet."
    yield _FAMILIES.gauge("sightings_waiting", about, [({}, view.sightings_waiting)])
    devices, certificates = view.census.get("devices", {}), view.census.get("certificates", {})
    about = "Devices by state; `silent`: active, but without a poll for 15 minutes."
    yield _FAMILIES.gauge("devices", about, _by("state", devices))
    about = "Agents of active devices by version; `other`: less common ones than 20."
    yield _FAMILIES.gauge("agents", about, _by("version", view.census.get("agents", {})))
    about = (
        "Active certificates; `ending`: on a device with less than a fifth of their life left; `ended`: expired there."
    )
    yield _FAMILIES.gauge("certificates", about, _by("state", certificates))
    about = "Orders that have not ended, by state: `csr_wanted` (a device's key), `ready`, `retried` after a failure, `blocked`."
    yield _FAMILIES.gauge("orders", about, _by("state", view.census.get("orders", {})))
    about = "1 if the last use of an issuer failed."
    yield _FAMILIES.gauge("issuer_failing", about, _by("issuer", view.census.get("issuers", {})))
    jobs = view.census.get("jobs", {})
    rows = [({"kind": kind, "state": state}, n) for kind, states in jobs.items() for state, n in states.items()]
    yield _FAMILIES.gauge("jobs", "Jobs by kind and state: `due`, `overdue` by a minute, `running`, `scheduled`.", rows)


def _by(label: str, counts: Mapping[str, int]) -> Iterable[tuple[Mapping[str, str], float]]:
    return [({label: name}, count) for name, count in counts.items()]
