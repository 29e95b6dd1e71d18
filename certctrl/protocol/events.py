"""What happened, for ``Session.receive``: answers to steps, and word from outside."""

from __future__ import annotations

import attrs

from certctrl.model.signals import Signal

# --- answers to Poll -------------------------------------------------------------------------------------


@attrs.frozen
class NoUpdates:
    """204, or a 200 without signals."""

    cursor: str | None
    """None when the answer named none: the last one stays."""
    status: int = attrs.field(default=204, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    """Seconds in [0, 3600]: the server asks to slow down although all is well."""


@attrs.frozen
class Updates:
    """200 with at least one signal."""

    cursor: str | None
    signals: tuple[Signal, ...]
    full: bool
    """As many signals as asked for: there may be more."""
    free: bool = attrs.field(default=False, kw_only=True)
    """The plane does not count the poll that asks for the page behind a full one."""
    status: int = attrs.field(default=200, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class TokenExpired:
    """401: refresh once, retry once."""


@attrs.frozen
class DeviceRevoked:
    """403 with the key DEVICE_REVOKED, as JSON: the end."""

    what: str


@attrs.frozen
class CursorExpired:
    """409 with the key CURSOR_EXPIRED or the code 40901: drop the cursor, resync."""


@attrs.frozen
class ServerBusy:
    """429 or 5xx, said by the plane itself."""

    status: int
    retry_after: float | None = None
    """Seconds in [0, 3600]; None: the server named none."""
    key: str = ""


@attrs.frozen
class Refused:
    """Any other error of the plane's: a bug or a version skew; counts as a failure."""

    status: int
    key: str
    code: int
    what: str


@attrs.frozen
class BadAnswer:
    """Something answered, but not in our language: HTML, truncated, wrong schema, a redirect."""

    why: str
    status: int = attrs.field(default=0, kw_only=True)
    retry_after: float | None = attrs.field(default=None, kw_only=True)
    """Of a 429 or 5xx whose page was for people: asking for a pause is not a change of state."""


@attrs.frozen
class TransportFailed:
    """No answer: DNS, connect, TLS, deadline."""

    why: str
    fix: str = attrs.field(default="", kw_only=True)
    """The next thing to type, where the failure says it."""


# --- answers to the other steps ----------------------------------------------------------------------------


@attrs.frozen
class Delivered:
    """The page is in the inbox and its cursor on disk, both durably."""


@attrs.frozen
class DeliverFailed:
    """The page could not be made durable: it is forgotten, and comes again with the old cursor."""

    why: str


@attrs.frozen
class AcksSent:
    """No ack is pending any more (also when there was none)."""


@attrs.frozen
class AcksFailed:
    """Acks stay pending; they have their own backoff and never hold up polling."""

    why: str
    retry_after: float | None = None


@attrs.frozen
class TokenRefreshed:
    """A fresh access token is in use."""


@attrs.frozen
class RefreshRefused:
    """The refresh token was refused, by whoever tried: final."""

    what: str


@attrs.frozen
class RefreshFailed:
    """The refresh did not work this time: 5xx, 429, network, disk."""

    why: str
    retry_after: float | None = None


@attrs.frozen
class Resynced:
    """The host was compared with the plane as a whole, and the stored cursor is gone."""


@attrs.frozen
class ResyncFailed:
    """The resync did not come through; it is tried again before anything is polled."""

    why: str
    retry_after: float | None = None


# --- from outside ----------------------------------------------------------------------------------------


@attrs.frozen
class Started:
    """The first event of a session."""

    token_valid: bool


@attrs.frozen
class PollNow:
    """Somebody asks for a poll at once: ends every wait, closes the breaker."""


@attrs.frozen
class Timer:
    """A wait is over; says nothing that ``now`` does not say."""


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
"""The same as `PollAnswer`, for isinstance."""

PollEnd = PollAnswer | RefreshFailed | RefreshRefused | ResyncFailed
POLL_ENDS = (*POLL_ANSWERS, RefreshFailed, RefreshRefused, ResyncFailed)
"""What may be the last word on a poll that somebody waits for: it may not even get as far as being sent."""

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
    """Return the HTTP status; None when nothing answered."""
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
    """Return one short line for a person, such as ``204 No Content``."""
    match event:
        case NoUpdates():
            return "204 No Content" if event.status == 204 else f"{event.status} OK, no signals"
        case Updates():
            count = len(event.signals)
            return f"{event.status} OK, {count} signal{'s' if count != 1 else ''}"
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
