"""Templates: one certificate per device where keys are made at devices; all in the caller's unit of work.

A key never leaves its device, so devices cannot share a certificate. The first device of a certificate has that
certificate itself, the template. Each further device gets a separate certificate with the same names and settings
(``template_id``, ``template_device_id``). Operations on the template apply to all of them.
"""

from __future__ import annotations

from collections.abc import Collection

from certctrl.plane.certificates.device_keys import DeviceKeys
from certctrl.plane.certificates.table import KEY_AT_DEVICE, KEY_AT_PLANE, CertificateTable
from certctrl.plane.errors import bad_request, not_found
from certctrl.plane.orders.orders import OrderRequest, Orders
from certctrl.plane.storage.database import Database, Row

AUTO = "auto"
_COPIED = "user_id, domain_name, sans, key_type, validity_seconds, issuer, key_origin, profile, must_staple, reuse_key, status"


class Templates:
    """Assignments of certificates whose keys are made at their devices."""

    def __init__(
        self,
        database: Database,
        table: CertificateTable,
        orders: Orders,
        keys: DeviceKeys,
    ) -> None:
        self._db = database
        self._table = table
        self._orders = orders
        self._keys = keys

    def origin(self, wanted: str, device_ids: Collection[int]) -> str:
        """Return where the key of a new certificate is made; ErrorResponse 400 for an unknown choice.

        ``auto``: at the devices, if there are any and all their agents have announced that they make keys.
        """
        if wanted == AUTO:
            at_device = bool(device_ids) and all(self._keys.can_make_keys(device_id) for device_id in device_ids)
            return KEY_AT_DEVICE if at_device else KEY_AT_PLANE
        if wanted not in (KEY_AT_DEVICE, KEY_AT_PLANE):
            raise bad_request("key_origin must be auto, device or plane", field="key_origin")
        return wanted

    def assign(self, device_id: int, certificate: Row) -> int:
        """Assign a certificate, whose row is locked, to a device; return the id of the device's certificate.

        Idempotent. A device that did not make the current key is asked for a new key.
        """
        root = self._root(certificate)
        known = self._of_device(root, device_id)
        holders = self._table.holders(root["id"])
        if known is None and holders and holders != [device_id]:
            known = self._copy(root, device_id)
        row = root if known is None else known
        if not self._table.is_assigned(device_id, row["id"]):
            self._table.assign([device_id], row["id"], "")
            self._order(row)
        return int(row["id"])

    def _order(self, row: Row) -> None:
        """Order a certificate for the device that was just assigned."""
        if row["status"] != "active":
            return
        known = self._orders.open_of(row["id"])
        if known is not None and known["csr_der"] is None:
            self._orders.ask_again(known["id"], row)
            return
        self._keys.replace_key(row, OrderRequest(action="replace" if row["serial_number"] else "issue"))

    def unassign(self, device_id: int, certificate: Row) -> None:
        """Unassign a certificate, or the one made from it for this device; ErrorResponse 404 if it is not assigned."""
        row = certificate
        if not self._table.is_assigned(device_id, row["id"]):
            found = self._of_device(self._root(certificate), device_id)
            if found is None or not self._table.is_assigned(device_id, found["id"]):
                raise not_found("Not assigned to this device")
            row = found
        self._table.unassign(device_id, row["id"])
        self._db.run("UPDATE certificates SET renew_at = NULL WHERE id = ?", row["id"])
        self._orders.cancel_of(row["id"], "the certificate was unassigned from its device")

    def made_from(self, cert_id: int) -> list[int]:
        """Return the certificates made from a template, by id, including those that are no longer assigned."""
        rows = self._db.all("SELECT id FROM certificates WHERE template_id = ? ORDER BY id", cert_id)
        return [row["id"] for row in rows]

    def _root(self, certificate: Row) -> Row:
        if certificate["template_id"] is None:
            return certificate
        return self._table.locked_by_id(certificate["template_id"]) or certificate

    def _of_device(self, root: Row, device_id: int) -> Row | None:
        return self._db.one_locked(
            "SELECT * FROM certificates WHERE template_id = ? AND template_device_id = ?", root["id"], device_id
        )

    def _copy(self, root: Row, device_id: int) -> Row | None:
        """Add the certificate of a further device, not yet issued."""
        cert_id = self._db.insert(
            f"INSERT INTO certificates ({_COPIED}, serial_number, fingerprint_sha256, not_before, not_after,"
            " certificate_pem, chain_pem, private_key_enc, created_at, updated_at, template_id, template_device_id)"
            f" SELECT {_COPIED}, '', '', 0, 0, '', '', ?, updated_at, updated_at, id, ? FROM certificates WHERE id = ?",
            *(b"", device_id, root["id"]),
        )
        return self._table.locked_by_id(cert_id)
