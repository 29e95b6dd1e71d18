"""Duration: a histogram of seconds, as plain numbers."""

from __future__ import annotations

import attrs

from certctrl import lean


@lean.define
class Duration:
    """A histogram: counts per bucket (upper bounds in seconds), sum and count."""

    bounds: tuple[float, ...]
    counts: list[int] = attrs.field(init=False)
    total: float = 0.0
    count: int = 0

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * len(self.bounds)

    def add(self, seconds: float) -> None:
        """Count one observation."""
        self.total += seconds
        self.count += 1
        for index, bound in enumerate(self.bounds):
            if seconds <= bound:
                self.counts[index] += 1
