"""Run Trio deterministically by a seed: virtual time, and a scheduler whose choices follow the seed.

Trio shuffles the tasks that are ready at the same moment. Here it sorts them first and shuffles them with a seeded
generator, so each seed is one interleaving.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import trio
import trio._core._run as scheduler

START = 1_790_000_000.0
"""Epoch seconds at which every history begins: a Monday, 14:13:20 UTC."""


class Clock:
    """True time and the host's wall clock. Both follow Trio's clock, which stops on a suspended host."""

    def __init__(self) -> None:
        self.slept = 0.0
        """Seconds for which the host was suspended, while true time passed."""
        self.error = 0.0
        """Seconds by which the host's wall clock is wrong."""

    def now(self) -> float:
        """Return true epoch seconds."""
        return START + trio.current_time() - self.zero + self.slept

    def host_now(self) -> float:
        """Return the time of the host's wall clock, at least 0."""
        return max(0.0, self.now() + self.error)

    def steady_now(self) -> float:
        """Return a time that is never set, and that continues on a suspended host."""
        return trio.current_time() + self.slept

    def begin(self) -> None:
        """Start the history now."""
        self.zero = trio.current_time()


class VirtualClock(trio.abc.Clock):
    """Time that stands still while tasks can run, and is the next deadline as soon as none can.

    Trio's MockClock does the same with a second pass of the scheduler for each deadline, and also for real I/O, which a
    history has not.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Go to the next deadline; Trio asks only when no task can run."""
        if deadline == inf:
            return inf
        self._now = max(self._now, deadline)
        return 0.0

    def jump(self, seconds: float) -> None:
        """Let time pass at once, while tasks can run."""
        self._now += seconds


def run_seeded(seed: int, main: Callable[..., Awaitable[Any]], *args: object) -> Any:
    """Run ``main`` under virtual time with the interleaving of a seed."""
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = True, random.Random(seed)  # type: ignore[misc]
    try:
        return trio.run(main, *args, clock=VirtualClock())
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = before  # type: ignore[misc]
