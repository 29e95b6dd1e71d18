"""Registrations and token refreshes from the plane (docs/protocol.md)."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import BadAnswerError, PlaneError
from certctrl.protocol.wire.reader import Hook, Misfit, from_answer, integer, text, wire_class
from certctrl.text import one_line

KEY_PROOF = "key-proof"
"""The feature of an agent that can prove possession of its secret key."""
REFUSAL_KEYS = frozenset(("INVALID_TOKEN", "TOKEN_EXPIRED"))
_MAX_ANCHOR = 16_384


@lean.frozen(kw_only=True)
class Registration:
    """The device and the session that a registration creates."""

    device_id: int
    user_id: int
    device_public_id: str
    name: str
    status: str
    access_token: str = attrs.field(repr=False)
    refresh_token: str = attrs.field(repr=False)
    expires_in: float | None
    """Lifetime of the access token in seconds; None: unknown."""


@lean.frozen(kw_only=True)
class Refreshed:
    """A new access token, and a new refresh token if the plane rotates them."""

    access_token: str = attrs.field(repr=False)
    refresh_token: str | None = attrs.field(default=None, repr=False)
    expires_in: float | None = None
    """Seconds; None: unknown."""
    plane_anchor_pem: str | None = None
    """A CA that the plane is going to use for its own certificate; None: none, or not a usable text."""


@lean.frozen
class KeyChallenge:
    """Random bytes, sealed to the key that is being registered."""

    sealed: bytes


def _token(value: Any, _: Any = None) -> str:
    """Return a token that is safe in a header and on a line of a file."""
    token: str = _token_text(value)
    if not all("!" <= c <= "~" for c in token):
        raise Misfit("expected visible ASCII")
    return token


_token_text = text(8192)


def _lifetime(value: Any, _: Any = None) -> float | None:
    """Return seconds, or None for anything odd: the token's own ``exp`` decides."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        return None
    return float(value)


def _anchor(value: Any, _: Any = None) -> str | None:
    """Return a PEM text, or None for anything odd, which must not fail a refresh."""
    usable = isinstance(value, str) and len(value) <= _MAX_ANCHOR and value.isascii()
    return value if usable and value else None


def _device_name(value: Any, _: Any = None) -> str:
    return one_line(_any_text(value))


_any_text = text()


@lean.frozen(kw_only=True)
class _Device:
    id: int
    user_id: int
    device_public_id: str = ""
    name: str = ""
    status: str = ""


@lean.frozen(kw_only=True)
class _Session:
    access_token: str = attrs.field(repr=False)
    refresh_token: str = attrs.field(repr=False)
    expires_in: float | None = None


@lean.frozen
class _Registered:
    device: _Device
    session: _Session


_SESSION: dict[str, Hook] = {"access_token": _token, "refresh_token": _token, "expires_in": _lifetime}
wire_class(
    _Device,
    {
        "id": integer(ge=1),
        "user_id": integer(ge=1),
        "device_public_id": text(128),
        "name": _device_name,
        "status": text(64),
    },
)
wire_class(_Session, _SESSION)
_read_registered = wire_class(_Registered)
_read_refreshed = wire_class(Refreshed, _SESSION | {"plane_anchor_pem": _anchor})


def challenge_from_wire(data: object) -> KeyChallenge | None:
    """Return the challenge of an answer to a registration; None if there is none."""
    text = data.get("challenge_b64") if isinstance(data, dict) else None
    if text is None:
        return None
    try:
        return KeyChallenge(base64.b64decode(text, validate=True))
    except (TypeError, ValueError):
        raise BadAnswerError("the challenge is not base64") from None


def key_proof(secret: bytes) -> str:
    """Return the answer to a challenge that contained ``secret``.

    A hash, so that no control plane can make a device open other things that were sealed to it.
    """
    return base64.b64encode(hashlib.sha256(b"cert-ctrl key proof\0" + secret).digest()).decode()


def registration_from_wire(data: object) -> Registration:
    """Return a registration; raises BadAnswerError if it does not fit."""
    found = from_answer(_read_registered, data, "registration")
    device, session = found.device, found.session
    return Registration(
        device_id=device.id,
        user_id=device.user_id,
        device_public_id=device.device_public_id,
        name=device.name,
        status=device.status,
        access_token=session.access_token,
        refresh_token=session.refresh_token,
        expires_in=session.expires_in,
    )


def refreshed_from_wire(data: object) -> Refreshed:
    """Return a refreshed session; raises BadAnswerError if it does not fit."""
    return from_answer(_read_refreshed, data, "session")


def refresh_refused(error: PlaneError) -> bool:
    """Return whether a refused refresh is final, so that only a new registration helps."""
    return error.status in (401, 403) or (400 <= error.status <= 499 and error.key in REFUSAL_KEYS)
