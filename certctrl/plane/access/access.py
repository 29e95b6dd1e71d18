"""OperatorAccess: authenticate operators, by the operator key or by a token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from certctrl.errors import CertctrlError
from certctrl.plane.access import accounts, key
from certctrl.plane.access.accounts import Accounts
from certctrl.plane.access.key import OperatorKey
from certctrl.plane.access.marked import MarkedSecrets
from certctrl.plane.access.roles import BY_KEY, Caller, Role
from certctrl.plane.audit.acts import aside
from certctrl.plane.errors import DatabaseAwayError, ErrorResponse, invalid_token
from certctrl.plane.limits import Buckets, caller_of
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import Keyring, digest

_REMEMBERED = 1000
"""Tokens that are known to have been accepted, in memory."""
_UNKNOWN_RATE, _UNKNOWN_BURST = 10.0, 100
"""Requests per second with tokens that are not known to have been accepted: each reads the database.

They are counted for each token that control planes have made, and together for all others of one address.
"""
_OUTDATED = (
    "the operator key of this control plane is not the current one: copy it from where it was replaced, or:"
    " cert-ctrl plane rotate operator-key --data DIR, with --operator-key-file FILE if it is given from outside DIR"
)

log = logging.getLogger("certctrl.Plane")


class OperatorAccess:
    """The operators of a plane."""

    def __init__(
        self, database: Database, keyring: Keyring, wall_now: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._db = database
        self._keyring = keyring
        self.key = OperatorKey(database, keyring)
        self._marks = MarkedSecrets(keyring.derived("tokens of operators"))
        self.accounts = Accounts(database, self.key, self._marks, wall_now)
        self._accepted: dict[str, None] = {}
        self._unknown = Buckets(_UNKNOWN_RATE, _UNKNOWN_BURST, monotonic)
        self._key_counted = not (self.key.is_off() or self.key.is_outdated())
        """Whether the key that this plane has read was current and on when the database last said so."""
        if self.key.is_outdated():
            log.warning("%s", _OUTDATED)

    def may_be_operator(self, token: str) -> bool:
        """Return whether a bearer token looks like an operator's, without reading the database."""
        return self._keyring.is_operator(token) or token.startswith((*accounts.PREFIXES, key.PREFIX))

    def was_accepted(self, token: str) -> bool:
        """Return whether an operator was let in with this token, without reading the database."""
        return digest(token) in self._accepted

    async def authenticate(self, token: str, address: str, *, if_away: bool = False) -> Caller:
        """Return the operator with a token; ErrorResponse 401, and 429 after too many unknown ones.

        A token with a right checksum was made by a control plane: others' guesses from the same address do not hold it up.

        ``if_away``: while the database is away, let the key in, which it may have replaced or turned off meanwhile.
        """
        if not self.may_be_operator(token):
            raise invalid_token("This is neither the operator key nor a token of an operator")
        if not (self.was_accepted(token) or self._keyring.is_operator(token)):
            self._unknown.take(digest(token) if self._marks.is_own(token) else caller_of(address))
        try:
            caller, row = await self._db.work_read(self.identify, token, address)
        except ErrorResponse:
            self._accepted.pop(digest(token), None)
            raise
        except (CertctrlError, DatabaseAwayError):
            if not (if_away and self._key_counted and self._keyring.is_operator(token)):
                raise
            return Caller(who=BY_KEY, role=Role.VIEWER, address=address)
        self._remember(token)
        if row is not None and self.accounts.is_due(row, address):
            with contextlib.suppress(CertctrlError), aside():  # a full disk does not lock operators out
                await self._db.work(self.accounts.note_use, row["id"], address)
        return caller

    def identify(self, token: str, address: str) -> tuple[Caller, Row | None]:
        """Return the operator with a token, and its row unless it is the key, in a unit of work; ErrorResponse 401."""
        if token.startswith(accounts.PREFIXES):
            return self.accounts.authenticate(token, address)
        self._key_counted = not (self.key.is_off() or self.key.is_outdated())
        self.key.require(token)
        return Caller(who=BY_KEY, role=Role.ADMIN, address=address), None

    def _remember(self, token: str) -> None:
        self._accepted.pop(digest(token), None)
        self._accepted[digest(token)] = None
        if len(self._accepted) > _REMEMBERED:
            self._accepted.pop(next(iter(self._accepted)))
