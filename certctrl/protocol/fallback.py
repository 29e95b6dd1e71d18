"""Fallback: decide whether push is tried now, or the agent polls because push does not work.

    first minute without push      tries after 2, 4, 8, 16, 20 … s, polls in between
    after that                     long-poll; tries after 5, 10, 20, 40, 60, 60 … min
    a socket lasted a minute       push works; the next loss begins with the first row

Every pause is shortened by up to half, so that hosts behind one proxy do not try in step. A failure counts only if the
plane answered a poll right after it: an outage of the plane says nothing about push. ``random()`` is in [0, 1), times
are monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from certctrl.backoff import grown, jittered

PATIENCE = 60.0
"""Seconds without push after which the agent uses long-poll, and seconds after which a socket counts as stable."""
QUICK_FIRST, QUICK_LAST = 2.0, 20.0
FIRST_PAUSE, LAST_PAUSE = 300.0, 3600.0


class Fallback:
    """The failures of push, and the time of the next try."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.next_try_at = -math.inf
        self.why = ""
        """Why push does not work; empty: nothing is known to be wrong."""
        self.active = False
        """Whether the agent has settled on long-poll until the next try."""
        self._opened_at: float | None = None
        self._lost_at: float | None = None
        self._failures = 0

    def is_due(self, now: float) -> bool:
        """Return whether push is to be tried with this poll."""
        return now >= self.next_try_at

    def try_now(self) -> None:
        """Try push with the next poll, for an operator."""
        self.next_try_at = -math.inf

    def opened(self, now: float) -> None:
        """Note that a socket was opened and greeted."""
        self._opened_at = now

    def works(self, now: float) -> bool:
        """Return whether the open socket is stable; if so, forget all failures."""
        if self._opened_at is None or now - self._opened_at < PATIENCE:
            return False
        self._forget()
        return True

    def ended(self, now: float, why: str) -> bool:
        """Note that an open socket ended, as a failure unless it was stable; return whether that begins the fallback."""
        opened, stable = self._opened_at, self.works(now)
        self._opened_at = None
        if stable or opened is None:
            return False
        self._lost_at = opened if self._lost_at is None else self._lost_at
        return self.failed(now, why)

    def closed(self) -> None:
        """Note that an open socket ended for a reason other than a failure of push."""
        self._opened_at = None

    def failed(self, now: float, why: str) -> bool:
        """Count a failed try, and plan the next; return whether that begins the fallback."""
        self.why = why
        if self._lost_at is None:
            self._lost_at = now
        begins = not self.active and now - self._lost_at >= PATIENCE
        if begins:
            self.active, self._failures = True, 0
        self._failures += 1
        first, last = (FIRST_PAUSE, LAST_PAUSE) if self.active else (QUICK_FIRST, QUICK_LAST)
        self.next_try_at = now + jittered(grown(first, last, self._failures), self._random())
        return begins

    def refused(self, now: float, why: str) -> bool:
        """Note that the plane does not have push; return whether that begins the fallback."""
        if self._lost_at is None or now - self._lost_at < PATIENCE:
            self._lost_at = now - PATIENCE
        return self.failed(now, why)

    def _forget(self) -> None:
        self.why, self.active = "", False
        self._lost_at, self._failures = None, 0
