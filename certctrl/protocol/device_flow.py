"""Device authorization (RFC 8628) as a small state machine.

Polls are at least ``interval`` apart. ``slow_down`` adds five seconds permanently; a failed connection doubles only the
pause before the next poll. No poll is sent after the code has expired.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs

from certctrl import lean
from certctrl.backoff import grown

SLOW_DOWN = 5.0
MIN_INTERVAL = 1.0
MAX_INTERVAL = 300.0
MAX_PAUSE = 60.0


@lean.frozen(kw_only=True)
class GrantStarted:
    """The codes of a grant: one for the operator, one for polls."""

    device_code: str = attrs.field(repr=False)
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None = None
    interval: float = 5.0
    """Seconds between polls."""
    expires_in: float = 600.0
    """Seconds until the code expires."""


# --- events ------------------------------------------------------------------------------------------------


@lean.frozen
class GrantPending:
    """The request is not decided yet."""


@lean.frozen
class GrantSlowDown:
    """The request is not decided yet, and the agent polls too often."""


@lean.frozen
class GrantDenied:
    """The operator denied the request."""


@lean.frozen
class GrantExpired:
    """The code has expired, according to the plane."""


@lean.frozen(kw_only=True)
class GrantReady:
    """The operator approved the request."""

    user_id: int
    registration_code: str = attrs.field(repr=False)
    ttl: float = 0.0
    """Lifetime of the registration code in seconds; 0: unknown."""


@lean.frozen
class GrantFailed:
    """There was no usable answer: network error, 5xx, 429, HTML."""

    why: str
    retry_after: float | None = None


@lean.frozen
class GrantUnusable:
    """The operator approved the request, but the answer does not allow a registration."""

    why: str


GrantEvent = GrantPending | GrantSlowDown | GrantDenied | GrantExpired | GrantReady | GrantUnusable | GrantFailed


# --- steps -------------------------------------------------------------------------------------------------


@lean.frozen
class PollGrant:
    """Poll with the device code, not before ``at`` (monotonic seconds)."""

    at: float


@lean.frozen
class Done:
    """Register with the granted code."""

    grant: GrantReady


@lean.frozen
class Refused:
    """End: the request was denied, or its approval cannot be used."""

    why: str = "denied on the approval page"


@lean.frozen
class Expired:
    """End: the code expired before a decision."""

    last_trouble: str = ""
    """Why the last poll failed, if it failed."""


GrantStep = PollGrant | Done | Refused | Expired


class DeviceFlow:
    """One device grant, from the code on the screen to the decision; times are monotonic seconds."""

    def __init__(self, started: GrantStarted, now: float) -> None:
        self.started = started
        self.interval = min(max(started.interval, MIN_INTERVAL), MAX_INTERVAL)
        self.expires_at = now + max(started.expires_in, 0.0)
        self._next_at = now + self.interval
        self._failures = 0
        self._trouble = ""
        self._end: Done | Refused | Expired | None = None

    def receive(self, event: GrantEvent, now: float) -> None:
        """Process the answer to one poll; answers after the end are ignored."""
        if self._end is not None:
            return
        match event:
            case GrantReady():
                self._end = Done(event)
                return
            case GrantDenied():
                self._end = Refused()
                return
            case GrantUnusable():
                self._end = Refused(event.why)
                return
            case GrantExpired():
                self._end = Expired(self._trouble)
                return
            case GrantFailed():
                self._failures += 1
                self._trouble = event.why
                pause = grown(self.interval, max(MAX_PAUSE, self.interval), self._failures)
                self._next_at = now + max(pause, event.retry_after or 0.0)
                return
            case GrantSlowDown():
                self.interval = min(self.interval + SLOW_DOWN, MAX_INTERVAL)
            case GrantPending():
                pass
        self._failures, self._trouble = 0, ""
        self._next_at = now + self.interval

    def next_step(self, now: float) -> GrantStep:
        """Return the next step; the flow ends as soon as the code would expire before the next poll."""
        if self._end is None and max(now, self._next_at) >= self.expires_at:
            self._end = Expired(self._trouble)
        return self._end or PollGrant(self._next_at)


def uri_problem(uri: str, server_url: str, approval_host: str = "") -> str | None:
    """Return why operators must not be sent to ``uri``; None if it is a page of the control plane.

    It must be https (http if the plane's own URL is http on the same host), without credentials, and on the plane's
    host or on ``approval_host``, which this host's operator has configured.
    """
    try:
        page, plane = urlsplit(uri), urlsplit(server_url)
        ours, theirs = (plane.hostname or "").lower(), (page.hostname or "").lower()
        page.port, plane.port  # noqa: B018  # raises ValueError for an invalid port
    except ValueError:
        return "it is not a URL"
    if page.scheme != "https" and not (page.scheme == "http" == plane.scheme and ours == theirs):
        return "it is not https"
    if page.username is not None or page.password is not None:
        return "it contains credentials"
    if not theirs or theirs not in (ours, approval_host.lower()):
        return f"it is on another host than {ours or 'the control plane'}"
    return None
