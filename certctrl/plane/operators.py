"""Operators: sign-in to the approval page, with its limits, and browser sessions."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from certctrl.plane.access.access import OperatorAccess
from certctrl.plane.access.accounts import MAX_SESSIONS
from certctrl.plane.access.marked import MarkedSecrets
from certctrl.plane.access.roles import BY_KEY, Caller, Role
from certctrl.plane.audit.acts import aside
from certctrl.plane.errors import ErrorResponse, forbidden
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.shared_limits import SharedAttempts
from certctrl.plane.sign_in.provider import Person
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import Keyring, digest


class Operators:
    """Browser sessions of operators, who sign in with the operator key or a token."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        access: OperatorAccess,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._access = access
        self._seconds = settings.page_session_seconds
        self._wall_now = wall_now
        self._keys = SharedAttempts(database, "keys", settings.sign_in_attempts, settings.lock_out_seconds, wall_now)
        self._codes = SharedAttempts(database, "codes", 10, settings.lock_out_seconds, wall_now)
        """Wrong user codes per session, so that no browser can try them all."""
        self._csrf_key = keyring.derived("forms of the pages")
        self._marks = MarkedSecrets(keyring.derived("sessions of the pages"))

    async def who_has(self, key: str, caller: str) -> Caller:
        """Return the operator with a key or token; ErrorResponse 403 for a wrong one, 429 after too many.

        A right one, 256 random bits, is accepted even then: others behind one address cannot lock the operator out.
        """
        try:
            who, _ = await self._db.work(self._access.identify, key, caller)
        except ErrorResponse as error:
            with aside():
                await self._db.work(self._wrong_key, caller)  # commits the failure before the exception
            raise forbidden(error.what, error.key) from None
        return who

    async def sign_in(self, key: str, caller: str) -> str:
        """Return a new session for the right key or token; ErrorResponse as from ``who_has``."""
        await self.who_has(key, caller)
        return await self.start_session(key, caller)

    async def start_session(self, key: str, caller: str) -> str:
        """Return a new session for a key or token that ``who_has`` has accepted."""
        return await self._db.work(self._new_session, key, caller)

    async def open_provider_session(self, person: Person) -> str:
        """Return a new session of a person from the provider; ErrorResponse 403 without a role, and as ``Accounts``."""
        role, session = person.role, self._marks.new()
        if role is None:
            with aside():
                await self._db.work(self._access.accounts.end_sessions_of, person.subject)
            raise forbidden(
                f"{person.name} has no role here: none of the provider's claims grants one", "ROLE_REQUIRED"
            )
        accounts, seconds = self._access.accounts, self._seconds
        await self._db.work(accounts.open_provider_session, person.subject, person.name, role, digest(session), seconds)
        return session

    async def check_attempts(self, caller: str) -> None:
        """Raise ErrorResponse 429 after too many failed sign-ins of a caller."""
        await self._db.work(self._keys.check, caller)

    async def note_failure(self, caller: str) -> None:
        """Count a failed sign-in."""
        await self._db.work(self._keys.failed, caller)

    def _wrong_key(self, caller: str) -> None:
        self._keys.check(caller)
        self._keys.failed(caller)

    def _new_session(self, key: str, caller: str) -> str:
        row: Row | None
        _, row = self._access.identify(key, caller)
        self._keys.succeeded(caller)
        session = self._marks.new()
        if row is not None:
            self._access.accounts.open_session(digest(session), row, self._seconds)
            self._access.accounts.note_use(row["id"], caller)
        else:
            self._open_key_session(self._stored(session))
        return session

    def _open_key_session(self, id_hash: str) -> None:
        """Store a session under the operator key; the oldest ones beyond `MAX_SESSIONS` end."""
        self._db.run("INSERT INTO page_sessions VALUES (?, ?)", id_hash, self._wall_now() + self._seconds)
        kept = "SELECT id_hash FROM page_sessions WHERE id_hash != ? ORDER BY expires_at DESC LIMIT ?"
        sql = f"DELETE FROM page_sessions WHERE id_hash != ? AND id_hash NOT IN ({kept})"
        self._db.run(sql, id_hash, id_hash, MAX_SESSIONS - 1)

    def may_be_session(self, session: str) -> bool:
        """Return whether a cookie was made by a control plane, without reading the database."""
        return self._marks.is_own(session)

    def is_signed_in(self, session: str) -> bool:
        """Return whether a session is open."""
        return self.caller_of(session) is not None

    def caller_of(self, session: str) -> Caller | None:
        """Return the operator of an open session; None if it has ended, or never was one."""
        if not self.may_be_session(session):
            return None
        row = self._db.one("SELECT expires_at FROM page_sessions WHERE id_hash = ?", self._stored(session))
        if row is None:
            return self._access.accounts.of_session(digest(session))
        is_open = row["expires_at"] > self._wall_now() and not self._access.key.is_off()
        return Caller(who=BY_KEY, role=Role.ADMIN) if is_open else None

    def sign_out(self, session: str) -> None:
        """End a session."""
        self._db.run("DELETE FROM page_sessions WHERE id_hash = ?", self._stored(session))
        self._access.accounts.close_session(digest(session))

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
        self._access.accounts.delete_expired()

    def _stored(self, session: str) -> str:
        return digest(f"{self._access.key.mark()}.{session}")
