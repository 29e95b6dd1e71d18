"""The system clock, and RFC 3339 times."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def wall_now() -> float:
    """Return seconds since the epoch."""
    return time.time()


def monotonic() -> float:
    """Return seconds of a clock that never steps, in any thread."""
    return time.monotonic()


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as ``2026-11-23T09:26:00Z`` (UTC, rounded down to whole seconds)."""
    return f"{datetime.fromtimestamp(int(seconds), UTC).isoformat()[:-6]}Z"  # half the time of strftime


def when(seconds: float | None) -> str | None:
    """Return the RFC 3339 form of a time, None for None."""
    return None if seconds is None else rfc3339(seconds)
