"""How long to stay away: interval, server delay, backoff, breaker (spec "Poll Interval Management"; safety.md §1.2–3).

    all is well       interval ± jitter
    server says       its delay, once: never below the interval, never above an hour, never early
    n failures        interval … min(300 s, interval × 2^(n-1))
    breaker open      30 s … min(900 s, 60 s × 2^k), or for ever with ``"recovery": "manual"``

After failures chance takes the whole span below the cap, not the upper half of it: a fleet meets an outage
together, and with half the span its retries still come in waves when the plane is back (simulated: in the
worst ten seconds 3.6 times the mean after an outage of two minutes, 2.2 times after thirty; now 2.4 and 1.7).

Chance is an argument: ``random()`` in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from certctrl.backoff import grown
from certctrl.model.config import ApplicationConfig

SERVER_CAP = 3600.0
BACKOFF_CAP = 300.0
PROBE_LEAST = 30.0
PROBE_FIRST = 60.0
PROBE_CAP = 900.0


class CircuitBreaker:
    """The failure count, the breaker, and the delays that follow from them. All delays in seconds."""

    def __init__(self, config: ApplicationConfig, random: Callable[[], float]) -> None:
        self.config = config
        self._random = random
        self.failures = 0
        self.is_open = False
        self.last_retry_after: float | None = None
        """The server's last wish as obeyed, before jitter; None: never any."""
        self._probes = 0

    @property
    def base(self) -> float:
        """The interval without jitter; at least 10 ms."""
        return max(self.config.poll_interval_ms, 10) / 1000

    def interval(self) -> float:
        """Return one base interval with jitter to both sides."""
        return self.base * (1 + self.config.poll_jitter * (2 * self._random() - 1))

    def first_delay(self) -> float:
        """Return how long the first request of a run is put off, so that a rebooted fleet does not come at once."""
        return self.config.first_poll_spread_seconds * self._random()

    def server_delay(self, retry_after: float) -> float:
        """Return the delay for a server's wish, clamped to [base, 3600]; jitter only adds to it."""
        delay = min(max(retry_after, self.base), SERVER_CAP)
        self.last_retry_after = delay
        return min(delay * (1 + self.config.poll_jitter * self._random()), SERVER_CAP)

    def backoff(self, failures: int) -> float:
        """Return the delay after so many failures in a row; never below an interval."""
        if failures <= 1:
            return self.interval()
        longest = grown(self.base, BACKOFF_CAP, failures)
        return max(self.interval(), self.base + self._random() * (longest - self.base))

    def _probe(self) -> float:
        """Return the delay until the next probe of an open breaker, and count it."""
        self._probes += 1
        longest = grown(PROBE_FIRST, PROBE_CAP, self._probes)
        return max(self.interval(), PROBE_LEAST + self._random() * (longest - PROBE_LEAST))

    def failed(self, retry_after: float | None = None) -> float:
        """Count one failure and return the delay until the next try; ``inf``: only a person resumes."""
        self.failures += 1
        asked = None if retry_after is None else self.server_delay(retry_after)
        if not self.is_open and self.failures < self.config.breaker_failures:
            return self.backoff(self.failures) if asked is None else asked
        self.is_open = True
        if self.config.recovery == "manual":
            return math.inf
        return max(self._probe(), asked or 0.0)

    def reset(self) -> None:
        """Forget all failures and close the breaker: the plane answered, or a person says so."""
        self.failures = 0
        self.is_open = False
        self._probes = 0
