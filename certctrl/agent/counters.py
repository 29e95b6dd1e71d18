"""Counters of one run, as plain numbers (spec, "Agent Metrics to Track").

``metrics.py`` turns them into Prometheus families, ``reporter.py`` puts them into the status.
"""

from __future__ import annotations

from collections import Counter

import attrs

from certctrl import lean
from certctrl.model.duration import Duration
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import KNOWN_TYPES, Signal

UNKNOWN_TYPE = "unknown"
POLL_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0)
SIGNAL_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)


@lean.define
class Counters:
    """Counts since the start of the agent."""

    polls: Counter[str] = attrs.field(factory=Counter)
    """By HTTP status as text (``200``, ``204``, ``401``, …), ``unusable`` or ``none`` without an answer."""
    poll_seconds: Duration = attrs.field(factory=lambda: Duration(POLL_BUCKETS))
    """Seconds from request to answer, of polls without a long-poll wait."""
    signals: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    """By (type, outcome kind); the type is one of ``KNOWN_TYPES`` or ``UNKNOWN_TYPE``."""
    signal_seconds: dict[str, Duration] = attrs.field(factory=dict)
    """By type."""
    token_refreshes: Counter[str] = attrs.field(factory=Counter)
    """By ``ok``, ``failed``, ``refused``."""
    errors: Counter[str] = attrs.field(factory=Counter)
    """By kind: ``transport``, ``plane``, ``material``, ``policy``, ``command``, ``probe``, ``disk``, ``bug``, …"""
    alerts: Counter[str] = attrs.field(factory=Counter)
    """By kind: ``breaker``, ``revoked``, ``expired``, ``late``, …"""
    acks_sent: int = 0
    acks_dropped: int = 0
    reconciles: Counter[str] = attrs.field(factory=Counter)
    """By ``ok``, ``failed``."""

    push: Counter[str] = attrs.field(factory=Counter)
    """Push sockets by ``opened``, ``ended``, and tries that ``failed``."""
    questions: Counter[str] = attrs.field(factory=Counter)
    """Questions of the plane by ``answered``, ``refused``."""

    def signal_ended(self, signal: Signal, outcome: OutcomeKind, seconds: float) -> None:
        """Count one signal and its processing time.

        All types that this version does not know are one label: otherwise a plane could create any number of them.
        """
        kind = signal.type if signal.type in KNOWN_TYPES else UNKNOWN_TYPE
        self.signals[kind, outcome.value] += 1
        self.signal_seconds.setdefault(kind, Duration(SIGNAL_BUCKETS)).add(seconds)
