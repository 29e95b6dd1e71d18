"""Steps that ``Session.next_step`` returns; the poller performs each and reports one event.

A step stays current until its event arrives: ``next_step`` returns the same one again, except ``Wait``.
"""

from __future__ import annotations

from enum import StrEnum

from certctrl import lean
from certctrl.model.signals import Signal
from certctrl.model.status import StopReason


class WaitReason(StrEnum):
    """Why the next request waits."""

    START = "not started"
    SPREAD = "spread"
    INTERVAL = "interval"
    SERVER = "retry-after"
    BACKOFF = "backoff"
    BREAKER = "breaker"


@lean.frozen
class Wait:
    """Do nothing until ``until``. Event: Timer, or PollNow, which ends the wait early."""

    until: float
    """Monotonic seconds; ``inf`` if only an operator can end the wait."""
    why: WaitReason


@lean.frozen
class Poll:
    """Send one poll. Event: one of ``events.POLL_ANSWERS``, or RefreshRefused if there is no token.

    PollNow instead of an answer abandons this poll for a new one that the server answers immediately.
    """

    cursor: str | None
    limit: int
    wait: int
    """Seconds that the server may hold the poll; 0: none."""


@lean.frozen
class Deliver:
    """Pass signals on, wait for their outcomes, save the unfinished ones and *then* the cursor, if any.

    Without signals, only the cursor is saved (a 204 that moved it). Event: Delivered, DeliverFailed.
    """

    cursor: str | None
    signals: tuple[Signal, ...]
    outcome_wait: float = 0.0
    """Upper bound in seconds of the wait for outcomes."""


@lean.frozen
class FlushAcks:
    """Send all pending acks; cheap if there are none. Event: AcksSent, AcksFailed."""


@lean.frozen
class Refresh:
    """Get a new access token. Event: TokenRefreshed, RefreshRefused, RefreshFailed."""


@lean.frozen
class Resync:
    """Bring the host to the plane's full state, then delete the stored cursor. Event: Resynced, ResyncFailed."""


@lean.frozen
class Terminate:
    """End: there is no further step."""

    reason: StopReason
    detail: str = ""


AnsweredStep = Wait | Poll | Deliver | FlushAcks | Refresh | Resync
"""Steps that end with an event."""
Step = AnsweredStep | Terminate


class AlertKind(StrEnum):
    """The problem that an alert is about."""

    BREAKER_OPEN = "breaker-open"
    DEVICE_REVOKED = "device-revoked"
    REFRESH_REFUSED = "refresh-refused"


@lean.frozen
class Alert:
    """A problem to report to operators, or its end; collected in ``Session.take_alerts``."""

    kind: AlertKind
    text: str
    resolved: bool = False
    """True if the problem is over."""
