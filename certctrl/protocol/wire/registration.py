"""Registrations of a device (docs/protocol.md). The daemon of a registered device does not load this module."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import BadAnswerError
from certctrl.model.config import PollMode
from certctrl.model.records import Recommended
from certctrl.protocol.wire.reader import from_answer, integer, json_object, or_default, text, wire_class
from certctrl.protocol.wire.tokens import SESSION, features
from certctrl.text import one_line

_MAX_WAIT = 30


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
    features: frozenset[str] = frozenset()
    """Features of the plane."""
    recommended: Recommended | None = None
    """Settings for a new host; None: none that this version knows."""


@lean.frozen
class KeyChallenge:
    """Random bytes, sealed to the key that is being registered."""

    sealed: bytes


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


def _advice(value: Any, _: Any = None) -> Recommended | None:
    """Return recommended settings, or None for invalid ones, which must not fail a registration."""
    advice: _Advice = or_default(_read_advice, _Advice())(value)
    mode = advice.poll_mode.replace("_", "-")
    return Recommended(mode, advice.poll_wait_seconds) if mode in tuple(PollMode) else None


@lean.frozen
class _Advice:
    poll_mode: str = ""
    poll_wait_seconds: int | None = None


@lean.frozen
class _Registered:
    device: _Device
    session: _Session
    features: frozenset[str] = frozenset()
    recommended: Recommended | None = None


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
wire_class(_Session, SESSION)
_read_advice = wire_class(
    _Advice,
    {
        "poll_mode": or_default(text(64), ""),
        "poll_wait_seconds": or_default(integer(1, _MAX_WAIT, digits=False)),
    },
)
_read_registered = wire_class(_Registered, {"features": features, "recommended": _advice})


def challenge_from_wire(data: object) -> KeyChallenge | None:
    """Return the challenge of an answer to a registration; None if there is none."""
    sealed = or_default(json_object, {})(data).get("challenge_b64")
    if sealed is None:
        return None
    try:
        return KeyChallenge(base64.b64decode(sealed, validate=True))
    except (TypeError, ValueError):
        raise BadAnswerError("the challenge is not base64") from None


def key_challenges(data: object) -> dict[str, bytes]:
    """Return the challenges of an answer to the rotation of a key, by name; none if the plane has the key."""
    found = {name: or_default(json_object, {})(data).get(f"{name}_challenge_b64") for name in ("present", "new")}
    if None in found.values():
        return {}
    try:
        return {name: base64.b64decode(sealed or "", validate=True) for name, sealed in found.items()}
    except (TypeError, ValueError):
        raise BadAnswerError("a challenge is not base64") from None


def key_proof(secret: bytes) -> str:
    """Return the answer to a challenge that contained ``secret``.

    A hash, so that no control plane can use a device to open other data that was sealed to it.
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
        features=found.features,
        recommended=found.recommended,
    )
