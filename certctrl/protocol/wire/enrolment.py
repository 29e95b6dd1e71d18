"""Enrolment and tokens in: device grant, registration, refresh (api.md §1, §2 and §8)."""

from __future__ import annotations

from typing import Any

import attrs

from certctrl.errors import BadAnswerError, PlaneError
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
)
from certctrl.protocol.wire.answer import BUNDLE_CAP, data_of, parse_error
from certctrl.protocol.wire.reader import Misfit, Reader
from certctrl.text import one_line

REFUSAL_KEYS = frozenset(("INVALID_TOKEN", "TOKEN_EXPIRED"))
_DAY = 86_400


@attrs.frozen(kw_only=True)
class Registration:
    """The device row and the session that registration gives."""

    device_id: int
    user_id: int
    device_public_id: str
    name: str
    status: str
    access_token: str = attrs.field(repr=False)
    refresh_token: str = attrs.field(repr=False)
    expires_in: float | None
    """Seconds the access token lives; None when not said."""


@attrs.frozen(kw_only=True)
class Refreshed:
    """A fresh access token, and a new refresh token when the plane rotates them."""

    access_token: str = attrs.field(repr=False)
    refresh_token: str | None = attrs.field(default=None, repr=False)
    expires_in: float | None = None
    """Seconds; None when not said."""


def grant_from_wire(data: object) -> GrantStarted:
    """Return the start of a device grant; BadAnswerError when it does not fit."""
    try:
        row = Reader(data, "grant")
        return GrantStarted(
            device_code=row.text("device_code", limit=4096),
            user_code=_printable(row, "user_code", 64),
            verification_uri=_printable(row, "verification_uri", 2048),
            verification_uri_complete=_printable(row, "verification_uri_complete", 4096)
            if row.find("verification_uri_complete")[1] is not None
            else None,
            interval=float(row.maybe_integer("interval", ge=0, le=_DAY) or 5),
            expires_in=float(row.maybe_integer("expires_in", ge=1, le=_DAY) or 600),
        )
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None


def _printable(row: Reader, name: str, limit: int) -> str:
    text = row.text(name, limit=limit)
    if not text.isprintable():
        raise Misfit(f"{row.at(name)}: expected printable text")
    return text


def grant_event(answer: Answer, wall_now: float | None = None) -> GrantEvent:
    """Return what an answer to ``device_poll`` means; never raises.

    The status words come as ``data.status`` of a 2xx or, as in RFC 8628 §3.5, as the key of an error.
    """
    try:
        if 200 <= answer.status <= 299:
            return _grant_status(Reader(data_of(answer, cap=BUNDLE_CAP)))
        error = parse_error(answer, wall_now)
    except Misfit as misfit:
        return GrantFailed(str(misfit))
    except BadAnswerError as bad:
        return GrantFailed(bad.what)
    known = _GRANT_WORDS.get(error.key.lower())
    return known or GrantFailed(error.what, error.retry_after)


_GRANT_WORDS: dict[str, GrantEvent] = {
    "authorization_pending": GrantPending(),
    "pending": GrantPending(),
    "slow_down": GrantSlowDown(),
    "access_denied": GrantDenied(),
    "denied": GrantDenied(),
    "expired": GrantExpired(),
    "expired_token": GrantExpired(),
}


def _grant_status(row: Reader) -> GrantEvent:
    word = row.text("status", limit=64).lower()
    if word == "ready":
        return GrantReady(
            user_id=row.integer("user_id", ge=1),
            registration_code=row.text("registration_code", limit=4096),
            ttl=float(row.maybe_integer("registration_code_ttl", le=_DAY) or 0),
        )
    return _GRANT_WORDS.get(word) or GrantFailed(f"unknown grant status {one_line(word, 40)}")


def registration_from_wire(data: object) -> Registration:
    """Return a registration; BadAnswerError when it does not fit."""
    try:
        top = Reader(data, "registration")
        device, session = top.child("device"), top.child("session")
        return Registration(
            device_id=device.integer("id", ge=1),
            user_id=device.integer("user_id", ge=1),
            device_public_id=device.maybe_text("device_public_id", limit=128) or "",
            name=one_line(device.maybe_text("name") or ""),
            status=device.maybe_text("status", limit=64) or "",
            access_token=_token(session, "access_token"),
            refresh_token=_token(session, "refresh_token"),
            expires_in=_lifetime(session),
        )
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None


def refreshed_from_wire(data: object) -> Refreshed:
    """Return a refreshed session; BadAnswerError when it does not fit."""
    try:
        row = Reader(data, "session")
        rotated = row.find("refresh_token")[1] is not None
        return Refreshed(
            access_token=_token(row, "access_token"),
            refresh_token=_token(row, "refresh_token") if rotated else None,
            expires_in=_lifetime(row),
        )
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None


def _token(row: Reader, name: str) -> str:
    """Return a token that can stand in a header and on a line of a file."""
    text = row.text(name, limit=8192)
    if not all("!" <= c <= "~" for c in text):
        raise Misfit(f"{row.at(name)}: expected visible ASCII")
    return text


def _lifetime(row: Reader) -> float | None:
    value: Any = row.find("expires_in")[1]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        return None  # a convenience: the token's own `exp` decides
    return float(value)


def refresh_refused(error: PlaneError) -> bool:
    """Return whether the plane's answer to a refresh is final (api.md §2): register again, nothing else helps."""
    return error.status in (401, 403) or (400 <= error.status <= 499 and error.key in REFUSAL_KEYS)
