"""Named operators and their API tokens; all methods run in the caller's unit of work."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from certctrl.plane.access.key import OperatorKey
from certctrl.plane.access.marked import MarkedSecrets
from certctrl.plane.access.roles import PLANE, Caller, Role
from certctrl.plane.clock import when
from certctrl.plane.errors import (
    ErrorResponse,
    bad_request,
    conflict,
    forbidden,
    invalid_token,
    not_found,
    out_of_scope,
)
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import digest
from certctrl.text import nearest, one_line

PREFIX = "ot_"
SCOPED_PREFIX = "os_"
"""Of tokens with a scope: a control plane of an earlier release, which knows no scopes, takes them for unknown."""
PREFIXES = (PREFIX, SCOPED_PREFIX)
MAX_TOKEN_DAYS = 366
MAX_OPERATORS = 1000
MAX_TOKENS = 100
"""Valid tokens of one operator."""
MAX_SESSIONS = 20
"""Sessions of one operator, or under the operator key; a new one ends the oldest."""
KEPT_SECONDS = 90 * DAY
"""Seconds for which tokens are listed after their end."""
USE_NOTED_SECONDS = 60
"""Uses of a token that follow so soon are not noted again."""
_GUARD = 0x6F706572  # "oper"
"""Held by changes that could leave no admin: each must see the others'."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,99}", re.ASCII)


class Accounts:
    """The tables of operators and tokens."""

    def __init__(
        self, database: Database, key: OperatorKey, marks: MarkedSecrets, wall_now: Callable[[], float]
    ) -> None:
        """``marks`` makes the texts of tokens."""
        self._db = database
        self._key = key
        self._marks = marks
        self._wall_now = wall_now

    # --- operators ------------------------------------------------------------------------------------------------

    def add(self, name: str, role: Role, subject: str = "") -> dict[str, Any]:
        """Add an operator; ErrorResponse 400, and 409 if there is one with this name.

        ``subject``: the lasting name that an OpenID provider has for them.
        """
        if not _NAME.fullmatch(name) or name == PLANE:
            what = "An operator's name has up to 100 lower-case letters, digits and . _ @ + -, and is not 'plane'"
            raise bad_request(what, field="name")
        rows = self._db.all("SELECT name FROM operators WHERE deleted_at IS NULL")
        if name in [row["name"] for row in rows]:
            raise conflict(f"There is an operator {name} already", "EXISTS")
        if len(rows) >= MAX_OPERATORS:
            raise conflict(f"There are {MAX_OPERATORS} operators already", "LIMIT")
        sql = "INSERT INTO operators (name, role, subject, created_at) VALUES (?, ?, ?, ?)"
        self._db.insert(sql, name, str(role), subject, self._wall_now())
        return self.show(name)

    def change(self, name: str, role: Role | None, disabled: bool | None) -> dict[str, Any]:
        """Change the role of an operator, disable or enable them; ErrorResponse 404, and 409 if no admin would be left.

        A disabled operator's sessions end, and their tokens do not work until they are enabled.
        """
        self._db.guard(_GUARD, alone=True)
        row = self._row(name)
        if role is not None and role != row["role"]:
            self._db.run("UPDATE operators SET role = ? WHERE id = ?", str(role), row["id"])
        if disabled is not None and disabled != (row["disabled_at"] is not None):
            moment = self._wall_now() if disabled else None
            self._db.run("UPDATE operators SET disabled_at = ? WHERE id = ?", moment, row["id"])
        if disabled:
            self._db.run("DELETE FROM operator_sessions WHERE operator_id = ?", row["id"])
        self._require_admin()
        return self.show(name)

    def delete(self, name: str) -> None:
        """Delete an operator, whose tokens and sessions end; ErrorResponse 404, and 409 if no admin would be left."""
        self._db.guard(_GUARD, alone=True)
        row, now = self._row(name), self._wall_now()
        self._db.run("UPDATE operators SET deleted_at = ? WHERE id = ?", now, row["id"])
        sql = "UPDATE operator_tokens SET revoked_at = ? WHERE operator_id = ? AND revoked_at IS NULL"
        self._db.run(sql, now, row["id"])
        self._db.run("DELETE FROM operator_sessions WHERE operator_id = ?", row["id"])
        self._require_admin()

    def show_all(self) -> list[dict[str, Any]]:
        """Return all operators, by name."""
        return [self._shown(row) for row in self._db.all(f"{_OPERATORS} ORDER BY name", self._wall_now())]

    def show(self, name: str) -> dict[str, Any]:
        """Return one operator; ErrorResponse 404."""
        row = self._db.one(f"{_OPERATORS} AND name = ?", self._wall_now(), name)
        if row is None:
            raise self._unknown(name)
        return self._shown(row)

    def _shown(self, row: Row) -> dict[str, Any]:
        return {
            "name": row["name"],
            "role": row["role"],
            "status": "active" if row["disabled_at"] is None else "disabled",
            "created_at": when(row["created_at"]),
            "disabled_at": when(row["disabled_at"]),
            "tokens": row["tokens"],
            "last_used_at": when(row["last_used_at"]),
            "last_sign_in_at": when(row["signed_in_at"]),
        }

    def _row(self, name: str) -> Row:
        row = self._db.one_locked("SELECT * FROM operators WHERE name = ? AND deleted_at IS NULL", name)
        if row is None:
            raise self._unknown(name)
        return row

    def _unknown(self, name: str) -> ErrorResponse:
        known = [row["name"] for row in self._db.all("SELECT name FROM operators WHERE deleted_at IS NULL")]
        meant = nearest(name, known)
        return not_found(
            f"There is no operator {one_line(name, 100)!r}" + (f"; did you mean {meant}?" if meant else "")
        )

    def turn_key_off(self) -> None:
        """Turn the operator key off; ErrorResponse 409 while no admin could sign in without it."""
        self._db.guard(_GUARD, alone=True)
        self._key.set_state("off")
        self._require_admin()

    def _require_admin(self) -> None:
        """Raise ErrorResponse 409 if the key is off and no admin has a token: no operator could administer the plane."""
        if not self._key.is_off():
            return
        row = self._db.one(
            "SELECT 1 FROM operators o JOIN operator_tokens t ON t.operator_id = o.id WHERE o.role = ? AND t.role IN (?, '')"
            " AND o.disabled_at IS NULL AND o.deleted_at IS NULL AND t.revoked_at IS NULL AND t.expires_at > ?",
            *(str(Role.ADMIN), str(Role.ADMIN), self._wall_now()),
        )
        if row is None:
            what = "No admin could sign in any longer: with the operator key off, no admin would have a valid token"
            raise conflict(what, "NO_ADMIN_LEFT")

    # --- tokens ---------------------------------------------------------------------------------------------------

    def create_token(
        self, operator: str, name: str, role: Role | None, seconds: int, tags: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Create a token; only this answer contains its text. ErrorResponse 400, 404 and 409.

        ``role``: at most that of the operator; None: always that of the operator. ``tags``: its scope, with which it has at
        most the role operator.
        """
        row, now = self._row(operator), self._wall_now()
        if not name:
            raise bad_request("A token needs a name", field="name")
        if not 1 <= seconds <= MAX_TOKEN_DAYS * DAY:
            raise bad_request(f"A token is valid for at most {MAX_TOKEN_DAYS} days", field="expires_in")
        if role is not None and not Role(row["role"]).includes(role):
            what = f"A token has at most the role of its operator: {operator} is {row['role']}"
            raise bad_request(what, field="role")
        if tags and role is Role.ADMIN:
            raise bad_request(
                "A token with tags has at most the role operator: admins act on the whole fleet", field="role"
            )
        if row["disabled_at"] is not None:
            raise conflict(f"Operator {operator} is disabled", "OPERATOR_DISABLED")
        valid = self._db.all(
            "SELECT name FROM operator_tokens WHERE operator_id = ? AND revoked_at IS NULL AND expires_at > ?",
            *(row["id"], now),
        )
        if name in [token["name"] for token in valid]:
            raise conflict(f"{operator} has a valid token {name} already", "EXISTS")
        if len(valid) >= MAX_TOKENS:
            raise conflict(f"{operator} has {MAX_TOKENS} valid tokens already", "LIMIT")
        text = self._marks.new(SCOPED_PREFIX if tags else PREFIX)
        own = role or (Role.OPERATOR if tags else "")
        token_id = self._db.insert(
            "INSERT INTO operator_tokens (operator_id, name, role, token_hash, created_at, expires_at, tags)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(row["id"], name, str(own), digest(text), now, now + seconds, " ".join(tags)),
        )
        return self._token(token_id) | {"token": text}

    def revoke_token(self, token_id: int) -> dict[str, Any]:
        """End a token with its sessions; idempotent. ErrorResponse 404, and 409 if no admin would be left."""
        self._db.guard(_GUARD, alone=True)
        shown, now = self._token(token_id), self._wall_now()
        self._db.run("UPDATE operator_tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", now, token_id)
        self._db.run("DELETE FROM operator_sessions WHERE token_id = ?", token_id)
        if shown["status"] == "valid":
            self._require_admin()
        return self._token(token_id)

    def tokens(self, operator: str = "") -> list[dict[str, Any]]:
        """Return the tokens, without their texts, of one operator or all."""
        if operator:
            self._row(operator)
        rows = self._db.all(f"{_TOKENS} WHERE (o.name = ? OR ? = '') ORDER BY t.id", operator, operator)
        return [self._shown_token(row) for row in rows]

    def page_of_tokens(self, operator: str, status: str, before_id: int | None, limit: int) -> list[dict[str, Any]]:
        """Return tokens, the newest first: with a status, ``current`` (valid or disabled), or all."""
        now, parts, parameters = self._wall_now(), ["1 = 1"], list[Any]()
        if operator:
            parts.append("o.name = ?")
            parameters.append(operator)
        if before_id is not None:
            parts.append("t.id < ?")
            parameters.append(before_id)
        if status:
            sql, times = _OF_STATUS[status]
            parts.append(sql)
            parameters += [now] * times
        rows = self._db.all(f"{_TOKENS} WHERE {' AND '.join(parts)} ORDER BY t.id DESC LIMIT ?", *parameters, limit)
        return [self._shown_token(row) for row in rows]

    def token(self, token_id: int) -> dict[str, Any]:
        """Return a token, without its text; ErrorResponse 404."""
        return self._token(token_id)

    def _token(self, token_id: int) -> dict[str, Any]:
        row = self._db.one(f"{_TOKENS} WHERE t.id = ?", token_id)
        if row is None:
            raise not_found(f"There is no token {token_id}; see plane token list")
        return self._shown_token(row)

    def _shown_token(self, row: Row) -> dict[str, Any]:
        plain = ("id", "name", "operator", "last_address")
        times = ("created_at", "expires_at", "revoked_at", "last_used_at")
        status = "revoked" if row["revoked_at"] is not None else "valid"
        if status == "valid" and row["expires_at"] <= self._wall_now():
            status = "expired"
        elif status == "valid" and row["disabled_at"] is not None:
            status = "disabled"
        shown = {name: row[name] for name in plain} | {name: when(row[name]) for name in times}
        return shown | {"role": str(_role_of(row)), "tags": row["tags"].split(), "status": status}

    def authenticate(self, text: str, address: str) -> tuple[Caller, Row]:
        """Return the operator of a token, and its row; ErrorResponse 401 for one that does not work."""
        row = self._db.one(f"{_TOKENS} WHERE t.token_hash = ?", digest(text))
        if row is None:
            raise invalid_token("This is not a token of an operator")
        if row["revoked_at"] is not None:
            raise _refused(f"This token was revoked at {when(row['revoked_at'])}", "OPERATOR_TOKEN_REVOKED")
        if row["expires_at"] <= self._wall_now():
            raise _refused(f"This token expired at {when(row['expires_at'])}", "OPERATOR_TOKEN_EXPIRED")
        if row["disabled_at"] is not None or row["deleted_at"] is not None:
            raise _refused(f"Operator {row['operator']} is disabled", "OPERATOR_DISABLED")
        return _caller(row, address), row

    def note_use(self, token_id: int, address: str) -> None:
        """Note that a token was used."""
        sql = "UPDATE operator_tokens SET last_used_at = ?, last_address = ? WHERE id = ?"
        self._db.run(sql, self._wall_now(), address, token_id)

    def is_due(self, row: Row, address: str) -> bool:
        """Return whether a use of a token is to be noted."""
        last = row["last_used_at"]
        return last is None or last < self._wall_now() - USE_NOTED_SECONDS or row["last_address"] != address

    # --- sessions of the pages ------------------------------------------------------------------------------------

    def open_session(self, id_hash: str, token: Row, seconds: float) -> None:
        """Store a session that was opened with a token, and ends with it; ErrorResponse 403 for one with a scope."""
        if token["tags"]:
            what = f"This token is only for devices with {token['tags'].replace(' ', ' and ')}, and the pages are about all"
            raise out_of_scope(f"{what}: use it with commands and the API")
        ends = min(self._wall_now() + seconds, token["expires_at"])
        sql = "INSERT INTO operator_sessions (id_hash, operator_id, token_id, expires_at) VALUES (?, ?, ?, ?)"
        self._db.run(sql, id_hash, token["operator_id"], token["id"], ends)
        self._note_sign_in(token["operator_id"])
        self._end_oldest(token["operator_id"], id_hash)

    def open_provider_session(self, subject: str, name: str, role: Role, id_hash: str, seconds: float) -> Caller:
        """Store a session of a person whom an OpenID provider has named, and return them.

        An unknown subject becomes a new operator; a known one gets the role that the provider grants now. ErrorResponse
        403 if the operator is disabled, 409 if another operator has the name.
        """
        self._db.guard(_GUARD, alone=True)
        row = self._db.one_locked("SELECT * FROM operators WHERE subject = ? AND deleted_at IS NULL", subject)
        if row is None:
            self.add(name, role, subject)
            row = self._row(name)
        elif row["disabled_at"] is not None:
            raise forbidden(f"Operator {row['name']} is disabled", "OPERATOR_DISABLED")
        elif row["role"] != role:
            self.change(row["name"], role, None)
        sql = "INSERT INTO operator_sessions (id_hash, operator_id, expires_at) VALUES (?, ?, ?)"
        self._db.run(sql, id_hash, row["id"], self._wall_now() + seconds)
        self._note_sign_in(row["id"])
        self._end_oldest(row["id"], id_hash)
        return Caller(who=row["name"], role=role, via="single sign-on")

    def _note_sign_in(self, operator_id: int) -> None:
        self._db.run("UPDATE operators SET signed_in_at = ? WHERE id = ?", self._wall_now(), operator_id)

    def _end_oldest(self, operator_id: int, new: str) -> None:
        """End the sessions of an operator that end first, beyond `MAX_SESSIONS` with the new one."""
        others = "operator_id = ? AND id_hash != ?"
        kept = f"SELECT id_hash FROM operator_sessions WHERE {others} ORDER BY expires_at DESC LIMIT ?"
        self._db.run(
            f"DELETE FROM operator_sessions WHERE {others} AND id_hash NOT IN ({kept})",
            *(operator_id, new, operator_id, new, MAX_SESSIONS - 1),
        )

    def end_sessions_of(self, subject: str) -> None:
        """End the sessions of a person to whom the provider grants no role any longer."""
        mine = "SELECT id FROM operators WHERE subject = ?"
        self._db.run(f"DELETE FROM operator_sessions WHERE operator_id IN ({mine})", subject)

    def name_of(self, subject: str) -> str:
        """Return the name of the operator whom a provider names so; empty if there is none."""
        row = self._db.one("SELECT name FROM operators WHERE subject = ? AND deleted_at IS NULL", subject)
        return "" if row is None else str(row["name"])

    def of_session(self, id_hash: str) -> Caller | None:
        """Return the operator of an open session, as they are now; None if it has ended."""
        now = self._wall_now()
        row = self._db.one(
            "SELECT o.name AS operator, o.role AS operator_role, t.name, t.role, t.tags, s.token_id FROM operator_sessions s"
            " JOIN operators o ON o.id = s.operator_id LEFT JOIN operator_tokens t ON t.id = s.token_id"
            " WHERE s.id_hash = ? AND s.expires_at > ? AND o.disabled_at IS NULL AND o.deleted_at IS NULL"
            " AND (s.token_id IS NULL OR (t.revoked_at IS NULL AND t.expires_at > ?))",
            *(id_hash, now, now),
        )
        if row is None:
            return None
        if row["token_id"] is None:
            return Caller(who=row["operator"], role=Role(row["operator_role"]), via="single sign-on")
        return _caller(row, "")

    def close_session(self, id_hash: str) -> None:
        """End a session."""
        self._db.run("DELETE FROM operator_sessions WHERE id_hash = ?", id_hash)

    def delete_expired(self) -> None:
        """Delete sessions that have ended, and tokens that ended long ago."""
        now = self._wall_now()
        self._db.run("DELETE FROM operator_sessions WHERE expires_at <= ?", now)
        old = "(revoked_at IS NOT NULL AND revoked_at < ?) OR expires_at < ?"
        sessions = f"SELECT id FROM operator_tokens WHERE {old}"
        last = now - KEPT_SECONDS
        self._db.run(f"DELETE FROM operator_sessions WHERE token_id IN ({sessions})", last, last)
        self._db.run(f"DELETE FROM operator_tokens WHERE {old}", last, last)


_OPERATORS = (
    "SELECT operators.*, (SELECT count(*) FROM operator_tokens t WHERE t.operator_id = operators.id AND"
    " t.revoked_at IS NULL AND t.expires_at > ?) AS tokens, (SELECT max(t.last_used_at) FROM operator_tokens t"
    " WHERE t.operator_id = operators.id) AS last_used_at FROM operators WHERE deleted_at IS NULL"
)
_TOKENS = (
    "SELECT t.*, o.name AS operator, o.role AS operator_role, o.disabled_at, o.deleted_at FROM operator_tokens t"
    " JOIN operators o ON o.id = t.operator_id"
)

_CURRENT = "t.revoked_at IS NULL AND t.expires_at > ?"
_OF_STATUS = {
    "current": (_CURRENT, 1),
    "valid": (f"{_CURRENT} AND o.disabled_at IS NULL", 1),
    "disabled": (f"{_CURRENT} AND o.disabled_at IS NOT NULL", 1),
    "expired": ("t.revoked_at IS NULL AND t.expires_at <= ?", 1),
    "revoked": ("t.revoked_at IS NOT NULL", 0),
}
"""Status of tokens -> its condition, and how often that has the time."""
TOKEN_STATUSES = tuple(_OF_STATUS)


def _role_of(row: Row) -> Role:
    """Return the role of a token: never more than that of its operator is now."""
    own = Role(row["operator_role"])
    return own.lesser(Role(row["role"])) if row["role"] else own


def _caller(row: Row, address: str) -> Caller:
    tags = tuple(row["tags"].split())
    return Caller(who=row["operator"], role=_role_of(row), via=f"token {row['name']}", address=address, tags=tags)


def _refused(what: str, key: str) -> ErrorResponse:
    return ErrorResponse(what, status=401, key=key, code=4002)
