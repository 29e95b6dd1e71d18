"""Exponential backoff: one formula, one jitter."""

from __future__ import annotations

_MOST_DOUBLINGS = 32


def grown(first: float, last: float, failures: int) -> float:
    """Return the pause in seconds after ``failures`` failures in a row: ``first``, doubling up to ``last``."""
    return min(last, first * 2.0 ** min(max(failures, 1) - 1, _MOST_DOUBLINGS))


def jittered(pause: float, random: float) -> float:
    """Return a pause shortened by up to half, so that many hosts do not retry in step; ``random`` in [0, 1)."""
    return pause * (0.5 + 0.5 * random)
