"""Exponential backoff with jitter."""

from __future__ import annotations

_MAX_DOUBLINGS = 32


def grown(first: float, last: float, failures: int) -> float:
    """Return the pause after ``failures`` consecutive failures: ``first`` seconds, doubled up to ``last``."""
    return min(last, first * 2.0 ** min(max(failures, 1) - 1, _MAX_DOUBLINGS))


def jittered(pause: float, random: float) -> float:
    """Return a pause shortened by up to half, so that hosts do not retry in step; ``random`` is in [0, 1)."""
    return pause * (0.5 + 0.5 * random)
