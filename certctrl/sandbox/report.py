"""What the show counted, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile (``share`` from 0 to 1), None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@attrs.define(kw_only=True, eq=False)
class Figures:
    """Counted as it happens; a serial is counted once, however often it is seen."""

    issued: set[tuple[int, str]] = attrs.field(factory=set)
    """(certificate id, serial) of everything the plane issued."""
    served: set[tuple[int, str]] = attrs.field(factory=set)
    """The same, seen by the witness at the live endpoint."""
    renewals: int = 0
    revocations: int = 0
    withdrawn: int = 0
    """Revoked certificates that the endpoint was seen to serve no more."""
    latencies_ms: list[float] = attrs.field(factory=list)
    """From the signal published by the plane to the new serial served."""
    floor_ms: list[float] = attrs.field(factory=list)
    """The same for the least client there is, in the same show (``baseline.py``)."""
    pair_checks: int = 0
    mismatches: int = 0
    first_mismatch: str = ""
    service: str = ""

    def unserved(self) -> set[tuple[int, str]]:
        """Return what was issued and never seen."""
        return self.issued - self.served

    def problems(self) -> list[str]:
        """Return why the show failed, one sentence each; empty: it did not."""
        found = [
            f"certificate {cert_id}, serial {serial}, was issued and never served"
            for cert_id, serial in sorted(self.unserved())
        ]
        if not self.served:
            found.append("nothing was served")
        if self.withdrawn < self.revocations:
            found.append("a revoked certificate is still served")
        if self.mismatches:
            found.append(f"{self.mismatches} times key and certificate did not match: {self.first_mismatch}")
        if self.served and not self.pair_checks:
            found.append("key and certificate on disk were never compared")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the last line of ``--json``."""
        return {
            "service": self.service,
            "issued": len(self.issued),
            "renewals": self.renewals,
            "served": len(self.served),
            "revocations": self.revocations,
            "withdrawn": self.withdrawn,
            "pair_checks": self.pair_checks,
            "mismatches": self.mismatches,
            "latency_ms": _spread(self.latencies_ms),
            "floor_ms": _spread(self.floor_ms),
            "problems": self.problems(),
        }

    def sentences(self) -> list[str]:
        """Return the account's last lines for a person."""
        lines = [
            f"{len(self.issued)} certificates issued ({self.renewals} of them renewals), {len(self.served)} served, "
            f"{self.revocations} revoked and {self.withdrawn} of those withdrawn.",
            f"{self.pair_checks} comparisons of key and certificate on disk, {self.mismatches} mismatches.",
        ]
        p50, p99 = percentile(self.latencies_ms, 0.50), percentile(self.latencies_ms, 0.99)
        if p50 is not None and p99 is not None:
            lines.append(
                f"From signal published to new serial served by {self.service}: "
                f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, of {len(self.latencies_ms)} renewals."
            )
        p50, p99 = percentile(self.floor_ms, 0.50), percentile(self.floor_ms, 0.99)
        if p50 is not None and p99 is not None:
            lines.append(
                f"The floor, a bare client without checks, records and proof, right afterwards: "
                f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, of {len(self.floor_ms)}."
            )
        return lines + [f"Failed: {problem}." for problem in self.problems()]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        "p50": _rounded(percentile(values, 0.50)),
        "p99": _rounded(percentile(values, 0.99)),
        "max": _rounded(max(values, default=None)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
