"""Read the claims of an access token, unverified: they only time the refresh (``docs/security.md``)."""

from __future__ import annotations

import base64
import json
from typing import Any

from certctrl import lean
from certctrl.protocol.wire.reader import integer, or_default, wire_class

MAX_TOKEN = 8192
"""Characters; longer tokens are used but not parsed."""
_YEAR_9999 = 253_402_300_799


@lean.frozen(kw_only=True)
class Claims:
    """The claims that the agent uses; all others are ignored."""

    expires_at: float | None = None
    """``exp``: seconds since the epoch by the plane's clock; None: missing or invalid."""
    issued_at: float | None = None
    """``iat``, likewise."""
    user_id: int | None = None
    """``sub``."""
    device_id: int | None = None

    @property
    def lifetime(self) -> float | None:
        """Return the seconds from ``iat`` to ``exp``."""
        if self.expires_at is None or self.issued_at is None or self.expires_at <= self.issued_at:
            return None
        return self.expires_at - self.issued_at


def read_claims(token: str) -> Claims:
    """Return the claims of a token; empty if it is not a readable JWT. Never raises."""
    if not token or len(token) > MAX_TOKEN:
        return Claims()
    try:
        return _read_claims(_payload(token))
    except (ValueError, RecursionError):  # an unreadable token is opaque and still usable; Misfit is a ValueError
        return Claims()


def _payload(token: str) -> Any:
    """Return the payload of a JWT; ValueError for other tokens.

    PyJWT, which the plane verifies tokens with, would cost an idle agent 0.3 MiB for these lines.
    """
    parts = token.encode("ascii").split(b".")
    if len(parts) != 3:
        raise ValueError("not a JWT")
    return json.loads(base64.b64decode(parts[1] + b"=" * (-len(parts[1]) % 4), b"-_", validate=True))


def _moment(value: Any, _: Any = None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _YEAR_9999:
        return None  # the comparison also excludes NaN, infinities and integers too large for a float
    return float(value)


_id = or_default(integer(ge=1))
_read_claims = wire_class(
    Claims,
    {"expires_at": _moment, "issued_at": _moment, "user_id": _id, "device_id": _id},
    names={"expires_at": "exp", "issued_at": "iat", "user_id": "sub"},
)
