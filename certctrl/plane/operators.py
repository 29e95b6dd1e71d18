"""Operators: sign-in to the approval page, with its limits, and browser sessions."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable

from certctrl.plane.errors import forbidden
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.shared_limits import SharedAttempts
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring, digest


class Operators:
    """Holders of the operator key."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._keyring = keyring
        self._seconds = settings.page_session_seconds
        self._wall_now = wall_now
        self._keys = SharedAttempts(database, "keys", settings.sign_in_attempts, settings.lock_out_seconds, wall_now)
        self._codes = SharedAttempts(database, "codes", 10, settings.lock_out_seconds, wall_now)
        """Wrong user codes per session, so that no browser can try them all."""
        self._csrf_key = keyring.derived("forms of the pages")

    async def sign_in(self, key: str, caller: str) -> str:
        """Return a new session for the right key; ErrorResponse 403 for a wrong one, 429 after too many.

        The right key, 256 random bits, is accepted even then: others behind one address cannot lock the operator out.
        """
        if not self._keyring.is_operator(key):
            await self._db.work(self._wrong_key, caller)  # commits the failure before the exception
            raise forbidden("This is not the operator key")
        return await self._db.work(self._new_session, caller)

    def _wrong_key(self, caller: str) -> None:
        self._keys.check(caller)
        self._keys.failed(caller)

    def _new_session(self, caller: str) -> str:
        self._keys.succeeded(caller)
        session = secrets.token_urlsafe(32)
        expires_at = self._wall_now() + self._seconds
        self._db.run("INSERT INTO page_sessions VALUES (?, ?)", self._stored(session), expires_at)
        return session

    def is_signed_in(self, session: str) -> bool:
        """Return whether a session is open."""
        row = self._db.one("SELECT expires_at FROM page_sessions WHERE id_hash = ?", self._stored(session))
        return row is not None and row["expires_at"] > self._wall_now()

    def sign_out(self, session: str) -> None:
        """End a session."""
        self._db.run("DELETE FROM page_sessions WHERE id_hash = ?", self._stored(session))

    def csrf_token(self, cookie: str) -> str:
        """Return the token for forms of the browser with this cookie."""
        return hmac.new(self._csrf_key, cookie.encode(), hashlib.sha256).hexdigest()

    def is_csrf_token(self, cookie: str, token: str) -> bool:
        """Compare a form's token in constant time."""
        return hmac.compare_digest(self.csrf_token(cookie).encode(), token.encode("utf-8", "replace"))

    def check_codes(self, session: str) -> None:
        """Raise ErrorResponse 429 if a session has entered too many wrong user codes."""
        self._codes.check(self._stored(session))

    def wrong_code(self, session: str) -> None:
        """Count a wrong user code; the caller must commit it."""
        self._codes.failed(self._stored(session))

    def delete_expired(self) -> None:
        """Delete expired sessions and failures."""
        self._keys.delete_expired()
        self._codes.delete_expired()
        self._db.run("DELETE FROM page_sessions WHERE expires_at <= ?", self._wall_now())

    def _stored(self, session: str) -> str:
        return digest(f"{self._keyring.operator_key_id}.{session}")
