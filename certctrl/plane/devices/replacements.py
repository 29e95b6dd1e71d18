"""Replacements: tokens by which new hardware registers as a device that there is already.

The operator's command is the approval, so the token is for one device, and for one host: the first one whose key is
proven. The same host may use it again, because the response may have been lost, unless the device has another key since.
A device has one such token at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from certctrl.plane.clock import when
from certctrl.plane.errors import bad_request, conflict, invalid_token
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import digest

MAX_VALIDITY = 30 * DAY
_PREFIX = "dr_"


def is_replacement(token: str) -> bool:
    """Return whether a token is that of a replacement, and not of an enrolment."""
    return token.startswith(_PREFIX)


class Replacements:
    """The table of replacements; all methods run in the caller's unit of work. Their changes need the device's lock."""

    def __init__(self, database: Database, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._wall_now = wall_now

    def start(self, device_id: int, valid_seconds: int) -> dict[str, Any]:
        """Return a new token for a device, whose text is not stored; it ends the token before it."""
        if not 1 <= valid_seconds <= MAX_VALIDITY:
            raise bad_request(f"expires_in must be 1 to {MAX_VALIDITY}", field="expires_in")
        self.end(device_id)
        token, now = f"{_PREFIX}{secrets.token_urlsafe(32)}", self._wall_now()
        self._db.insert(
            "INSERT INTO device_replacements (device_id, token_hash, created_at, expires_at) VALUES (?, ?, ?, ?)",
            *(device_id, digest(token), now, now + valid_seconds),
        )
        return {"token": token, "expires_at": when(now + valid_seconds)}

    def end(self, device_id: int) -> bool:
        """Void the token of a device; return whether there was one that could still be used."""
        now = self._wall_now()
        open_one = self._db.one(
            "SELECT 1 FROM device_replacements WHERE device_id = ? AND ended_at IS NULL AND used_at IS NULL"
            " AND expires_at > ?",
            *(device_id, now),
        )
        sql = "UPDATE device_replacements SET ended_at = ? WHERE device_id = ? AND ended_at IS NULL"
        self._db.run(sql, now, device_id)
        return open_one is not None

    def usable(self, token: str, public_key: bytes) -> Row:
        """Return the replacement of a token that a host with this key may use; ErrorResponse 401."""
        row = self._db.one("SELECT * FROM device_replacements WHERE token_hash = ?", digest(token))
        if row is None:
            raise invalid_token("Replacement token is unknown")
        if row["ended_at"] is not None:
            raise invalid_token(f"Replacement token was ended at {when(row['ended_at'])}")
        if row["used_at"] is not None and row["new_key"] != public_key:
            raise invalid_token("Replacement token was used by another host")
        if row["expires_at"] <= self._wall_now():
            raise invalid_token(f"Replacement token expired at {when(row['expires_at'])}")
        return row

    def use(self, replacement: Row, device: Row, public_key: bytes) -> bool:
        """Record that a host with this key takes the place of a device's former one; return False if it did before."""
        if replacement["used_at"] is not None:
            return False
        is_new = device["public_key"] not in (None, public_key)
        self._db.run(
            "UPDATE device_replacements SET used_at = ?, new_key = ?, former_key = ?, former_public_id = ? WHERE id = ?",
            *(self._wall_now(), public_key, device["public_key"] if is_new else None),
            *(device["device_public_id"] if is_new else "", replacement["id"]),
        )
        return True

    def refuse_former(self, public_key: bytes, device_public_id: str) -> None:
        """Raise ErrorResponse 409 for hardware that was replaced: it does not become a device by an enrolment token."""
        row = self._db.one(
            "SELECT d.id, d.name FROM device_replacements r JOIN devices d ON d.id = r.device_id WHERE r.used_at IS NOT NULL"
            " AND (r.former_key = ? OR r.former_public_id = ?) AND d.public_key != ? AND d.device_public_id != ? LIMIT 1",
            *(public_key, device_public_id, public_key, device_public_id),
        )
        if row is not None:
            what = (
                f"This host was replaced as device {row['id']} ({row['name']}); to make it another device, remove its"
            )
            raise conflict(f"{what} directories keys and state first", "REPLACED")
