"""The one place of the plane that reads the machine's clock and speaks RFC 3339."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def wall_now() -> float:
    """Return seconds since the epoch."""
    return time.time()


def rfc3339(seconds: float) -> str:
    """Return ``2026-11-23T09:26:00Z`` for seconds since the epoch (UTC, whole seconds, rounded down)."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def when(seconds: float | None) -> str | None:
    """Return the RFC 3339 text of a moment that may not have come."""
    return None if seconds is None else rfc3339(seconds)
