"""Device grants: a device shows a code, an operator approves it, and the device may register (RFC 8628)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from certctrl import lean
from certctrl.plane.clock import when
from certctrl.plane.errors import ErrorResponse, conflict, invalid_token, not_found, rate_limited, unavailable
from certctrl.plane.limits import Buckets, caller_of
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.shared_limits import SharedBuckets
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import digest

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels, so no words, and no letters that look like digits (RFC 8628 §6.1)."""
_SLOW_DOWN_SECONDS = 5.0
"""Added permanently to the interval by each ``slow_down``."""
_MAX_INTERVAL = 60.0
"""No interval grows beyond this, so that a hasty device still learns the decision before its grant expires."""
_PENDING_SHARE = 10
"""Share of all pending grants that one address may have, so that it cannot keep out devices of others."""
_FULL_SECONDS = 60
"""Retry-After for a device that finds too many grants pending."""
_TOLERANCE_SECONDS = 0.5
"""How early a poll may arrive: clocks and networks are not exact."""


@lean.frozen(kw_only=True)
class GrantRequest:
    """A device that requests approval, as far as the plane knows it; shown to the operator."""

    address: str = ""
    """Source address of the request, the only field that the device did not choose."""
    name: str = ""
    platform: str = ""
    device_public_id: str = ""
    user_agent: str = ""
    scopes: str = ""


class Grants:
    """The table of device grants."""

    def __init__(
        self,
        database: Database,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._db = database
        self._settings = settings
        self._wall_now = wall_now
        self._starts = SharedBuckets(database, "grants", 0.5, 20, wall_now)
        """Grants that one address may start: a burst of 20 (hosts behind one NAT), then one every two seconds."""
        self._polls = Buckets(1.0, 10, monotonic)
        """Polls of one grant at this plane; devices poll every five seconds or less often."""
        self._unknown = Buckets(1.0, 60, monotonic)
        """Unknown device codes that one address may poll this plane with."""

    def start(self, request: GrantRequest, caller: str) -> dict[str, Any] | ErrorResponse:
        """Return the codes of a new grant, limited per ``caller`` and in all; ErrorResponse 429 or 503.

        If too many are pending, the error is returned instead: the unit of work must commit, so that refusals count.
        """
        self._starts.take(caller)
        now = self._wall_now()
        self._delete_old(now)
        if (refusal := self._too_many(caller, now)) is not None:
            return refusal
        device_code, user_code = secrets.token_urlsafe(32), self._new_user_code()
        self._db.run(
            "INSERT INTO grants (device_code_hash, user_code, status, name, platform, device_public_id, user_agent,"
            " address, scopes, created_at, expires_at, interval) VALUES (?, ?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            digest(device_code),
            user_code,
            request.name,
            request.platform,
            request.device_public_id,
            request.user_agent,
            request.address,
            request.scopes,
            now,
            now + self._settings.grant_seconds,
            float(self._settings.grant_interval_seconds),
        )
        return {
            "device_code": device_code,
            "user_code": user_code,
            "interval": self._settings.grant_interval_seconds,
            "expires_in": self._settings.grant_seconds,
        }

    def poll(self, device_code: str, caller: str) -> dict[str, Any]:
        """Return the status of a grant; ``ready`` includes a new registration code each time.

        Rate-limited per grant, and per ``caller`` for unknown codes, so that no host uses up the polls of a device
        behind the same address; ErrorResponse 429.
        """
        now = self._wall_now()
        row = self._db.one("SELECT * FROM grants WHERE device_code_hash = ?", digest(device_code))
        if row is None:
            self._unknown.take(caller)
            return {"status": "expired"}
        self._polls.take(row["id"])
        if row["expires_at"] <= now or row["status"] == "used":
            return {"status": "expired"}
        if row["status"] == "denied":
            return {"status": "access_denied"}
        if row["status"] == "approved":
            return self._ready(row, now)
        polled_at = row["polled_at"]
        too_early = polled_at is not None and 0 <= now - polled_at < row["interval"] - _TOLERANCE_SECONDS
        interval = row["interval"]
        if too_early:
            interval = max(interval, min(interval + _SLOW_DOWN_SECONDS, _MAX_INTERVAL))
        self._db.run("UPDATE grants SET polled_at = ?, interval = ? WHERE id = ?", now, interval, row["id"])
        return {"status": "slow_down" if too_early else "authorization_pending"}

    def pending(self) -> list[dict[str, Any]]:
        """Return the grants that wait for approval, oldest first."""
        rows = self._db.all(
            "SELECT * FROM grants WHERE status = 'pending' AND expires_at > ? ORDER BY id", self._wall_now()
        )
        return [_shown(row) for row in rows]

    def show(self, user_code: str) -> dict[str, Any]:
        """Return one grant as operators see it; ErrorResponse 404 for an unknown code."""
        return _shown(self._row(user_code))

    def decide(self, user_code: str, *, approve: bool, user_id: int) -> dict[str, Any]:
        """Approve a grant for a user, or deny it; ErrorResponse 404, or 409 if it was already decided."""
        row = self._row(user_code)
        decided = self._db.run(
            "UPDATE grants SET status = ?, user_id = ?, decided_at = ? WHERE id = ? AND status = 'pending'",
            "approved" if approve else "denied",
            user_id if approve else None,
            self._wall_now(),
            row["id"],
        )
        if not decided:
            raise conflict("This request was already decided", "ALREADY_DECIDED")
        return self.show(user_code)

    def approved(self, registration_code: str, user_id: int, device_public_id: str) -> Row:
        """Return the approved grant of a registration code; ErrorResponse 401 if the code is not valid."""
        row = self._db.one_locked("SELECT * FROM grants WHERE registration_hash = ?", digest(registration_code))
        fits = (
            row is not None
            and row["status"] == "approved"
            and row["user_id"] == user_id
            and row["device_public_id"] in ("", device_public_id)  # only the approved device
        )
        if row is None or not fits:
            raise invalid_token("Registration code is unknown or was used already")
        if row["registration_expires_at"] <= self._wall_now():
            raise invalid_token(f"Registration code expired at {when(row['registration_expires_at'])}")
        return row

    def use(self, grant: Row) -> None:
        """Use up an approved grant with its registration code, inside the caller's transaction."""
        self._db.run("UPDATE grants SET status = 'used', registration_hash = NULL WHERE id = ?", grant["id"])

    def delete_expired(self) -> None:
        """Delete grants that expired some time ago, and expired limits."""
        self._starts.delete_expired()
        self._delete_old(self._wall_now())

    def _too_many(self, caller: str, now: float) -> ErrorResponse | None:
        """Return 429 if too many grants of one caller are pending, 503 if too many of all are."""
        rows = self._db.all(
            "SELECT address, count(*) AS n FROM grants WHERE status = 'pending' AND expires_at > ? GROUP BY address",
            now,
        )
        pending = sum(row["n"] for row in rows)
        share = max(1, self._settings.pending_grants // _PENDING_SHARE)
        if pending >= share and sum(row["n"] for row in rows if caller_of(row["address"]) == caller) >= share:
            what = "Too many devices of this address are waiting for approval"
            return rate_limited(_FULL_SECONDS, f"{share} waiting devices", what)
        if pending >= self._settings.pending_grants:
            return unavailable("Too many devices are waiting for approval", _FULL_SECONDS)
        return None

    def _delete_old(self, now: float) -> None:
        self._db.run("DELETE FROM grants WHERE expires_at < ?", now - self._settings.grant_seconds)

    def _ready(self, row: Row, now: float) -> dict[str, Any]:
        code, seconds = secrets.token_urlsafe(32), self._settings.registration_code_seconds
        self._db.run(
            "UPDATE grants SET registration_hash = ?, registration_expires_at = ? WHERE id = ?",
            digest(code),
            now + seconds,
            row["id"],
        )
        return {
            "status": "ready",
            "registration_code": code,
            "user_id": row["user_id"],
            "registration_code_ttl": seconds,
        }

    def _row(self, user_code: str) -> Row:
        row = self._db.one("SELECT * FROM grants WHERE user_code = ?", canonical_code(user_code))
        if row is None:
            raise not_found("No device shows this code")
        if row["expires_at"] <= self._wall_now():
            raise not_found(f"This code expired at {when(row['expires_at'])}")
        return row

    def _new_user_code(self) -> str:
        while True:
            letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
            code = f"{letters[:4]}-{letters[4:]}"
            if self._db.one("SELECT 1 FROM grants WHERE user_code = ?", code) is None:
                return code


def canonical_code(text: str) -> str:
    """Return the stored form of a typed user code (``bcdf ghjk``, ``BCDFGHJK``)."""
    letters = "".join(c for c in text.upper() if c.isascii() and c.isalnum())[:20]
    return f"{letters[:4]}-{letters[4:]}"


def _shown(row: Row) -> dict[str, Any]:
    return {
        "user_code": row["user_code"],
        "status": row["status"],
        "name": row["name"],
        "platform": row["platform"],
        "device_public_id": row["device_public_id"],
        "user_agent": row["user_agent"],
        "address": row["address"],
        "created_at": when(row["created_at"]),
        "expires_at": when(row["expires_at"]),
        "user_id": row["user_id"],
    }
