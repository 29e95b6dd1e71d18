"""Crls: the revocation lists of the built-in CA, one per intermediate and shared by all planes.

A list is signed by the first request that finds it missing, outdated by a revocation, or past half of its validity. A
revocation costs one signature per intermediate, however many clients ask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import trio

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.plane.ca.crl import Revoked, sign_crl
from certctrl.plane.ca.intermediates import Intermediates
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row

VALIDITY = 7 * DAY
_REFRESH = DAY
"""Age at which a list is replaced even if nothing was revoked."""
_BACKDATE = 300
"""Clients' clocks may be behind."""
_KEPT_AFTER_EXPIRY = _REFRESH + DAY
"""Seconds for which an expired certificate stays listed: one list must follow its expiry (RFC 5280 §3.3)."""
_REREAD_SECONDS = 2.0
"""Longest delay until a plane lists revocations of others, and the interval at which requests reach the database."""


@lean.frozen(kw_only=True)
class Crl:
    """A signed list."""

    der: bytes
    number: int
    this_update: float
    next_update: float

    @property
    def etag(self) -> str:
        """An entity tag for HTTP."""
        return f'"{hashlib.sha256(self.der).hexdigest()[:32]}"'


class Crls:
    """The tables ``crls`` and ``revoked_serials``."""

    def __init__(
        self,
        database: Database,
        intermediates: Intermediates,
        wall_now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._db = database
        self._intermediates = intermediates
        self._wall_now = wall_now
        self._monotonic = monotonic
        self._reading = trio.Lock()
        self._known: dict[str, Crl] = {}
        self._read_at: float | None = None
        self._revoked = 0
        self.signed = 0
        """Lists that this plane has signed."""

    async def get(self, key_id: str) -> Crl | None:
        """Return the list of an intermediate; None if there is no such intermediate.

        While the database does not answer, the last known list is returned as long as it is valid.
        """
        if self._is_outdated():
            async with self._reading:
                if self._is_outdated():  # another request may have refreshed it while this one waited
                    await self._reread(key_id)
        return self._known.get(key_id)

    def add(self, serial: str, issuer_key_id: str, *, cert_id: int, reason: str, not_after: float) -> bool:
        """List a certificate as revoked, in the caller's unit of work; return False if it is listed already.

        Without ``issuer_key_id``, the lists of all intermediates contain it; ``not_after`` 0: forever.
        """
        added = self._db.run(
            "INSERT INTO revoked_serials (serial_number, cert_id, reason, revoked_at, not_after, issuer_key_id)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (serial_number) DO NOTHING",
            *(serial, cert_id, reason, self._wall_now(), not_after, issuer_key_id),
        )
        if added:
            for key_id in (issuer_key_id,) if issuer_key_id else self._intermediates.key_ids():
                self._outdate(key_id)
            self._db.after_commit(self._forget)
        return added == 1

    def signs(self, issuer_key_id: str) -> bool:
        """Return whether this plane signs the list for certificates whose issuer has this key identifier."""
        return bool(issuer_key_id) and issuer_key_id in self._intermediates.key_ids()

    def delete_expired(self) -> None:
        """Delete entries of certificates that expired long enough ago."""
        sql = "DELETE FROM revoked_serials WHERE not_after > 0 AND not_after < ?"
        self._db.run(sql, self._wall_now() - _KEPT_AFTER_EXPIRY)

    def _is_outdated(self) -> bool:
        return self._read_at is None or self._monotonic() - self._read_at >= _REREAD_SECONDS

    def _forget(self) -> None:
        """Read the lists again at the next request, even if they are being read now."""
        self._read_at = None
        self._revoked += 1

    async def _reread(self, key_id: str) -> None:
        began, revoked = self._monotonic(), self._revoked
        try:
            known = await self._db.work_long(self._all)
        except CertctrlError:
            crl = self._known.get(key_id)
            if crl is None or crl.next_update <= self._wall_now():
                raise
            known = self._known
        self._known, self._read_at = known, began if revoked == self._revoked else None

    def _all(self) -> dict[str, Crl]:
        """Return all lists, and sign the missing and outdated ones."""
        found = {}
        for key_id in self._intermediates.key_ids():
            row = self._row(key_id)
            if not self._is_fresh(row) and not self._db.is_read_only():
                row = self._sign(key_id)
            if row is not None and row["number"]:
                found[key_id] = self._crl(key_id, row)
        return found

    def _crl(self, key_id: str, row: Row) -> Crl:
        known = self._known.get(key_id)
        if known is not None and known.number == row["number"]:
            return known
        stored = self._db.one("SELECT der FROM crls WHERE issuer_key_id = ?", key_id)
        assert stored is not None  # its row was read in the same unit of work
        number, this_update, next_update = row["number"], row["this_update"], row["next_update"]
        return Crl(der=bytes(stored["der"]), number=number, this_update=this_update, next_update=next_update)

    def _row(self, key_id: str) -> Row | None:
        sql = "SELECT number, this_update, next_update, outdated FROM crls WHERE issuer_key_id = ?"
        return self._db.one(sql, key_id)

    def _is_fresh(self, row: Row | None) -> bool:
        age = 0.0 if row is None else self._wall_now() - row["this_update"]
        return row is not None and not row["outdated"] and -_BACKDATE <= age < _REFRESH

    def _sign(self, key_id: str) -> Row | None:
        """Sign and store the next list of an intermediate; return its row."""
        self._outdate(key_id)  # locks the row: no revocation that this list lacks can commit before it
        if self._is_fresh(self._row(key_id)):
            return self._row(key_id)
        issuer, now = self._intermediates.by_key_id(key_id), self._wall_now()
        if issuer is None:
            return None
        before = self._db.one("SELECT number FROM crls WHERE issuer_key_id = ?", key_id)
        number = max(int(now), 1 + (0 if before is None else before["number"]))
        this_update, next_update = now - _BACKDATE, now + VALIDITY
        entries = [_entry(row) for row in self._entries(key_id)]
        der = sign_crl(issuer, entries, number=number, this_update=this_update, next_update=next_update)
        self._db.run(
            "UPDATE crls SET number = ?, der = ?, this_update = ?, next_update = ?, outdated = 0 WHERE issuer_key_id = ?",
            *(number, der, this_update, next_update, key_id),
        )
        self.signed += 1
        return self._row(key_id)

    def _entries(self, key_id: str) -> list[Row]:
        return self._db.all(
            "SELECT serial_number, reason, revoked_at FROM revoked_serials WHERE issuer_key_id IN (?, '')"
            " ORDER BY revoked_at, serial_number",
            key_id,
        )

    def _outdate(self, key_id: str) -> None:
        """Mark a list as outdated; a missing one gets an empty row."""
        self._db.run(
            "INSERT INTO crls (issuer_key_id, number, der, this_update, next_update, outdated) VALUES (?, 0, ?, 0, 0, 1)"
            " ON CONFLICT (issuer_key_id) DO UPDATE SET outdated = 1",
            *(key_id, b""),
        )


def _entry(row: Row) -> Revoked:
    return Revoked(int(row["serial_number"].replace(":", ""), 16), row["revoked_at"], row["reason"])
