"""Duration: a histogram of seconds, as plain numbers."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import attrs

from certctrl import lean


@lean.define
class Duration:
    """A histogram: counts per bucket (upper bounds in seconds), sum and count."""

    bounds: tuple[float, ...]
    _exact: list[int] = attrs.field(init=False)
    """Observations by their least bucket."""
    total: float = 0.0
    count: int = 0

    def __attrs_post_init__(self) -> None:
        self._exact = [0] * len(self.bounds)

    @property
    def counts(self) -> list[int]:
        """Return the observations that are not above each bound."""
        return list(accumulate(self._exact))

    def add(self, seconds: float) -> None:
        """Count one observation."""
        self.total += seconds
        self.count += 1
        index = bisect_left(self.bounds, seconds)
        if index < len(self._exact):
            self._exact[index] += 1
