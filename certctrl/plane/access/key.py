"""The operator key: an admin without a name, for the first steps. It can be turned off, and replaced by a new one."""

from __future__ import annotations

import hmac

from certctrl.plane.errors import ErrorResponse, invalid_token
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import OPERATOR_KEY_DIGEST, Keyring, digest

STATE, OFF = "operator_key", "off"
"""Setting: ``off`` or empty."""
PREFIX = "ok_"


class OperatorKey:
    """The operator key of all planes on a database; methods run in the caller's unit of work."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._db = database
        self._keyring = keyring

    def is_off(self) -> bool:
        """Return whether the key is turned off."""
        return self._db.setting(STATE) == OFF

    def require(self, key: str) -> None:
        """Raise ErrorResponse 401 unless this is the operator key, and turned on."""
        if not self._is_current(key):
            raise invalid_token("This is not the operator key")
        if self.is_off():
            raise key_off()

    def _is_current(self, key: str) -> bool:
        current = self._db.setting(OPERATOR_KEY_DIGEST)
        return hmac.compare_digest(digest(key), current) if current else self._keyring.is_operator(key)

    def is_outdated(self) -> bool:
        """Return whether the key that this plane has read is not the current one."""
        return not self._is_current(self._keyring.operator_key)

    def mark(self) -> str:
        """Return a digest of the current key; sessions under another key are void."""
        return self._db.setting(OPERATOR_KEY_DIGEST)[:16] or self._keyring.operator_key_id

    def set_state(self, state: str) -> None:
        """Turn the key off, which ends its sessions, or on."""
        set_setting(self._db, STATE, state)
        if state == OFF:
            self._db.run("DELETE FROM page_sessions")


def set_setting(database: Database, name: str, value: str) -> None:
    """Set a value of the table ``settings``; an empty one is removed."""
    if value:
        sql = "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        database.run(sql, name, value)
    else:
        database.run("DELETE FROM settings WHERE name = ?", name)


def key_off() -> ErrorResponse:
    """Return 401: the operator key is turned off."""
    return ErrorResponse("The operator key is turned off", status=401, key="OPERATOR_KEY_OFF", code=4002)
