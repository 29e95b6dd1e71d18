"""Counters and latencies of a sandbox run, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.sandbox.serials import short_serial
from certctrl.text import counted

_PROBLEMS = 5
"""Problems written as text; the JSON summary has all."""


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile (``share`` from 0 to 1); None for no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@lean.define(kw_only=True, eq=False)
class Report:
    """The results of one run; each serial counts once."""

    issued: set[tuple[int, str]] = attrs.field(factory=set)
    """(certificate id, serial) of each certificate that the plane issued."""
    served: set[tuple[int, str]] = attrs.field(factory=set)
    """The same, as the witness saw them at the live endpoint."""
    renewals: int = 0
    revocations: int = 0
    withdrawn: int = 0
    """Revoked certificates that the endpoint no longer serves."""
    latencies_ms: list[float] = attrs.field(factory=list)
    """From the plane's signal to the new serial being served."""
    baseline_ms: list[float] = attrs.field(factory=list)
    """The same for the minimal client of ``baseline.py``."""
    pair_checks: int = 0
    mismatches: int = 0
    first_mismatch: str = ""
    service: str = ""
    overdue: list[str] = attrs.field(factory=list)
    """Names whose certificates were not renewed when they were due."""

    def unserved(self) -> set[tuple[int, str]]:
        """Return the issued serials that were never served."""
        return self.issued - self.served

    def problems(self, shown: Callable[[str], str] = str) -> list[str]:
        """Return why the run failed, one clause each, serials as ``shown``; empty if it succeeded."""
        found = [
            f"certificate {cert_id}, serial {shown(serial)}, was issued but never served"
            for cert_id, serial in sorted(self.unserved())
        ]
        found += [f"the certificate of {name} was not renewed in time" for name in self.overdue]
        if not self.served:
            found.append("nothing was served")
        if self.withdrawn < self.revocations:
            found.append("a revoked certificate is still served")
        if self.mismatches:
            found.append(f"key and certificate did not match {self.mismatches} times, first: {self.first_mismatch}")
        if self.served and not self.pair_checks:
            found.append("key and certificate on disk were never compared")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the summary line of ``--json``."""
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
            "floor_ms": _spread(self.baseline_ms),
            "problems": self.problems(),
        }

    def sentences(self, *, interrupted: bool = False) -> list[str]:
        """Return the summary as text lines, the verdict last."""
        lines = [
            f"{counted(len(self.issued), 'certificate')} issued ({counted(self.renewals, 'renewal')}), "
            f"{len(self.served)} served; {self.revocations} revoked, {self.withdrawn} withdrawn.",
            f"{counted(self.pair_checks, 'check')} of key and certificate on disk, {self.mismatches} failed.",
        ]
        if self.latencies_ms:
            lines.append(f"From signal to new serial served: {_percentiles(self.latencies_ms)}.")
        if self.baseline_ms:
            lines.append(f"Baseline, without checks, records and probe: {_percentiles(self.baseline_ms)}.")
        problems = self.problems(short_serial)
        lines += [f"Problem: {problem}." for problem in problems[:_PROBLEMS]]
        return [*lines, _verdict(len(problems), interrupted=interrupted)]


def _verdict(problems: int, *, interrupted: bool) -> str:
    """Return the last line of the summary."""
    until = "Interrupted. Until then: " if interrupted else ""
    if problems:
        which = "1 problem" if problems == 1 else f"{problems} problems"
        shown = f", the first {_PROBLEMS} above" if problems > _PROBLEMS else ""
        return f"{until}FAILED, {which}{shown}."
    return f"{until}PASSED, every certificate that was issued was also served."


def _percentiles(values: Sequence[float]) -> str:
    p50, p99 = percentile(values, 0.50) or 0, percentile(values, 0.99) or 0
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms ({len(values)} renewals)"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        "p50": _rounded(percentile(values, 0.50)),
        "p99": _rounded(percentile(values, 0.99)),
        "max": _rounded(max(values, default=None)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
