"""What to do next, as ``Session.next_step`` answers it; the poller performs a step and reports one event.

A step stands until its event arrives: asking again returns the same one (but for ``Wait``).
"""

from __future__ import annotations

from enum import StrEnum

import attrs

from certctrl.model.signals import Signal
from certctrl.model.status import StopReason


class WaitReason(StrEnum):
    """What the next request waits for."""

    START = "not started"
    SPREAD = "spread"
    INTERVAL = "interval"
    SERVER = "retry-after"
    BACKOFF = "backoff"
    BREAKER = "breaker"


@attrs.frozen
class Wait:
    """Do nothing until ``until``. Event: Timer, or PollNow, which ends the wait early."""

    until: float
    """Monotonic seconds; ``inf`` if only an operator can end the wait."""
    why: WaitReason


@attrs.frozen
class Poll:
    """Send one poll. Event: one of ``events.POLL_ANSWERS``, or RefreshRefused when no token could be had.

    PollNow instead of an answer gives this poll up for a fresh one that the server answers at once.
    """

    cursor: str | None
    limit: int
    wait: int
    """Seconds of long-poll; 0: answer at once."""


@attrs.frozen
class Deliver:
    """Hand the signals on, wait for their outcomes, make durable what is not done, *then* save the cursor (if any).

    Without signals there is only a cursor to save (a 204 that moved it). Event: Delivered, DeliverFailed.
    """

    cursor: str | None
    signals: tuple[Signal, ...]
    outcome_wait: float = 0.0
    """Seconds to wait at most for the outcomes of the signals."""


@attrs.frozen
class FlushAcks:
    """Send every pending ack; cheap when there is none. Event: AcksSent, AcksFailed."""


@attrs.frozen
class Refresh:
    """Get a fresh access token. Event: TokenRefreshed, RefreshRefused, RefreshFailed."""


@attrs.frozen
class Resync:
    """Bring the host to the plane's whole state, then forget the stored cursor. Event: Resynced, ResyncFailed."""


@attrs.frozen
class Terminate:
    """The session is over; there is no further step."""

    reason: StopReason
    detail: str = ""


Step = Wait | Poll | Deliver | FlushAcks | Refresh | Resync | Terminate


class AlertKind(StrEnum):
    """The problem that an alert is about."""

    BREAKER_OPEN = "breaker-open"
    DEVICE_REVOKED = "device-revoked"
    REFRESH_REFUSED = "refresh-refused"


@attrs.frozen
class Alert:
    """A problem that operators must know of; collected in ``Session.take_alerts``."""

    kind: AlertKind
    text: str
    resolved: bool = False
    """True if the problem is over."""
