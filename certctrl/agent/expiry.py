"""Decide which certificates expire soon, and when to check again. Pure.

It uses the facts recorded at deploy time, so it works even if the plane is down for weeks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum

from certctrl import lean
from certctrl.install.plan.retries import bounded_by_life
from certctrl.model.certificate import CertFacts
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import CertRecord, Stage

REQUEST_INTERVAL = 6 * 3600.0
"""Seconds between two requested renewals of one serial."""
REFUSED_REQUEST_INTERVAL = 3600.0
"""The same after the plane refused the request."""
MAX_SLEEP = 3600.0
MIN_SLEEP = 1.0


class Urgency(StrEnum):
    """How close a certificate is to its expiry."""

    DUE = "due"
    LATE = "late"
    EXPIRED = "expired"


@lean.frozen(kw_only=True)
class Finding:
    """One certificate that needs renewal."""

    record: CertRecord
    urgency: Urgency
    remaining: float
    """Seconds; negative once expired."""


def time_left(seconds: float) -> str:
    """Return a remaining lifetime in a suitable unit: certificates are valid for months, or for an hour."""
    for unit, length in (("days", 86_400.0), ("hours", 3600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds) / 60:.0f} minutes"


def warn_below(record: CertRecord, config: ApplicationConfig) -> float:
    """Return the remaining seconds below which a certificate is due: a share of its lifetime, at least some days.

    The days count for at most half of a short lifetime, so that a one-hour certificate is not always due.
    """
    life = max(0.0, record.facts.not_after - record.facts.not_before)
    return max(life * config.expiry_warn_fraction, min(config.expiry_warn_days * 86_400, life / 2))


def find_expiring(records: Iterable[CertRecord], config: ApplicationConfig, now: float) -> list[Finding]:
    """Return the certificates that are due (below the warning), late (below half of it) or expired."""
    findings = []
    for record in records:
        if not record.generation or record.stage is Stage.WITHDRAWN:
            continue
        remaining = record.facts.not_after - now
        limit = warn_below(record, config)
        if remaining >= limit:
            continue
        urgency = Urgency.EXPIRED if remaining <= 0 else Urgency.LATE if remaining < limit / 2 else Urgency.DUE
        findings.append(Finding(record=record, urgency=urgency, remaining=remaining))
    return findings


def next_check(records: Iterable[CertRecord], config: ApplicationConfig, now: float) -> float:
    """Return the seconds until the next certificate changes its urgency, between one second and one hour."""
    moments = []
    for record in records:
        if record.generation and record.stage is not Stage.WITHDRAWN:
            limit = warn_below(record, config)
            moments += [record.facts.not_after - limit, record.facts.not_after - limit / 2, record.facts.not_after]
    # include a moment that has just passed: rounding must not skip it
    ahead = [moment - now for moment in moments if moment > now - MIN_SLEEP]
    return max(MIN_SLEEP, min([MAX_SLEEP, *ahead]))


class RenewalRequests:
    """Remembers requested renewals, so that each is requested every six hours at most, or more often for a short life."""

    def __init__(self) -> None:
        self._requested: dict[int, tuple[CertFacts, float, float]] = {}

    def due(self, finding: Finding, now: float) -> bool:
        """Return whether to request a renewal now; ``now`` on a clock that cannot be set.

        A renewal that ends when its predecessor did, because both end with the same issuer, is no reason for another.
        """
        facts = finding.record.facts
        before, at, pause = self._requested.get(facts.cert_id, (None, 0.0, 0.0))
        is_other = before is None or (before.serial != facts.serial and before.not_after != facts.not_after)
        return is_other or not 0 <= now - at < pause

    def record(self, finding: Finding, now: float, *, accepted: bool = True) -> None:
        """Record a request; ``accepted``: whether the plane accepted it."""
        record = finding.record
        pause = max(60.0, (record.facts.not_after - record.facts.not_before) / 20)
        if not accepted and finding.remaining > 0:
            pause = min(pause, bounded_by_life(REFUSED_REQUEST_INTERVAL, finding.remaining))
        longest = REQUEST_INTERVAL if accepted else REFUSED_REQUEST_INTERVAL
        self._requested[record.cert_id] = (record.facts, now, min(longest, pause))

    def next_due(self, now: float) -> float:
        """Return the seconds until the first request may be repeated; infinite: none was made."""
        waits = (pause - (now - at) for _, at, pause in self._requested.values() if now - at < pause)
        return min((max(MIN_SLEEP, wait) for wait in waits), default=math.inf)
