"""Metric families of the agent: counters, the current status, and the facts of each certificate.

Only enabled metrics import this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from certctrl import lean
from certctrl.agent.counters import Counters
from certctrl.model.records import CertRecord
from certctrl.model.status import Health
from certctrl.net.prometheus import Families, exposition

_FAMILIES = Families("certctrl")
_gauge, _one_of, _counter = _FAMILIES.gauge, _FAMILIES.one_of, _FAMILIES.counter


@lean.frozen(kw_only=True)
class View:
    """The data of one scrape."""

    counters: Counters
    status: Mapping[str, Any]
    """As `reporter.snapshot` makes it."""
    records: Sequence[CertRecord]
    failed_attempts: Mapping[int, int] = attrs.field(factory=dict)
    """Certificate id -> consecutive failures; certificates that do not fail may be missing."""
    version: str = ""


class AgentCollector(Collector):
    """Turns one View into metric families."""

    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Yield every family, even those without a value yet, so that alert rules can name them."""
        view = self._view
        yield _gauge("build_info", "Version of the agent.", [({"version": view.version}, 1)])
        yield from _counted(view.counters)
        yield from _now(view.status)
        yield from _stuck(view.status)
        yield from _certificates(view.records, view.failed_attempts)


def render(view: View) -> bytes:
    """Return the exposition as UTF-8 text."""
    return exposition(AgentCollector(view).collect())


def _counted(counters: Counters) -> Iterator[Metric]:
    yield _counter("polls", "Polls by HTTP status; `none`: no answer.", "code", counters.polls)
    yield _FAMILIES.histogram(
        "poll_duration_seconds", "Request to answer of polls that do not wait.", counters.poll_seconds
    )
    yield _FAMILIES.counters("signals", "Signals handled.", ("type", "outcome"), counters.signals.items())
    yield _FAMILIES.histograms(
        "signal_duration_seconds", "Handling time by signal type.", "type", counters.signal_seconds
    )
    yield _counter("token_refreshes", "Token refreshes by result.", "result", counters.token_refreshes)
    yield _counter("errors", "Errors by kind.", "kind", counters.errors)
    yield _counter("alerts", "Alerts raised by kind.", "kind", counters.alerts)
    yield _counter("reconciles", "Full comparisons with the plane by result.", "result", counters.reconciles)
    yield _counter(
        "push_sockets", "Push sockets by result: `opened`, `ended`; `failed`: not opened.", "result", counters.push
    )
    yield _counter("questions", "Questions of the control plane by result.", "result", counters.questions)
    yield _FAMILIES.plain_counter("acks_sent", "Outcomes reported to the plane.", counters.acks_sent)
    yield _FAMILIES.plain_counter(
        "acks_dropped", "Outcomes dropped because their queue was full.", counters.acks_dropped
    )


def _now(status: Mapping[str, Any]) -> Iterator[Metric]:
    poll = status.get("poll") or {}
    token = status.get("token") or {}
    transport = poll.get("transport") or {}
    now, cursor_at = status.get("now") or 0.0, status.get("cursor_at")
    health = status.get("health")
    values: tuple[tuple[str, str, Any], ...] = (
        ("start_time_seconds", "When the daemon started, since the epoch.", status.get("started_at")),
        ("last_poll_timestamp_seconds", "When the plane last answered a poll.", poll.get("last_at")),
        ("next_poll_timestamp_seconds", "When the next poll is due.", poll.get("next_at")),
        ("poll_interval_seconds", "Base interval.", (poll.get("interval_ms") or 0) / 1000),
        ("retry_after_seconds", "Most recent Retry-After applied; 0: none.", poll.get("last_retry_after") or 0),
        ("consecutive_failures", "Polls that failed in a row.", poll.get("failures") or 0),
        ("breaker_open", "1 while polling has stopped after too many failures.", int(bool(poll.get("breaker_open")))),
        ("queue_depth", "Signals waiting or being handled.", status.get("queue_depth") or 0),
        ("acks_pending", "Outcomes not yet reported.", status.get("acks_pending") or 0),
        ("cursor_update_timestamp_seconds", "When the cursor last changed.", cursor_at),
        ("cursor_age_seconds", "Time since the cursor last changed.", _age(cursor_at, now)),
        ("token_expiry_timestamp_seconds", "When the access token expires.", token.get("expires_at")),
        ("push_connected", "1 while signals arrive on a push socket.", int(transport.get("uses") == "push")),
        ("stale", "1 when the plane has not answered for too long.", int(health == Health.STALE)),
        ("problems", "Problems that `status` shows.", len(status.get("problems") or ())),
        ("quarantined_signals", "Signals given up after repeated failures.", len(status.get("quarantined") or ())),
    )
    for name, about, value in values:
        yield _gauge(name, about, [] if value is None else [({}, value)])
    yield _one_of("health", "1 for the present health.", "health", tuple(Health), str(health))
    yield _one_of("state", "1 for the present state of the session.", "state", _states(), str(status.get("state")))


def _age(moment: float | None, now: float) -> float | None:
    return None if moment is None else max(0.0, now - moment)


def _states() -> tuple[str, ...]:
    from certctrl.protocol.state import State

    return tuple(state.value for state in State)


def _stuck(status: Mapping[str, Any]) -> Iterator[Metric]:
    items = status.get("stuck") or ()
    yield _gauge("stuck_items", "Certificates and signals that keep failing.", [({}, len(items))])
    yield _gauge(
        "stuck_item_next_try_timestamp_seconds",
        "When each stuck item is tried again, with the reason of its last failure.",
        [({"item": item["item"], "reason": item["reason"]}, item["next_try_at"]) for item in items],
    )


def _certificates(records: Sequence[CertRecord], attempts: Mapping[int, int]) -> Iterator[Metric]:
    rows = [({"cert_id": str(r.cert_id), "name": r.name}, r) for r in records]
    live = [(labels, r) for labels, r in rows if r.generation]
    applied = [(labels, r) for labels, r in rows if r.last_outcome is not None]
    values: tuple[tuple[str, str, Iterable[tuple[dict[str, str], float]]], ...] = (
        ("not_before_timestamp_seconds", "Start of validity.", [(labels, r.facts.not_before) for labels, r in live]),
        ("not_after_timestamp_seconds", "End of validity: of the certificate, or of its chain if that is earlier.", [(labels, r.facts.not_after) for labels, r in live]),
        ("last_apply_timestamp_seconds", "Last attempt.", [(labels, r.last_apply_at) for labels, r in applied]),
        (
            "last_apply_success", "1 when the last attempt left nothing to do.",
            [(labels, int(str(r.last_outcome) not in ("failed", "rolled_back"))) for labels, r in applied],
        ),
        (
            "last_apply_result", "1 for the result of the last attempt.",
            [({**labels, "result": str(r.last_outcome)}, 1) for labels, r in applied],
        ),
        ("failed_applies", "Failed attempts in a row.", [(labels, attempts.get(r.cert_id, 0)) for labels, r in rows]),
        ("held", "1 while rolled back by hand and held there.", [(labels, int(r.held)) for labels, r in rows]),
    )  # fmt: skip
    for name, about, samples in values:
        yield _gauge(f"certificate_{name}", about, samples)
