"""One run of Trio that a seed decides: virtual time, and a scheduler whose choices follow the seed.

Trio shuffles the tasks that are ready at the same moment. Here it shuffles a sorted batch with a generator of ours,
so a seed names one interleaving, and another seed is another.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio._core._run as scheduler
from trio.testing import MockClock

START = 1_790_000_000.0
"""Epoch seconds at which every history begins."""


class WorldTime:
    """True time, and the host's idea of it. Both go with Trio's clock; a suspended host's clocks stand still."""

    def __init__(self) -> None:
        self.slept = 0.0
        """Seconds that the host was suspended: everybody else's time went on."""
        self.error = 0.0
        """Seconds by which the host's wall clock is wrong."""

    def now(self) -> float:
        """Return true epoch seconds."""
        return START + trio.current_time() - self.zero + self.slept

    def host_now(self) -> float:
        """Return what the host's wall clock says; it does not go below 1970."""
        return max(0.0, self.now() + self.error)

    def begin(self) -> None:
        """Take this moment for the beginning."""
        self.zero = trio.current_time()


def run_seeded(seed: int, main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run ``main`` under virtual time with the interleaving that belongs to ``seed``."""
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = True, random.Random(seed)
    try:
        return trio.run(main, *args, clock=MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = before
