"""PlaneSettings: limits and durations of the plane, units in the names."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from certctrl import lean
from certctrl.errors import ConfigError

DAY = 86_400
MIN_AUDIT_DAYS = 30
MAX_AUDIT_DAYS = 3650


@lean.frozen(kw_only=True)
class OidcSettings:
    """An OpenID provider at which operators sign in to the pages."""

    issuer: str
    """URL, exactly as the provider writes it."""
    client_id: str
    client_secret: str = attrs.field(repr=False)
    roles: Mapping[str, str]
    """Value of the role claim -> role; the highest counts."""
    role_claim: str = "groups"
    name_claim: str = "email"
    """Claim with the name of the operator."""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    label: str = "single sign-on"
    ca_file: str = ""
    """CA of the provider; empty: the system's CAs."""


@lean.frozen(kw_only=True)
class PlaneSettings:
    """Settings of one plane; the defaults follow the spec where it has one."""

    access_token_seconds: int = 900
    refresh_token_seconds: int = 90 * DAY
    """Counted from the last refresh, to within a day; a host that is offline longer must register again."""
    rotate_refresh_tokens: bool = False
    """Whether each refresh replaces the refresh token; the spec does not rotate."""
    poll_rate: float = 1.0
    """Polls per second that each device may send at any time."""
    poll_burst: int = 5
    stream_length: int = 1000
    """Signals kept per device; an older cursor gets 409."""
    grant_seconds: int = 600
    grant_interval_seconds: int = 5
    registration_code_seconds: int = 300
    pending_grants: int = 1000
    """Maximum device grants waiting for approval; one address may have a tenth of them."""
    certificate_seconds: int = 90 * DAY
    shared_renewal_seconds: int = 10
    """Devices that renew the same certificate within this time share one renewal."""
    stale_seconds: int = 900
    """A device that was not heard for longer is stale."""
    outcomes_kept: int = 1000
    """Outcomes stored per device."""
    public_url: str = ""
    """Base of the verification URL; empty: the URL that the device used."""
    crl_url: str = ""
    """Base URL of the CRLs of the built-in CA; empty: certificates contain no URL."""
    allow_unproven_keys: bool = False
    """Whether agents that cannot prove possession of their key may register new devices."""
    recommended_poll_mode: str = "long_poll"
    """Poll mode that new devices are recommended, as on the wire; empty: none."""
    page_session_seconds: int = 3600
    sign_in_attempts: int = 5
    """Wrong operator keys before more of them from one address are refused for a while; the right key never is."""
    lock_out_seconds: int = 900
    oidc: OidcSettings | None = None
    """Where operators sign in to the pages; None: only here."""
    audit_days: int = 400
    """Days for which entries of the audit log are kept."""

    def __attrs_post_init__(self) -> None:
        for name in ("access_token_seconds", "poll_burst", "stream_length", "grant_seconds", "certificate_seconds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if self.audit_days < MIN_AUDIT_DAYS:
            raise ConfigError(f"audit_days must be at least {MIN_AUDIT_DAYS}")
        if self.poll_rate <= 0:
            raise ConfigError("poll_rate must be above 0")
