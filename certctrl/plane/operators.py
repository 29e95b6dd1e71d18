"""Operators: sign-in to the approval page, with its limits, and browser sessions."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable

from certctrl.plane.errors import forbidden
from certctrl.plane.limits import Attempts
from certctrl.plane.settings import PlaneSettings
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
        monotonic: Callable[[], float],
    ) -> None:
        self._db = database
        self._keyring = keyring
        self._seconds = settings.page_session_seconds
        self._wall_now = wall_now
        self._keys = Attempts(settings.sign_in_attempts, settings.lock_out_seconds, monotonic)
        self._codes = Attempts(10, settings.lock_out_seconds, monotonic)
        """Wrong user codes per session, so that no browser can try them all."""
        self._csrf_key = keyring.derived("forms of the pages")

    def sign_in(self, key: str, caller: str) -> str:
        """Return a new session for the right key; ErrorResponse 403 for a wrong one, 429 after too many.

        The right key, 256 random bits, is accepted even then: others behind one address cannot lock the operator out.
        """
        if not self._keyring.is_operator(key):
            self._keys.check(caller)
            self._keys.failed(caller)
            raise forbidden("This is not the operator key")
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
        self._codes.check(session)

    def wrong_code(self, session: str) -> None:
        """Count a wrong user code."""
        self._codes.failed(session)

    def delete_expired(self) -> None:
        """Delete expired sessions."""
        self._db.run("DELETE FROM page_sessions WHERE expires_at <= ?", self._wall_now())

    def _stored(self, session: str) -> str:
        return digest(f"{self._keyring.operator_key_id}.{session}")
