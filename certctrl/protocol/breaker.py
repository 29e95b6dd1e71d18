"""Compute the delay before the next request (spec "Poll Interval Management").

    no failures       interval ± jitter
    Retry-After       the server's delay, once: at least the interval, at most an hour, never early
    n failures        interval … min(300 s, interval × 2^(n-1))
    connection lost   the same, but at least as far as the spread, and the first retry from half a second on
    breaker open      30 s … min(900 s, 60 s × 2^k), or no retry with ``"recovery": "manual"``

After failures, the delay is drawn from the whole range, not from its upper half. All hosts of a fleet see an
outage at the same time, and with half the range their retries still arrive in waves once the plane is back
(simulated: in the worst ten seconds 3.6 times the mean after an outage of two minutes and 2.2 times after thirty,
instead of 2.4 and 1.7 times).

A lost connection may be that of the whole fleet. With retries after one interval, all hosts are back in phase after a
plane was away for three seconds; the spread is as long as their polls are apart anyway.

``random()`` returns a float in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from certctrl.backoff import grown
from certctrl.model.config import ApplicationConfig, Recovery

SERVER_CAP = 3600.0
BACKOFF_CAP = 300.0
MIN_PROBE_PAUSE = 30.0
FIRST_PROBE_PAUSE = 60.0
MAX_PROBE_PAUSE = 900.0
SOONEST_RETURN = 0.5
"""Least delay of the first retry after a lost connection."""


class CircuitBreaker:
    """Count failures, open after too many, and compute delays in seconds."""

    def __init__(self, config: ApplicationConfig, random: Callable[[], float]) -> None:
        self.config = config
        self._random = random
        self.failures = 0
        self.is_open = False
        self.last_retry_after: float | None = None
        """The last server delay obeyed, before jitter; None: none yet."""
        self._probes = 0

    @property
    def base(self) -> float:
        """The interval without jitter; at least 10 ms."""
        return max(self.config.poll_interval_ms, 10) / 1000

    def interval(self) -> float:
        """Return one interval with jitter in both directions."""
        return self.base * (1 + self.config.poll_jitter * (2 * self._random() - 1))

    def first_delay(self) -> float:
        """Return the delay of the first request, which spreads the requests of a rebooted fleet."""
        return self.config.first_poll_spread_seconds * self._random()

    def server_delay(self, retry_after: float) -> float:
        """Return the delay for a Retry-After, clamped to [base, 3600]; jitter only adds to it."""
        delay = min(max(retry_after, self.base), SERVER_CAP)
        self.last_retry_after = delay
        return min(delay * (1 + self.config.poll_jitter * self._random()), SERVER_CAP)

    def backoff(self, failures: int, spread: float | None = None) -> float:
        """Return the delay after consecutive failures; at least one interval, except for the first lost connection.

        ``spread``: seconds over which retries after a lost connection are spread; None: the server answered.
        """
        if failures <= 1:
            return self.interval() if spread is None else self._return(spread)
        longest = max(grown(self.base, BACKOFF_CAP, failures), spread or 0.0)
        return max(self.interval(), self.base + self._random() * (longest - self.base))

    def _return(self, spread: float) -> float:
        return SOONEST_RETURN + self._random() * max(spread - SOONEST_RETURN, 0.0)

    def _probe(self) -> float:
        """Return the delay until the next probe of an open breaker, and count the probe."""
        self._probes += 1
        longest = grown(FIRST_PROBE_PAUSE, MAX_PROBE_PAUSE, self._probes)
        return max(self.interval(), MIN_PROBE_PAUSE + self._random() * (longest - MIN_PROBE_PAUSE))

    def failed(self, retry_after: float | None = None, spread: float | None = None) -> float:
        """Count a failure and return the delay until the next request; ``inf``: until an operator resumes polling.

        ``spread``: as for ``backoff``.
        """
        self.failures += 1
        asked = None if retry_after is None else self.server_delay(retry_after)
        if not self.is_open and self.failures < self.config.breaker_failures:
            return self.backoff(self.failures, spread) if asked is None else asked
        self.is_open = True
        if self.config.recovery is Recovery.MANUAL:
            return math.inf
        return max(self._probe(), asked or 0.0)

    def reset(self) -> None:
        """Forget all failures and close the breaker."""
        self.failures = 0
        self.is_open = False
        self._probes = 0
