"""Device grants from the plane (RFC 8628, docs/protocol.md)."""

from __future__ import annotations

from certctrl import lean
from certctrl.errors import BadAnswerError
from certctrl.model.answer import Answer
from certctrl.protocol.device_flow import (
    GrantDenied,
    GrantEvent,
    GrantExpired,
    GrantFailed,
    GrantPending,
    GrantReady,
    GrantSlowDown,
    GrantStarted,
    GrantUnusable,
)
from certctrl.protocol.wire.answer import BUNDLE_CAP, data_of, parse_error
from certctrl.protocol.wire.reader import Hook, Misfit, from_answer, integer, printable, text, wire_class
from certctrl.text import one_line

_DAY = 86_400


def _seconds(ge: int, default: float) -> Hook:
    whole = integer(ge, _DAY)
    return lambda value, _=None: float(whole(value)) or default


_read_grant = wire_class(
    GrantStarted,
    {
        "device_code": text(4096),
        "user_code": printable(64),
        "verification_uri": printable(2048),
        "verification_uri_complete": printable(4096),
        "interval": _seconds(0, 5.0),
        "expires_in": _seconds(1, 600.0),
    },
)


@lean.frozen
class _GrantStatus:
    status: str


_read_status = wire_class(_GrantStatus, {"status": text(64)})
_read_ready = wire_class(
    GrantReady,
    {"user_id": integer(ge=1), "registration_code": text(4096), "ttl": _seconds(0, 0.0)},
    names={"ttl": "registration_code_ttl"},
)


def grant_from_wire(data: object) -> GrantStarted:
    """Return the start of a device grant; raises BadAnswerError if it does not fit."""
    return from_answer(_read_grant, data, "grant")


def grant_event(answer: Answer, wall_now: float | None = None) -> GrantEvent:
    """Return the event for an answer to ``device_poll``; never raises.

    The status is ``data.status`` of a 2xx or, as in RFC 8628 §3.5, the key of an error.
    """
    try:
        if 200 <= answer.status <= 299:
            return _grant_status(data_of(answer, cap=BUNDLE_CAP))
        error = parse_error(answer, wall_now)
    except Misfit as misfit:
        return GrantFailed(str(misfit))
    except BadAnswerError as bad:
        return GrantFailed(bad.what)
    return _GRANT_EVENTS.get(error.key.lower()) or GrantFailed(error.what, error.retry_after)


_GRANT_EVENTS: dict[str, GrantEvent] = {
    "authorization_pending": GrantPending(),
    "pending": GrantPending(),
    "slow_down": GrantSlowDown(),
    "access_denied": GrantDenied(),
    "denied": GrantDenied(),
    "expired": GrantExpired(),
    "expired_token": GrantExpired(),
}


def _grant_status(data: object) -> GrantEvent:
    status = _read_status(data).status.lower()
    if status == "ready":
        try:
            return _read_ready(data)
        except Misfit as misfit:  # final: the plane gives out a grant only once
            return GrantUnusable(f"approved, but the plane's answer cannot be used: {misfit}")
    return _GRANT_EVENTS.get(status) or GrantFailed(f"unknown grant status {one_line(status, 40)}")
