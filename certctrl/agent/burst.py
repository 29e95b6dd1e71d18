"""Decide when a batch of ready certificates leaves.

The poller and the dispatcher report facts; no other module decides anything about bursts. A lone renewal
leaves immediately; a burst leaves when no page and no fetch is left that could add to it, when nothing has happened
for a while, or when the batch has collected for as long as it may.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trio_util import RepeatedEvent

SLOWEST_GAPS = 4
"""A batch waits this many times its own longest gap between two facts, if that is longer than the debounce: on an
overloaded host a burst is still one burst."""

PAGE_SECONDS = 5.0
"""How long a batch waits for a page that may follow: the plane's rate limit delays the pages of a long burst, and a
full page may have been the last."""


class BurstWatch:
    """The facts of the current burst, and when the batch that collects it leaves."""

    def __init__(self, *, debounce: Callable[[], tuple[float, float]], clock: Callable[[], float]) -> None:
        """``debounce`` returns how many seconds a batch waits for the next fact, and how many in all."""
        self._debounce = debounce
        self._clock = clock
        self._fetching = 0
        self._more_pages = False
        self._collecting_since: float | None = None
        self._last_fact_at = 0.0
        self._longest_gap = 0.0
        self.changed = RepeatedEvent()
        """Set when a certificate is the first of its batch, and when `leaves_at` may be earlier than before.

        Not with each fact of a burst: a task that waits for the batch asks again when it would leave.
        """

    @property
    def more_pages(self) -> bool:
        """Whether another page of the burst may follow."""
        return self._more_pages

    @property
    def is_alone(self) -> bool:
        """Whether one handler runs, and neither a ready certificate nor another page waits with it."""
        return self._fetching == 1 and not self._more_pages and self._collecting_since is None

    def full_page(self) -> None:
        """Note that a poll returned a full page: another one may follow."""
        self._more_pages = True

    def last_page(self) -> None:
        """Note that no page follows; the handlers of the last one have started."""
        if self._more_pages:
            self._more_pages = False
            self._note()
            self.changed.set()

    def fetch_queued(self) -> None:
        """Note that the handler of a renewal runs or waits for its turn."""
        self._fetching += 1

    def fetch_ended(self) -> None:
        """Note that such a handler ended, with or without a certificate."""
        self._fetching -= 1
        self._note()
        if not self._fetching and not self._more_pages:
            self.changed.set()

    def certificate_ready(self, *, first: bool = False) -> None:
        """Note that a certificate joined the batch; ``first``: there is no other in it now."""
        if self._collecting_since is None:
            self._collecting_since = self._last_fact_at = self._clock()
            self._longest_gap = 0.0
        self._note()
        if first:
            self.changed.set()

    def batch_left(self) -> None:
        """Note that the batch left; the next certificate starts another one."""
        self._collecting_since = None

    def leaves_at(self) -> float:
        """Return when the batch leaves if nothing else happens (by ``clock``); infinity while it is empty."""
        if self._collecting_since is None:
            return math.inf
        if not self._fetching and not self._more_pages:
            return self._clock()
        quiet, in_all = self._debounce()
        pause = max(PAGE_SECONDS if self._more_pages else quiet, SLOWEST_GAPS * self._longest_gap)
        return min(self._collecting_since + in_all, self._last_fact_at + pause)

    def _note(self) -> None:
        now = self._clock()
        self._longest_gap = max(self._longest_gap, now - self._last_fact_at)
        self._last_fact_at = now
