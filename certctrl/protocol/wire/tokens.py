"""The tokens of a session, and their refresh (docs/protocol.md)."""

from __future__ import annotations

from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import PlaneError
from certctrl.model.features import feature_names
from certctrl.protocol.wire.reader import Hook, Misfit, from_answer, text, wire_class

REFUSAL_KEYS = frozenset(("INVALID_TOKEN", "TOKEN_EXPIRED"))
_MAX_ANCHOR = 16_384


@lean.frozen(kw_only=True)
class Refreshed:
    """A new access token, and a new refresh token if the plane rotates them."""

    access_token: str = attrs.field(repr=False)
    refresh_token: str | None = attrs.field(default=None, repr=False)
    expires_in: float | None = None
    """Seconds; None: unknown."""
    plane_anchor_pem: str | None = None
    """The next CA of the plane's own certificate; None: none, or not a usable text."""
    features: frozenset[str] = frozenset()
    """Features of the plane; one that announces none has none."""
    rotate_key: bool = False
    """Whether the plane wants another key of this device."""


def _token(value: Any, _: Any = None) -> str:
    """Return a token that is safe in a header and on a line of a file."""
    token: str = _token_text(value)
    if not all("!" <= c <= "~" for c in token):
        raise Misfit("expected visible ASCII")
    return token


_token_text = text(8192)


def _lifetime(value: Any, _: Any = None) -> float | None:
    """Return seconds, or None for anything else: the token's own ``exp`` decides then."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        return None
    return float(value)


def _anchor(value: Any, _: Any = None) -> str | None:
    """Return a PEM text, or None for anything else, which must not fail a refresh."""
    usable = isinstance(value, str) and len(value) <= _MAX_ANCHOR and value.isascii()
    return value if usable and value else None


def _wanted(value: Any, _: Any = None) -> bool:
    return value is True


def features(value: Any, _: Any = None) -> frozenset[str]:
    """Return the names of features; invalid ones are left out, because they must not fail a session."""
    return feature_names(value)


SESSION: dict[str, Hook] = {"access_token": _token, "refresh_token": _token, "expires_in": _lifetime}
"""The hooks of a session's fields, in a refresh as in a registration."""
_read_refreshed = wire_class(
    Refreshed, SESSION | {"plane_anchor_pem": _anchor, "features": features, "rotate_key": _wanted}
)


def refreshed_from_wire(data: object) -> Refreshed:
    """Return a refreshed session; raises BadAnswerError if it does not fit."""
    return from_answer(_read_refreshed, data, "session")


def refresh_refused(error: PlaneError) -> bool:
    """Return whether a refused refresh is final, so that only a new registration helps."""
    return error.status in (401, 403) or (400 <= error.status <= 499 and error.key in REFUSAL_KEYS)
