"""Read an access token's claims, without a key and so without believing them (docs/security.md, T18)."""

from __future__ import annotations

from typing import Any

import attrs

LONGEST_TOKEN = 8192
"""Characters; a longer token is passed on but not looked into."""
_YEAR_9999 = 253_402_300_799


@attrs.frozen(kw_only=True)
class Claims:
    """What the agent uses of a token; everything else in it is nobody's business here."""

    expires_at: float | None = None
    """``exp``: seconds since the epoch by the plane's clock; None: not said, or nonsense."""
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
    """Return the claims of a token; of one that is no JWT of ours, none. Never raises."""
    if not token or len(token) > LONGEST_TOKEN:
        return Claims()
    import jwt  # here: it brings cryptography along, and commands that only look need neither

    try:
        raw: Any = jwt.decode(token, options={"verify_signature": False})
    except Exception:  # whatever a library makes of a stranger's bytes, the token is opaque and still usable
        return Claims()
    return Claims(
        expires_at=_moment(raw.get("exp")),
        issued_at=_moment(raw.get("iat")),
        user_id=_number(raw.get("sub")),
        device_id=_number(raw.get("device_id")),
    )


def _moment(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _YEAR_9999:
        return None  # the comparison also keeps out NaN, the infinities and integers that have no float
    return float(value)


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        value = int(value)
    return value if type(value) is int and 0 < value < 2**63 else None
