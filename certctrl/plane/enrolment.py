"""Registration of devices, by an operator's approval or by enrolment token (docs/protocol.md)."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

from certctrl.plane.ca.sealing import fingerprint
from certctrl.plane.clock import when
from certctrl.plane.devices import DeviceFacts, Devices
from certctrl.plane.errors import bad_request, conflict, device_revoked, invalid_token, not_found
from certctrl.plane.grants import Grants
from certctrl.plane.sessions import Sessions
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import digest
from certctrl.plane.storage.signal_stream import SignalStream

_MAX_VALIDITY = 3650 * DAY

log = logging.getLogger("certctrl.Plane")


class Enrolment:
    """Registers devices; manages the tokens for unattended registration."""

    def __init__(
        self,
        database: Database,
        devices: Devices,
        grants: Grants,
        sessions: Sessions,
        stream: SignalStream,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._devices = devices
        self._grants = grants
        self._sessions = sessions
        self._stream = stream
        self._wall_now = wall_now

    def register_approved(
        self, user_id: int, registration_code: str, facts: DeviceFacts, public_key: bytes
    ) -> dict[str, Any]:
        """Register a device that an operator approved, even if it was revoked or has a new key."""
        with self._db.transaction():
            self._grants.redeem(registration_code, user_id, facts.device_public_id)
            row = self._devices.find(user_id, facts.device_public_id)
            return self._register(row, user_id, facts, public_key)

    def register_unattended(self, enrolment_token: str, facts: DeviceFacts, public_key: bytes) -> dict[str, Any]:
        """Register a device by token: a new one, or a known one with the same key.

        A token is on many hosts, so it can neither restore a revoked device nor replace a device's key. A device may
        reuse a token that it has used before, because the first response may have been lost.
        """
        with self._db.transaction():
            token = self._usable(enrolment_token)
            row = self._devices.find(token["user_id"], facts.device_public_id)
            if row is not None and row["status"] == "revoked":
                raise device_revoked(row["revoked_at"], row["revoke_reason"])
            if row is not None and row["public_key"] not in (None, public_key):
                raise conflict("This device is registered with another key; approve it by code", "KEY_MISMATCH")
            used = row is not None and self._has_used(token["id"], row["id"])
            if not used and token["max_uses"] is not None and token["uses"] >= token["max_uses"]:
                raise invalid_token("Enrolment token is used up")
            answer = self._register(row, token["user_id"], facts, public_key)
            if not used:
                self._db.run("UPDATE enrolment_tokens SET uses = uses + 1 WHERE id = ?", token["id"])
                self._db.run("INSERT INTO enrolments VALUES (?, ?)", token["id"], answer["device"]["id"])
            return answer

    def new_token(
        self, user_id: int, *, label: str = "", max_uses: int | None = 1, valid_seconds: int = DAY
    ) -> dict[str, Any]:
        """Return a new enrolment token, the only time its text is shown; ``max_uses`` None: unlimited."""
        self._devices.require_user(user_id)
        if max_uses is not None and max_uses < 1:
            raise bad_request("max_uses must be at least 1", field="max_uses")
        if not 1 <= valid_seconds <= _MAX_VALIDITY:
            raise bad_request(f"valid_seconds must be 1 to {_MAX_VALIDITY}", field="valid_seconds")
        token, now = f"et_{secrets.token_urlsafe(32)}", self._wall_now()
        token_id = self._db.insert(
            "INSERT INTO enrolment_tokens (user_id, token_hash, label, max_uses, created_at, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            user_id,
            digest(token),
            label,
            max_uses,
            now,
            now + valid_seconds,
        )
        return self._token(user_id, token_id) | {"token": token}

    def tokens(self, user_id: int) -> list[dict[str, Any]]:
        """Return a user's enrolment tokens, without their texts."""
        self._devices.require_user(user_id)
        rows = self._db.all("SELECT * FROM enrolment_tokens WHERE user_id = ? ORDER BY id", user_id)
        return [_shown(row) for row in rows]

    def end_token(self, user_id: int, token_id: int) -> None:
        """Void an enrolment token."""
        self._token(user_id, token_id)
        self._db.run("UPDATE enrolment_tokens SET ended_at = ? WHERE id = ?", self._wall_now(), token_id)

    def _register(self, row: Row | None, user_id: int, facts: DeviceFacts, public_key: bytes) -> dict[str, Any]:
        """Bind the device to its key and start a session, which ends all earlier ones."""
        device_id = self._devices.add(user_id, facts) if row is None else row["id"]
        self._devices.activate(device_id, facts, public_key)
        session = self._sessions.start(device_id)
        self._stream.wake(device_id)  # end a waiting poll of the old session
        log.info(
            "device %d (%s) registered with key %s",
            device_id,
            facts.name or "unnamed",
            fingerprint(public_key).hex()[:16],
        )
        device = {
            "id": device_id,
            "user_id": user_id,
            "device_public_id": facts.device_public_id,
            "status": "active",
            "name": facts.name,
        }
        return {"device": device, "session": session}

    def _usable(self, enrolment_token: str) -> Row:
        row = self._db.one("SELECT * FROM enrolment_tokens WHERE token_hash = ?", digest(enrolment_token))
        if row is None:
            raise invalid_token("Enrolment token is unknown")
        if row["ended_at"] is not None:
            raise invalid_token(f"Enrolment token was ended at {when(row['ended_at'])}")
        if row["expires_at"] <= self._wall_now():
            raise invalid_token(f"Enrolment token expired at {when(row['expires_at'])}")
        return row

    def _has_used(self, token_id: int, device_id: int) -> bool:
        sql = "SELECT 1 FROM enrolments WHERE token_id = ? AND device_id = ?"
        return self._db.one(sql, token_id, device_id) is not None

    def _token(self, user_id: int, token_id: int) -> dict[str, Any]:
        row = self._db.one("SELECT * FROM enrolment_tokens WHERE id = ? AND user_id = ?", token_id, user_id)
        if row is None:
            raise not_found("No such enrolment token")
        return _shown(row)


def _shown(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "label": row["label"],
        "max_uses": row["max_uses"],
        "uses": row["uses"],
        "created_at": when(row["created_at"]),
        "expires_at": when(row["expires_at"]),
        "ended_at": when(row["ended_at"]),
    }
