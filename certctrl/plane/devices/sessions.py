"""Sessions: access tokens (JWT, HS256), refresh tokens, and authentication (docs/protocol.md).

Each device row has a session number. Registering again increments it, which voids all earlier tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jwt

from certctrl import lean
from certctrl.plane.clock import when
from certctrl.plane.errors import ErrorResponse, device_revoked, invalid_token, token_expired
from certctrl.plane.settings import DAY, PlaneSettings
from certctrl.plane.storage.database import Database, P, Row, T, marks
from certctrl.plane.storage.keyring import Keyring, digest
from certctrl.protocol.wire.reader import Misfit, integer, number, wire_class

_NAME = "certctrl-plane"
"""Issuer and audience of the tokens."""
_MAX_TOKEN = 4096
_EXPLAINED_SECONDS = 30 * DAY
"""Seconds for which an expired refresh token is distinguished from an unknown one."""
_MAX_VERIFIED = 200_000
"""Verified tokens kept in memory, about 200 bytes each: two of each device for the largest fleet of one process."""
END_COLUMNS = "d.status, d.session, d.revoked_at, d.revoke_reason"
"""Columns of a device ``d`` for ``end_of``."""


@lean.frozen
class DeviceSession:
    """The device and session of a valid access token."""

    device_id: int
    user_id: int
    number: int
    instance: str = ""
    """Name of the agent that polled last."""
    copies_at: float | None = None
    """When two agents of the device were last detected."""
    head: str = ""
    """Cursor of the last signal, in the unit of work that authenticated; empty without a stream."""


@lean.frozen
class _Claims:
    """The claims of a verified access token; the device may have been removed since."""

    device_id: int
    session: int
    expires_at: float


_read_claims = wire_class(
    _Claims,
    {"device_id": integer(digits=False), "session": integer(digits=False), "expires_at": number},
    names={"expires_at": "exp"},
)


class FormerHardwareError(ErrorResponse):
    """401 to hardware that another one has replaced."""

    def __init__(self, device_id: int) -> None:
        super().__init__("Refresh token is from hardware that was replaced", status=401, key="INVALID_TOKEN", code=4002)
        self.device_id = device_id


class Sessions:
    """Issues and verifies the tokens of devices."""

    def __init__(
        self, database: Database, keyring: Keyring, settings: PlaneSettings, wall_now: Callable[[], float]
    ) -> None:
        self._db = database
        self._settings = settings
        self._wall_now = wall_now
        self._key = _signing_key(database, keyring)
        self._verified: OrderedDict[bytes, _Claims] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, device_id: int, *, new_hardware: bool = False) -> dict[str, Any]:
        """End earlier sessions and return the tokens of a new one, inside the caller's transaction.

        ``new_hardware``: remember the void tokens, by which the former hardware is recognised.
        """
        self._db.run("UPDATE devices SET session = session + 1 WHERE id = ?", device_id)
        if not new_hardware:
            ended = "session + 1 = (SELECT session FROM devices WHERE id = ?)"
            self._db.run(f"DELETE FROM refresh_tokens WHERE device_id = ? AND {ended}", device_id, device_id)
        refresh_token = self._new_refresh_token(device_id)
        return self._access_token(device_id) | {"refresh_token": refresh_token}

    def refresh(self, refresh_token: str, device_public_id: str, *, store: bool = True) -> dict[str, Any]:
        """Return a new access token, with a new refresh token if they rotate; ErrorResponse 401 or 403 is final.

        Without ``store``, the refresh token expires when it would have, and does not rotate.
        """
        name, _, secret = refresh_token.partition(".")
        row = self._db.one(
            "SELECT t.*, d.device_public_id, d.status, d.revoked_at, d.revoke_reason, d.session AS current"
            " FROM refresh_tokens t JOIN devices d ON d.id = t.device_id WHERE t.id = ?",
            name,
        )
        if row is None or not hmac.compare_digest(row["secret_hash"], digest(secret)):
            raise invalid_token("Refresh token is unknown or was used already")
        if row["status"] == "revoked":
            raise device_revoked(row["revoked_at"], row["revoke_reason"])
        now = self._wall_now()
        if row["session"] != row["current"]:
            raise FormerHardwareError(row["device_id"])
        if row["device_public_id"] != device_public_id:
            raise invalid_token("Refresh token belongs to another device")
        if row["expires_at"] <= now:
            raise invalid_token(f"Refresh token expired at {when(row['expires_at'])}")
        if store and self._settings.rotate_refresh_tokens:
            with self._db.transaction():
                answer = self._access_token(row["device_id"])
                self._db.run("DELETE FROM refresh_tokens WHERE id = ?", name)
                return answer | {"refresh_token": self._new_refresh_token(row["device_id"])}
        expires_at = now + self._settings.refresh_token_seconds
        if store and expires_at - row["expires_at"] > min(DAY, self._settings.refresh_token_seconds / 10):
            self._db.run("UPDATE refresh_tokens SET expires_at = ? WHERE id = ?", expires_at, name)
        return self._access_token(row["device_id"])

    def authenticate(self, token: str) -> DeviceSession:
        """Return the session of an access token.

        ErrorResponse 403 for a revoked device, even if its token has expired; 401 for any other invalid token.
        """
        (session,) = self.authenticate_many([token])
        if isinstance(session, ErrorResponse):
            raise session
        return session

    def authenticate_many(self, tokens: Sequence[str]) -> list[DeviceSession | ErrorResponse]:
        """Return for each access token what ``authenticate`` returns or raises, in one statement."""
        claims = [or_error(self._claims, token) for token in tokens]
        ids = [each.device_id for each in claims if isinstance(each, _Claims)]
        rows: dict[int, Row] = {}
        if ids:
            sql = (
                "SELECT d.id, d.user_id, d.status, d.session, d.revoked_at, d.revoke_reason, d.instance, d.copies_at,"
                f" s.last_ms, s.last_seq FROM devices d LEFT JOIN streams s ON s.device_id = d.id WHERE d.id IN ({marks(ids)})"
            )
            rows = {row["id"]: row for row in self._db.all(sql, *ids)}
        return [
            or_error(self._session, each, rows.get(each.device_id)) if isinstance(each, _Claims) else each
            for each in claims
        ]

    def _session(self, claims: _Claims, row: Row | None) -> DeviceSession:
        if row is None:
            raise invalid_token("Access token is not valid")
        if row["status"] == "revoked":
            raise device_revoked(row["revoked_at"], row["revoke_reason"])
        if claims.expires_at <= self._wall_now():
            raise token_expired(claims.expires_at)
        if claims.session != row["session"]:
            raise invalid_token("This session has ended: the device was registered again")
        return DeviceSession(
            claims.device_id,
            row["user_id"],
            row["session"],
            row["instance"],
            row["copies_at"],
            "" if row["last_ms"] is None else f"{row['last_ms']}-{row['last_seq']}",
        )

    def claimed_device(self, token: str) -> int:
        """Return the device of a token that we signed, which may be void; ErrorResponse 401 for any other token."""
        return self._claims(token).device_id

    def expires_at(self, token: str) -> float:
        """Return when an access token that we signed ends (seconds since the epoch); ErrorResponse 401 for another."""
        return self._claims(token).expires_at

    def ends(self, sessions: Sequence[DeviceSession]) -> list[ErrorResponse | None]:
        """Return for each session the error that ``authenticate`` would raise, except for expiry.

        For requests that have waited; one statement.
        """
        ids = [session.device_id for session in sessions]
        sql = f"SELECT d.id, {END_COLUMNS} FROM devices d WHERE d.id IN ({marks(ids)})"
        rows = {row["id"]: row for row in self._db.all(sql, *ids)}
        return [end_of(session, rows.get(session.device_id)) for session in sessions]

    def delete_expired(self) -> None:
        """Delete refresh tokens that have expired."""
        self._db.run("DELETE FROM refresh_tokens WHERE expires_at <= ?", self._wall_now() - _EXPLAINED_SECONDS)

    def _claims(self, token: str) -> _Claims:
        """Return the claims of a token that we signed; ErrorResponse 401 for any other.

        A device polls many times with one token, so each signature is verified once.
        """
        key = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        claims = self._verified.get(key)
        if claims is None:
            claims = self._verify(token)
            with self._lock:
                self._verified[key] = claims
                if len(self._verified) > _MAX_VERIFIED:
                    self._verified.popitem(last=False)
        return claims

    def _verify(self, token: str) -> _Claims:
        try:
            if len(token) > _MAX_TOKEN:
                raise invalid_token("Access token is not valid")
            # `authenticate` checks the expiry against the plane's clock.
            options: Any = {"verify_exp": False, "verify_iat": False, "require": ["exp", "iat", "sub"]}
            claims = jwt.decode(token, self._key, algorithms=["HS256"], audience=_NAME, issuer=_NAME, options=options)
            return _read_claims(claims)
        except (
            jwt.PyJWTError,
            RecursionError,
            Misfit,
        ):  # RecursionError: from PyJWT 2.9, for JSON that nests too deeply
            raise invalid_token("Access token is not valid") from None

    def _access_token(self, device_id: int) -> dict[str, Any]:
        row = self._db.one("SELECT user_id, session FROM devices WHERE id = ?", device_id)
        if row is None:
            raise invalid_token("No such device")
        now = int(self._wall_now())
        claims = {
            "iss": _NAME, "aud": _NAME, "sub": str(row["user_id"]), "device_id": device_id,
            "session": row["session"], "iat": now, "exp": now + self._settings.access_token_seconds,
            "jti": secrets.token_hex(8),  # tokens of the same second must differ: agents detect new ones by it
        }  # fmt: skip
        token = jwt.encode(claims, self._key, algorithm="HS256")
        return {"access_token": token, "token_type": "Bearer", "expires_in": self._settings.access_token_seconds}

    def _new_refresh_token(self, device_id: int) -> str:
        name, secret = f"rt_{secrets.token_hex(16)}", secrets.token_urlsafe(48)
        self._db.run(
            "INSERT INTO refresh_tokens SELECT ?, ?, id, session, ? FROM devices WHERE id = ?",
            name,
            digest(secret),
            self._wall_now() + self._settings.refresh_token_seconds,
            device_id,
        )
        return f"{name}.{secret}"


def or_error(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ErrorResponse:
    """Return the result of a function, or its refusal."""
    try:
        return function(*args, **kwargs)
    except ErrorResponse as error:
        return error


def end_of(session: DeviceSession, row: Row | None) -> ErrorResponse | None:
    """Return the error of a session that has ended, as ``Sessions.ends``; ``row`` has the `END_COLUMNS` of its device."""
    if row is not None and row["status"] == "revoked":
        return device_revoked(row["revoked_at"], row["revoke_reason"])
    if row is None or row["session"] != session.number:
        return invalid_token("This session has ended: the device was registered again")
    return None


def _signing_key(database: Database, keyring: Keyring) -> bytes:
    """Return the signing key of access tokens, created once and stored sealed."""
    row = database.one("SELECT value_enc FROM secrets WHERE name = 'jwt'")
    if row is not None:
        return keyring.unseal("jwt", row["value_enc"])
    key = secrets.token_bytes(32)
    database.run("INSERT INTO secrets VALUES ('jwt', ?)", keyring.seal("jwt", key))
    return key
