"""Holds: devices that keep the version of a certificate that they have, although there is a newer one.

A rollout holds the devices of later waves. A held device is told its version wherever it reads its certificates, so it
neither sees nor waits for the newer one. The version's key is kept until its last device has been released. A revoked
certificate is never held. All methods run in the caller's unit of work, and need the certificate's row locked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl.plane.storage.database import Database, Row, marks

OPEN_ROLLOUTS = "SELECT r.id FROM rollouts r WHERE r.state IN ('running', 'paused', 'halted')"
_VERSION = (
    "serial_number", "fingerprint_sha256", "not_before", "not_after", "certificate_pem", "chain_pem", "private_key_enc",
    "public_key_sha256", "batch", "updated_at",
)  # fmt: skip
"""Columns of a certificate in which its versions differ."""
_DEVICES_PER_STATEMENT = 500

JOINED = (
    " LEFT JOIN certificate_holds h ON h.cert_id = c.id AND h.device_id = a.device_id AND c.status = 'active'"
    " LEFT JOIN held_certificates f ON f.cert_id = h.cert_id AND f.serial_number = h.serial_number"
)
"""Joins the version that a device is held at to a certificate ``c`` and its assignment ``a``; see `columns`."""


def columns(names: Sequence[str]) -> str:
    """Return columns of a certificate as a device is told them, in a statement with `JOINED`."""
    return ", ".join(f"coalesce(f.{one}, c.{one}) AS {one}" if one in _VERSION else f"c.{one}" for one in names)


class Holds:
    """The tables ``certificate_holds`` and ``held_certificates``."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def begin(self, cert_id: int, device_ids: Sequence[int], rollout_id: int) -> None:
        """Hold devices at the version that they are told now."""
        names = ", ".join(_VERSION)
        self._db.run(
            f"INSERT INTO held_certificates (cert_id, {names}) SELECT id, {names} FROM certificates WHERE id = ?"
            " ON CONFLICT (cert_id, serial_number) DO NOTHING",
            cert_id,
        )
        for start in range(0, len(device_ids), _DEVICES_PER_STATEMENT):
            some = device_ids[start : start + _DEVICES_PER_STATEMENT]
            self._db.run(
                "INSERT INTO certificate_holds (cert_id, device_id, serial_number, rollout_id)"
                " SELECT c.id, d.id, c.serial_number, ? FROM certificates c, devices d"
                f" WHERE c.id = ? AND d.id IN ({marks(some)})"
                " ON CONFLICT (cert_id, device_id) DO UPDATE SET rollout_id = excluded.rollout_id",
                *(rollout_id, cert_id, *some),
            )
        self._forget(cert_id)

    def begin_as_others(self, cert_id: int, device_ids: Sequence[int]) -> str:
        """Hold new devices of a certificate as those of its open rollout; return their version, empty: there is none."""
        other = self._db.one(
            "SELECT serial_number, rollout_id FROM certificate_holds WHERE cert_id = ?"
            f" AND rollout_id IN ({OPEN_ROLLOUTS}) ORDER BY device_id LIMIT 1",
            cert_id,
        )
        if other is None:
            return ""
        for device_id in device_ids:
            self._db.run(
                "INSERT INTO certificate_holds (cert_id, device_id, serial_number, rollout_id) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (cert_id, device_id) DO NOTHING",
                *(cert_id, device_id, other["serial_number"], other["rollout_id"]),
            )
        return str(other["serial_number"])

    def end(self, cert_id: int, device_ids: Sequence[int] | None = None) -> list[int]:
        """Hold devices no longer, all by default; return those that are told another version from now on."""
        chosen = "" if device_ids is None else f" AND h.device_id IN ({marks(device_ids)})"
        if device_ids is not None and not device_ids:
            return []
        rows = self._db.all(
            "SELECT h.device_id FROM certificate_holds h JOIN certificates c ON c.id = h.cert_id WHERE h.cert_id = ?"
            f"{chosen} AND h.serial_number != c.serial_number ORDER BY h.device_id",
            *(cert_id, *(device_ids or ())),
        )
        ended = self._db.run(
            f"DELETE FROM certificate_holds AS h WHERE h.cert_id = ?{chosen}", cert_id, *(device_ids or ())
        )
        if ended:
            self._forget(cert_id)
        return [row["device_id"] for row in rows]

    def held_at(self, cert_id: int, serial: str) -> list[int]:
        """Return the devices that are held at one version."""
        sql = "SELECT device_id FROM certificate_holds WHERE cert_id = ? AND serial_number = ? ORDER BY device_id"
        return [row["device_id"] for row in self._db.all(sql, cert_id, serial)]

    def mates(self, cert_ids: Sequence[int]) -> list[int]:
        """Return certificates at which a rollout holds devices, with those that it gives them together with these."""
        rows = self._db.all(
            "SELECT DISTINCT m.cert_id FROM certificate_holds h JOIN rollout_certificates t"
            " ON t.rollout_id = h.rollout_id AND t.cert_id = h.cert_id JOIN rollout_certificates m"
            " ON m.rollout_id = t.rollout_id AND (m.cert_id = t.cert_id OR (m.together = t.together AND t.together != ''))"
            f" WHERE h.cert_id IN ({marks(cert_ids)}) ORDER BY m.cert_id",
            *cert_ids,
        )
        return [row["cert_id"] for row in rows]

    def note_stored(self, cert_id: int, action: str) -> None:
        """End the holds that a new version of a certificate does not belong to: all devices are to get it.

        That of an open rollout is a renewal, or an import. ``action`` is empty if its device has made the key: it removes
        the key if it is told the former version.
        """
        kept = f" AND rollout_id NOT IN ({OPEN_ROLLOUTS})" if action in ("renew", "import") else ""
        if self._db.run(f"DELETE FROM certificate_holds WHERE cert_id = ?{kept}", cert_id):
            self._forget(cert_id)

    def rollout_of(self, cert_id: int) -> Row | None:
        """Return the open rollout that renews a certificate."""
        return self._db.one(
            "SELECT r.id, r.state FROM rollouts r JOIN rollout_certificates t ON t.rollout_id = r.id"
            " WHERE t.cert_id = ? AND r.state IN ('running', 'paused', 'halted')",
            cert_id,
        )

    def versions(self, wanted: Sequence[tuple[int, str]]) -> dict[tuple[int, str], dict[str, Any]]:
        """Return versions by certificate and serial number: the columns in which they differ from others."""
        if not wanted:
            return {}
        ids = sorted({cert_id for cert_id, _ in wanted})
        rows = self._db.all(f"SELECT * FROM held_certificates WHERE cert_id IN ({marks(ids)})", *ids)
        return {(row["cert_id"], row["serial_number"]): {name: row[name] for name in _VERSION} for row in rows}

    def _forget(self, cert_id: int) -> None:
        """Delete the versions at which no device is held, with their keys."""
        self._db.run(
            "DELETE FROM held_certificates WHERE cert_id = ? AND NOT EXISTS (SELECT 1 FROM certificate_holds h"
            " WHERE h.cert_id = held_certificates.cert_id AND h.serial_number = held_certificates.serial_number)",
            cert_id,
        )


def at_version(certificate: Row, version: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a certificate as its devices at another version are told them."""
    same = ("id", "status", "key_origin")
    return {name: certificate[name] for name in same} | dict(version)
