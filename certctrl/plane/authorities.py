"""Private CAs: stored here, assigned to devices, fetched by them as a bundle (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography import x509

from certctrl.plane.ca.x509 import pem_of, serial_text
from certctrl.plane.clock import when
from certctrl.plane.devices.devices import require_device, require_user
from certctrl.plane.errors import bad_request, not_found
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.signal_stream import SignalStream

_MAX_PEM = 64 * 1024


class Authorities:
    """The table of CAs and their assignments to devices."""

    def __init__(
        self, database: Database, stream: SignalStream, root_pem: Callable[[], str], wall_now: Callable[[], float]
    ) -> None:
        """``root_pem`` returns the built-in root, the default CA."""
        self._db = database
        self._stream = stream
        self._root_pem = root_pem
        self._wall_now = wall_now

    def add(self, user_id: int, name: str, certificate_pem: str | None = None) -> dict[str, Any]:
        """Store a CA certificate under a name; None: the plane's own root. ErrorResponse 400 if it is not a CA."""
        require_user(self._db, user_id)
        if not name:
            raise bad_request("A CA needs a name", field="name")
        certificate = _ca_certificate(certificate_pem or self._root_pem())
        ca_id = self._db.insert(
            "INSERT INTO authorities (user_id, name, serial_number, certificate_pem, not_after, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            user_id,
            name,
            serial_text(certificate),
            pem_of(certificate),
            certificate.not_valid_after_utc.timestamp(),
            self._wall_now(),
        )
        return self.show(user_id, ca_id)

    async def assign(self, user_id: int, device_id: int, ca_id: int) -> dict[str, Any]:
        """Make a device trust a CA; idempotent."""
        return await self._db.work_long(self._assign, user_id, device_id, ca_id)

    def _assign(self, user_id: int, device_id: int, ca_id: int) -> dict[str, Any]:
        row = self._row(user_id, ca_id)
        require_device(self._db, user_id, device_id)
        if self._assigned(device_id, ca_id) is None:
            self._db.run("INSERT INTO authority_assignments VALUES (?, ?, ?)", device_id, ca_id, self._wall_now())
            self._stream.append(device_id, "ca.assigned", _ref(row))
        return self.show(user_id, ca_id)

    async def unassign(self, user_id: int, device_id: int, ca_id: int) -> None:
        """Make a device stop trusting a CA; ErrorResponse 404 if it was not assigned."""
        await self._db.work(self._unassign, user_id, device_id, ca_id)

    def _unassign(self, user_id: int, device_id: int, ca_id: int) -> None:
        row = self._row(user_id, ca_id)
        require_device(self._db, user_id, device_id)
        sql = "DELETE FROM authority_assignments WHERE device_id = ? AND ca_id = ?"
        if not self._db.run(sql, device_id, ca_id):
            raise not_found("Not assigned to this device")
        self._stream.append(device_id, "ca.unassigned", _ref(row))

    def show_all(self, user_id: int) -> list[dict[str, Any]]:
        """Return all CAs of a user as operators see them."""
        return [
            self._shown(row) for row in self._db.all("SELECT * FROM authorities WHERE user_id = ? ORDER BY id", user_id)
        ]

    def show(self, user_id: int, ca_id: int) -> dict[str, Any]:
        """Return one CA as operators see it."""
        return self._shown(self._row(user_id, ca_id))

    def of_device(self, device_id: int) -> list[dict[str, Any]]:
        """Return the CAs assigned to a device, without their certificates."""
        rows = self._db.all(
            "SELECT c.* FROM authorities c JOIN authority_assignments a ON a.ca_id = c.id"
            " WHERE a.device_id = ? ORDER BY c.id",
            device_id,
        )
        return [{name: value for name, value in _bundle(row).items() if name != "ca_certificate_pem"} for row in rows]

    def bundle(self, device_id: int, ca_id: int) -> dict[str, Any]:
        """Return the bundle of a CA; ErrorResponse 404 unless it is assigned to the device."""
        row = self._assigned(device_id, ca_id)
        if row is None:
            raise not_found("No such CA")
        return _bundle(row)

    def _shown(self, row: Row) -> dict[str, Any]:
        holders = self._db.all("SELECT device_id FROM authority_assignments WHERE ca_id = ? ORDER BY 1", row["id"])
        return _bundle(row) | {
            "not_after": when(row["not_after"]),
            "created_at": when(row["created_at"]),
            "device_ids": [holder["device_id"] for holder in holders],
        }

    def _assigned(self, device_id: int, ca_id: int) -> Row | None:
        return self._db.one(
            "SELECT c.* FROM authorities c JOIN authority_assignments a ON a.ca_id = c.id"
            " WHERE a.device_id = ? AND c.id = ?",
            device_id,
            ca_id,
        )

    def _row(self, user_id: int, ca_id: int) -> Row:
        row = self._db.one("SELECT * FROM authorities WHERE id = ? AND user_id = ?", ca_id, user_id)
        if row is None:
            raise not_found("No such CA")
        return row


def _ca_certificate(pem: str) -> x509.Certificate:
    """Return the CA certificate in a PEM text; ErrorResponse 400 unless there is exactly one."""
    if len(pem) > _MAX_PEM:
        raise bad_request("ca_certificate_pem is too long", field="ca_certificate_pem")
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        if len(certificates) != 1:
            raise bad_request("ca_certificate_pem must contain one certificate", field="ca_certificate_pem")
        basic = certificates[0].extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound, x509.InvalidVersion):
        raise bad_request("ca_certificate_pem is not a CA certificate in PEM", field="ca_certificate_pem") from None
    if not basic.ca:
        raise bad_request("This is not a CA certificate", field="ca_certificate_pem")
    return certificates[0]


def _bundle(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "serial_number": row["serial_number"],
        "status": "active",
        "ca_certificate_pem": row["certificate_pem"],
    }


def _ref(row: Row) -> dict[str, Any]:
    return {"ca_id": row["id"], "serial": row["serial_number"], "ca_name": row["name"]}
