"""Endpoints: what each endpoint of a device was last seen to serve, and since when (docs/protocol.md).

A device has rows only for what it is assigned, and a bounded number of each, so its reports cannot fill the table.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

from certctrl import lean
from certctrl.model.causes import Reason
from certctrl.plane.storage.database import Database, marks

MAX_ENDPOINTS = 64
"""Endpoints of a certificate on a device that are stored."""
AGE_SECONDS = 3 * 86_400.0
"""Age after which a row is not believed: agents repeat what they see once a day."""
_ROWS_PER_STATEMENT = 32


@lean.frozen(kw_only=True)
class SeenEndpoint:
    """What an endpoint served."""

    endpoint: str
    serial: str = ""
    """Empty: it served no certificate that can be read."""
    fingerprint_sha256: str = ""
    not_after: float | None = None
    reason: str = ""
    """Code of what is wrong; empty: it served the deployed certificate."""


@lean.frozen(kw_only=True)
class EndpointsReport:
    """What the endpoints of one certificate serve."""

    cert_id: int
    deployed: str = ""
    """Serial number of the certificate that the device has in use."""
    endpoints: Sequence[SeenEndpoint] = ()


class Endpoints:
    """The table; all methods run in the caller's unit of work."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def note(self, device_id: int, report: EndpointsReport, now: float) -> None:
        """Replace what is known of a certificate's endpoints; what is still the same keeps its time."""
        cert_id = report.cert_id
        assigned = self._db.one("SELECT 1 FROM assignments WHERE device_id = ? AND cert_id = ?", device_id, cert_id)
        seen = {one.endpoint: one for one in report.endpoints if one.endpoint} if assigned is not None else {}
        kept = self._db.all("SELECT * FROM endpoints WHERE device_id = ? AND cert_id = ?", device_id, cert_id)
        before = {row["endpoint"]: row for row in kept}
        if gone := sorted(before.keys() - seen.keys()):
            sql = f"DELETE FROM endpoints WHERE device_id = ? AND cert_id = ? AND endpoint IN ({marks(gone)})"
            self._db.run(sql, device_id, cert_id, *gone)
        older, rows = self._former(cert_id, seen.values()), []
        for one in sorted(seen.values(), key=lambda one: one.endpoint)[:MAX_ENDPOINTS]:
            row, is_older = before.get(one.endpoint), one.serial in older and one.reason == Reason.OTHER_CERTIFICATE
            reason = Reason.OLDER_SERVED.value if is_older else one.reason
            same = row is not None and (row["serial_number"], row["reason"]) == (one.serial, reason)
            since = row["since"] if row is not None and same else now
            shown = (one.endpoint, report.deployed, one.serial, one.fingerprint_sha256, one.not_after)
            rows.append((device_id, cert_id, *shown, reason, since, now))
        self._store(rows)
        if rows and not any(one.reason for one in seen.values()):
            self._db.run(
                "UPDATE deployments SET served_at = ? WHERE device_id = ? AND kind = 'cert' AND object_id = ?"
                " AND serial_number = ? AND failing = 0",
                *(now, device_id, cert_id, report.deployed),
            )

    def forget(self, device_id: int) -> None:
        """Forget all of a device, whose agent reports no longer."""
        self._db.run("DELETE FROM endpoints WHERE device_id = ?", device_id)

    def _former(self, cert_id: int, seen: Collection[SeenEndpoint]) -> frozenset[str]:
        """Return those of the served serial numbers that are of former certificates of this one."""
        serials = sorted({one.serial for one in seen if one.reason and one.serial})
        if not serials:
            return frozenset()
        sql = f"SELECT serial_number FROM former_certificates WHERE cert_id = ? AND serial_number IN ({marks(serials)})"
        return frozenset(row["serial_number"] for row in self._db.all(sql, cert_id, *serials))

    def _store(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), _ROWS_PER_STATEMENT):
            some = rows[start : start + _ROWS_PER_STATEMENT]
            self._db.run(
                "INSERT INTO endpoints (device_id, cert_id, endpoint, deployed, serial_number, fingerprint_sha256,"
                f" not_after, reason, since, at) VALUES {', '.join([f'({marks(some[0])})'] * len(some))}"
                " ON CONFLICT (device_id, cert_id, endpoint) DO UPDATE SET deployed = excluded.deployed,"
                " serial_number = excluded.serial_number, fingerprint_sha256 = excluded.fingerprint_sha256,"
                " not_after = excluded.not_after, reason = excluded.reason, since = excluded.since, at = excluded.at",
                *chain.from_iterable(some),
            )
