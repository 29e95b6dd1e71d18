"""Compute when the next request may be sent, within a limit that no bug can exceed.

After a request without new signals, none is sent within an interval (less jitter); after any three polls, none
within two intervals. Exceptions:

* The next page after a full one, and the next long poll after one with signals, are requested immediately as long as
  the plane's token bucket allows: one request per second, with a burst of five. A refusal would cost more than the
  wait. A page that the plane does not count is always requested immediately.
* Operators may request one poll per second.
* The first retry after a lost connection is sent at a random moment: all hosts of a fleet may have lost theirs.

Polls of a fleet that begin together also end together. So the first long poll after signals or a start has a random
length; all others have the full one, of which the control plane holds a random part.

Only signals with a *new* cursor count: a page that would come again must not be requested again immediately.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import assert_never

from certctrl.model.config import ApplicationConfig, PollMode, Recovery
from certctrl.protocol import steps
from certctrl.protocol.breaker import FIRST_PROBE_PAUSE, CircuitBreaker
from certctrl.protocol.events import NoUpdates, Updates
from certctrl.protocol.wire.poll import LEAST_HELD

_BURST = 5
_ON_THE_WAY = 1.0
"""Upper bound in seconds for the time between sending a poll and the plane counting it."""
_RETURN_SPREAD = 25.0
"""Seconds over which retries after a lost connection are spread, at least, unless polls are held."""
_HELD = 1.0
"""Seconds from which a poll that failed was certainly held before."""
_MAX_CUT = 2
"""Held polls in a row that failed, after which the server answers the next one immediately."""


class Schedule:
    """When the next request is due, and why. Times are monotonic seconds."""

    def __init__(self, config: ApplicationConfig, random: Callable[[], float]) -> None:
        self.breaker = CircuitBreaker(config, random)
        self._random = random
        self.due = math.inf
        self.why = steps.WaitReason.START
        self._urgent = False  # the next poll is exempt from the limit
        self._prompt = self._quick = False  # requested by an operator: send now / not as a long poll
        self._starts: deque[float] = deque(maxlen=3)
        self._full = self._full_before = -math.inf  # when the plane's bucket is full again; without the last poll
        self._free = self._was_free = False  # the next poll takes no token from it; the last one did not
        self._last_request = -math.inf
        self._expecting_until = -math.inf
        self._wait = 0  # seconds for which the last request, a poll, may be held
        self._in_phase = True  # other hosts may poll at the same moment as this one
        self._cut = 0  # held polls in a row that failed; a gateway may end all that last too long

    @property
    def config(self) -> ApplicationConfig:
        """The current configuration."""
        return self.breaker.config

    def reconfigure(self, config: ApplicationConfig, now: float | None) -> None:
        """Switch to a configuration; it may shorten an interval or the wait of an open breaker, but not a Retry-After."""
        self.breaker.config = config
        if now is None:
            return
        if self.why == steps.WaitReason.INTERVAL:
            self.due = min(self.due, now + self.breaker.interval())
        elif self.why == steps.WaitReason.BREAKER and config.recovery is Recovery.AUTO:
            self.due = min(self.due, now + FIRST_PROBE_PAUSE)

    def plan(self, due: float, why: steps.WaitReason) -> None:
        """Set the time of the next request."""
        self.due, self.why, self._urgent, self._free = due, why, False, False

    def due_at(self, *, poll: bool) -> float:
        """Return when the next request may be sent; ``poll``: whether it is a poll, which the limit applies to."""
        base = self.breaker.base
        if self._prompt:
            return self._last_request + min(1.0, base)
        if not poll or self._urgent or len(self._starts) < 3:
            return self.due
        return max(self.due, self._starts[-3] + 2 * base)

    def poll_now(self) -> None:
        """Make the next request due immediately, for an operator."""
        self._prompt = self._quick = True
        if self.breaker.is_open:
            self.breaker.reset()

    def expect_updates(self, now: float) -> None:
        """Make `adaptive` mode long-poll for its window, because updates have arrived."""
        self._expecting_until = now + self.config.adaptive_window_seconds

    def note_request(self, now: float) -> None:
        """Note that a request is sent."""
        self._last_request = now
        self._prompt = False
        self._wait = 0

    def note_poll(self, now: float) -> int:
        """Note that a poll is sent and return its long-poll seconds.

        The server answers immediately for an operator, who wants to know whether it answers, and after two held polls
        that failed. After any other failure, a poll that is not held would only be followed by a second one.
        """
        wait = 0
        if self._cut >= _MAX_CUT:
            self._cut = _MAX_CUT - 1
        elif self._may_be_held(now) and not self._quick:
            wait = self._hold()
        self.note_request(now)
        self._wait = wait
        self._quick = self._urgent = False
        self._starts.append(now)
        self._full_before, self._was_free, self._free = self._full, self._free, False
        self._take(now)
        return wait

    def _hold(self) -> int:
        """Return the length of a long poll."""
        longest = self.config.long_poll_wait_seconds
        if not self._in_phase:
            return longest
        self._in_phase = False
        interval = self.breaker.base * (1 + self.config.poll_jitter)
        least = min(math.ceil(interval / LEAST_HELD), longest)  # a shorter one would be followed by a pause
        return least + int(self._random() * (longest - least + 1))

    def _may_be_held(self, now: float) -> bool:
        """Return whether the poll mode lets the server hold a poll that is sent now."""
        match self.config.poll_mode:
            case PollMode.INTERVAL:
                return False
            case PollMode.LONG_POLL | PollMode.PUSH:
                return True
            case PollMode.ADAPTIVE:
                return now < self._expecting_until
            case _:
                assert_never(self.config.poll_mode)

    def _take(self, when: float) -> None:
        """Assume when the last poll took its token: never too early, or the next poll might be refused."""
        if not self._was_free:
            self._full = max(self._full_before, when) + self._refill

    @property
    def _refill(self) -> float:
        return min(1.0, self.breaker.base)

    def after_success(self, poll: steps.Poll, event: NoUpdates | Updates, progress: bool, now: float) -> None:
        """Plan the poll after a successful one; ``progress``: it had signals and a new cursor."""
        self._take(min(now, self._last_request + _ON_THE_WAY))
        if progress:
            self._in_phase = True
        elif poll.wait:
            self._cut = 0
        if event.retry_after is not None:
            self.plan(now + self.breaker.server_delay(event.retry_after), steps.WaitReason.SERVER)
        elif (event.pushed and (progress or isinstance(event, NoUpdates))) or (
            progress and isinstance(event, Updates) and event.full and event.free
        ):
            self.plan(now, steps.WaitReason.INTERVAL)
            self._urgent = self._free = True
        elif progress and (poll.wait or (isinstance(event, Updates) and event.full)):
            self.plan(max(now, self._full - (_BURST - 1) * self._refill), steps.WaitReason.INTERVAL)
            self._urgent = True
        else:
            self.after_interval(now, held=poll.wait > 0)

    def after_interval(self, now: float, *, held: bool) -> None:
        """Plan the next poll one interval from now, or from the start of the last poll if the server held it."""
        since = self._starts[-1] if held and self._starts else now
        self.plan(max(now, since + self.breaker.interval()), steps.WaitReason.INTERVAL)

    def after_failure(self, retry_after: float | None, now: float, *, lost: bool = False, sent: bool = True) -> bool:
        """Count a failure and plan the next request; return whether it opened the breaker.

        ``lost``: there was no answer. ``sent``: the request may have been sent.
        """
        was_open = self.breaker.is_open
        if self._wait and sent and now - self._last_request >= _HELD:
            self._cut += 1
        delay = self.breaker.failed(retry_after, self._return_spread(now) if lost else None)
        why = steps.WaitReason.BACKOFF if retry_after is None else steps.WaitReason.SERVER
        self.plan(now + delay, steps.WaitReason.BREAKER if self.breaker.is_open else why)
        return self.breaker.is_open and not was_open

    def _return_spread(self, now: float) -> float:
        """Return over how many seconds retries after a lost connection are spread."""
        if self._may_be_held(now):
            return self.config.long_poll_wait_seconds
        return max(self.breaker.base, _RETURN_SPREAD)
