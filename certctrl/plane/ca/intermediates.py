"""The intermediates of a CA of the plane: the current one, which issues, and former ones, which still sign their CRLs.

All methods run in the caller's unit of work. Keys are stored sealed; planes of a fleet share them.
"""

from __future__ import annotations

from certctrl.plane.ca.constraints import Constraints, constraints_of
from certctrl.plane.ca.crl import key_id
from certctrl.plane.ca.x509 import Authority, new_intermediate
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

_VALIDITY = 5 * 365 * DAY
_RENEWAL = 2 * 366 * DAY
"""Seconds before its expiry at which an intermediate is replaced: leaves (at most 366 days) must not outlive it."""


class Intermediates:
    """The stored intermediates of one CA."""

    def __init__(self, database: Database, keyring: Keyring, prefix: str, common_name: str, root: Authority) -> None:
        """``prefix`` begins the names under which they are stored."""
        self._db = database
        self._keyring = keyring
        self._common_name = common_name
        self._root = root
        self._present = f"{prefix}-intermediate"
        self._former = f"{prefix}-former-"
        self._marker = f"{prefix}_intermediate"
        """Setting with the key identifier of the current one, for other planes."""

    def current(self, known: Authority | None, now: float) -> Authority:
        """Return the current one, and make or replace it if that is due; ``known`` is the previous result."""
        markers = () if known is None or self._is_due(known, now) else ("", key_id(known.certificate))
        if known is not None and self._db.setting(self._marker) in markers:
            return known
        stored = self.stored()
        if stored is not None and not self._is_due(stored, now):
            return stored
        return self._replace(Constraints() if stored is None else constraints_of(stored.certificate), now)

    def constrain(self, constraints: Constraints, now: float) -> Authority:
        """Return a new intermediate with these constraints, or the current one if it has them."""
        stored = self.stored()
        if stored is not None and constraints_of(stored.certificate) == constraints:
            return stored
        return self._replace(constraints, now)

    def stored(self) -> Authority | None:
        """Return the current one; None if there is none."""
        return self._load(self._present)

    def key_ids(self) -> list[str]:
        """Return the key identifiers of all intermediates, the current one first."""
        present = self._db.setting(self._marker)
        if not present:
            stored = self.stored()
            present = "" if stored is None else key_id(stored.certificate)
        formers = [name.removeprefix(self._former) for name in self._former_names()]
        return [*([present] if present else []), *(one for one in formers if one != present)]

    def by_key_id(self, identifier: str) -> Authority | None:
        """Return the intermediate with a key identifier."""
        former = self._load(f"{self._former}{identifier}")
        if former is not None:
            return former
        stored = self.stored()
        return stored if stored is not None and key_id(stored.certificate) == identifier else None

    def _is_due(self, intermediate: Authority, now: float) -> bool:
        """Return whether a later intermediate should replace this one."""
        expires_soon = intermediate.not_after - now < _RENEWAL
        return expires_soon and intermediate.not_after < self._end(now)

    def _end(self, now: float) -> float:
        return min(now + _VALIDITY, self._root.not_after)

    def _replace(self, constraints: Constraints, now: float) -> Authority:
        """Make a new intermediate, unless another plane has just made one, and keep the previous key."""
        self._db.one_locked("SELECT name FROM secrets WHERE name = ?", self._present)
        before = self.stored()
        if before is not None:
            if not self._is_due(before, now) and constraints_of(before.certificate) == constraints:
                return before
            self._store(f"{self._former}{key_id(before.certificate)}", before)
        made = new_intermediate(
            self._root, self._common_name, not_before=now - DAY, not_after=self._end(now), constraints=constraints
        )
        self._store(self._present, made)
        self._db.run(
            "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            self._marker,
            key_id(made.certificate),
        )
        return made

    def _former_names(self) -> list[str]:
        rows = self._db.all("SELECT name FROM secrets WHERE name LIKE ? ORDER BY name", f"{self._former}%")
        return [row["name"] for row in rows]

    def _load(self, name: str) -> Authority | None:
        row = self._db.one("SELECT value_enc FROM secrets WHERE name = ?", name)
        return None if row is None else Authority.from_sealed_form(self._keyring.unseal(name, row["value_enc"]))

    def _store(self, name: str, authority: Authority) -> None:
        self._db.run(
            "INSERT INTO secrets VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value_enc = excluded.value_enc",
            name,
            self._keyring.seal(name, authority.sealed_form()),
        )
