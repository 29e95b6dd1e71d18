"""Events for ``Session.receive``: answers to steps, and requests from outside; their text for status and logs."""

from __future__ import annotations

import attrs

from certctrl import lean
from certctrl.model.signals import Signal
from certctrl.text import counted

# --- answers to Poll -------------------------------------------------------------------------------------


@lean.frozen
class NoUpdates:
    """204, or a 200 without signals."""

    cursor: str | None
    """None if the answer has no cursor: the last one stays valid."""
    status: int = attrs.field(default=204, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    """Seconds in [0, 3600], if the server requests a delay without an error."""
    pushed: bool = attrs.field(default=False, kw_only=True)
    """Whether a socket is open, so that the next poll takes no request."""


@lean.frozen
class Updates:
    """200 with at least one signal."""

    cursor: str | None
    signals: tuple[Signal, ...]
    full: bool
    """Whether there are as many signals as requested, so that more may follow."""
    free: bool = attrs.field(default=False, kw_only=True)
    """Whether the poll for the next page does not count against the plane's rate limit."""
    pushed: bool = attrs.field(default=False, kw_only=True)
    """Whether it was sent on a socket, where the next page takes no request."""
    status: int = attrs.field(default=200, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)


@lean.frozen
class TokenExpired:
    """401: refresh the token once, then poll once more."""


@lean.frozen
class DeviceRevoked:
    """403 as JSON with the key DEVICE_REVOKED: the session ends."""

    what: str


@lean.frozen
class CursorExpired:
    """409 with the key CURSOR_EXPIRED or the code 40901: drop the cursor and resync."""


@lean.frozen
class ServerBusy:
    """429 or 5xx from the plane itself."""

    status: int
    retry_after: float | None = None
    """Seconds in [0, 3600]; None: not requested."""
    key: str = ""


@lean.frozen
class Refused:
    """Any other error of the plane, caused by a bug or different versions; counts as a failure."""

    status: int
    key: str
    code: int
    what: str


@lean.frozen
class BadAnswer:
    """An answer outside the wire contract: HTML, truncated, wrong schema, a redirect."""

    why: str
    status: int = attrs.field(default=0, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    """Obeyed even for a 429 or 5xx that is not JSON, since a delay changes no state."""


@lean.frozen
class TransportFailed:
    """There was no answer: DNS, connect, TLS, deadline."""

    why: str
    fix: str = attrs.field(default="", kw_only=True)
    """The command or setting that fixes it; empty: unknown."""
    sent: bool = attrs.field(default=True, kw_only=True)
    """Whether the request may have been sent."""


# --- answers to the other steps ----------------------------------------------------------------------------


@lean.frozen
class Delivered:
    """The page is in the inbox and its cursor is saved, both durably."""


@lean.frozen
class DeliverFailed:
    """The page could not be saved; it is dropped, and the old cursor brings it again."""

    why: str


@lean.frozen
class AcksSent:
    """No ack is pending any longer."""


@lean.frozen
class AcksFailed:
    """Acks stay pending; they have a separate backoff and never delay polling."""

    why: str
    retry_after: float | None = None


@lean.frozen
class TokenRefreshed:
    """A fresh access token is in use."""


@lean.frozen
class RefreshRefused:
    """The refresh token was refused, perhaps in another process: the session ends."""

    what: str


@lean.frozen
class RefreshFailed:
    """The refresh failed for now: 5xx, 429, network, disk."""

    why: str
    retry_after: float | None = None
    lost: bool = attrs.field(default=False, kw_only=True)
    """Whether there was no answer, as in ``TransportFailed``."""


@lean.frozen
class Resynced:
    """The whole host was compared with the plane, and the stored cursor was deleted."""


@lean.frozen
class ResyncFailed:
    """The resync failed; it is retried before the next poll."""

    why: str
    retry_after: float | None = None
    lost: bool = attrs.field(default=False, kw_only=True)
    """Whether there was no answer, as in ``TransportFailed``."""


# --- from outside ----------------------------------------------------------------------------------------


@lean.frozen
class Started:
    """The first event of a session."""

    token_valid: bool


@lean.frozen
class PollNow:
    """An operator requests an immediate poll: ends every wait and closes the breaker."""


@lean.frozen
class Timer:
    """A wait is over; only ``now`` matters."""


PollAnswer = (
    NoUpdates
    | Updates
    | TokenExpired
    | DeviceRevoked
    | CursorExpired
    | ServerBusy
    | Refused
    | BadAnswer
    | TransportFailed
)
POLL_ANSWERS = (
    NoUpdates,
    Updates,
    TokenExpired,
    DeviceRevoked,
    CursorExpired,
    ServerBusy,
    Refused,
    BadAnswer,
    TransportFailed,
)
"""The members of `PollAnswer`, for isinstance."""

PollEnd = PollAnswer | RefreshFailed | RefreshRefused | ResyncFailed
POLL_ENDS = (*POLL_ANSWERS, RefreshFailed, RefreshRefused, ResyncFailed)
"""Events that end a requested poll, including those that prevent sending it."""

Event = (
    PollAnswer
    | Delivered
    | DeliverFailed
    | AcksSent
    | AcksFailed
    | TokenRefreshed
    | RefreshRefused
    | RefreshFailed
    | Resynced
    | ResyncFailed
    | Started
    | PollNow
    | Timer
)


def poll_code(event: PollAnswer) -> int | None:
    """Return the HTTP status; None without an answer."""
    match event:
        case TransportFailed():
            return None
        case TokenExpired():
            return 401
        case DeviceRevoked():
            return 403
        case CursorExpired():
            return 409
        case BadAnswer():
            return event.status or None
        case _:
            return event.status


def poll_text(event: PollEnd) -> str:
    """Return one short line for status and logs, such as ``204 No Content``."""
    match event:
        case NoUpdates():
            return "204 No Content" if event.status == 204 else f"{event.status} OK, no signals"
        case Updates():
            count = len(event.signals)
            return f"{event.status} OK, {counted(count, 'signal')}"
        case TokenExpired():
            return "401 access token expired"
        case DeviceRevoked():
            return "403 device revoked"
        case CursorExpired():
            return "409 cursor expired"
        case ServerBusy():
            return f"{event.status} {event.key or 'server busy'}"
        case Refused():
            return f"{event.status} {event.key or event.what}"
        case BadAnswer():
            return f"unusable answer: {event.why}"
        case TransportFailed():
            return f"no answer: {event.why}"
        case RefreshFailed():
            return f"token refresh failed: {event.why}"
        case RefreshRefused():
            return f"refresh token refused: {event.what}"
        case ResyncFailed():
            return f"comparison with the plane failed: {event.why}"
