"""PlaneSettings: every figure of the plane that somebody may want otherwise, units in the names."""

from __future__ import annotations

import attrs

from certctrl.errors import ConfigError

DAY = 86_400


@attrs.frozen(kw_only=True)
class PlaneSettings:
    """Figures of one plane; the defaults are the spec's where it names one."""

    access_token_seconds: int = 900
    refresh_token_seconds: int = 90 * DAY
    """Counted from the last refresh: a host that is away longer registers again."""
    rotate_refresh_tokens: bool = False
    """True: each refresh ends its refresh token and gives a new one; the spec's plane does not rotate."""
    poll_rate: float = 1.0
    """Polls per second and device that are always let in."""
    poll_burst: int = 5
    stream_length: int = 1000
    """Signals kept per device; a cursor older than them gets 409."""
    grant_seconds: int = 600
    grant_interval_seconds: int = 5
    registration_code_seconds: int = 300
    pending_grants: int = 1000
    """Device grants that may wait for a person at the same time."""
    certificate_seconds: int = 90 * DAY
    shared_renewal_seconds: int = 10
    """A second device that asks to renew the same certificate within this time gets the first one's renewal."""
    outcomes_kept: int = 1000
    """Acks remembered per device."""
    public_url: str = ""
    """Base of the verification URL; empty: where the device itself reached the plane."""
    page_session_seconds: int = 3600
    sign_in_attempts: int = 5
    """Wrong operator keys from one address before it is locked out."""
    lock_out_seconds: int = 900

    def __attrs_post_init__(self) -> None:
        for name in ("access_token_seconds", "poll_burst", "stream_length", "grant_seconds", "certificate_seconds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if self.poll_rate <= 0:
            raise ConfigError("poll_rate must be above 0")
