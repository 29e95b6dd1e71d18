"""CertificateViews: certificates as operators and devices read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

from certctrl.errors import CertctrlError
from certctrl.model.certificate import DEVICE_KEY
from certctrl.plane.ca.sealing import seal_private_key
from certctrl.plane.certificates.batch import Material, Seal, sealed_or_error
from certctrl.plane.certificates.device_keys import blocked_renewal, visible_orders
from certctrl.plane.certificates.holds import JOINED, at_version, columns
from certctrl.plane.certificates.revisions import ListedRow
from certctrl.plane.certificates.table import KEY_AT_DEVICE, CertificateTable
from certctrl.plane.clock import when
from certctrl.plane.devices.devices import require_user
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.devices.tags import carried_by, checked_tags
from certctrl.plane.errors import conflict, gone, not_found
from certctrl.plane.orders.batches import sizes_of_device
from certctrl.plane.storage.database import Database, Row, marks

_COLUMNS = (
    "id", "domain_name", "sans", "serial_number", "fingerprint_sha256", "not_before", "not_after", "status",
    "updated_at", "key_origin", "public_key_sha256", "key_type", "must_staple", "batch",
)  # fmt: skip
_LISTED = columns(_COLUMNS)
_OF_DEVICE = f"FROM certificates c JOIN assignments a ON a.cert_id = c.id{JOINED} WHERE a.device_id = ?"


class ListOfDevice(NamedTuple):
    """The certificates of a device, their open orders and the sizes of their batches, as the database has them."""

    rows: list[Row]
    orders: dict[int, dict[str, Any]]
    sizes: Mapping[str, int]


class _WithKey:
    """A certificate, whose key is unsealed once for all devices that fetch it together."""

    def __init__(self, row: Row, table: CertificateTable) -> None:
        self.row = row
        self._table = table

    @cached_property
    def key(self) -> bytes:
        """The private key."""
        return self._table.key_of(self.row)

    @cached_property
    def digest(self) -> bytes:
        """A hash of the material that all devices get; the certificate identifies its key."""
        parts = [self.row[name] for name in ("certificate_pem", "chain_pem", "serial_number", "public_key_sha256")]
        return blake2b(json.dumps([*parts, bool(self.row["private_key_enc"])]).encode(), digest_size=16).digest()


def _material(certificate: _WithKey, public_key: bytes | None, known: str) -> Material:
    """Return the material for a device with this key that knows an ETag; see ``CertificateViews.materials``."""
    row = certificate.row
    if row["status"] == "revoked":
        raise gone("This certificate is revoked", "CERT_REVOKED")
    if not row["serial_number"]:
        raise conflict("This certificate is not issued yet", "WRAP_PENDING")
    sealed = bool(row["private_key_enc"])
    if sealed and public_key is None:
        raise conflict("The device has no key yet", "WRAP_PENDING")
    etag = blake2b(certificate.digest + (public_key if sealed and public_key else b""), digest_size=16).hexdigest()
    if etag == known:
        return Material(etag, None)
    issued = {name: row[name] for name in ("certificate_pem", "chain_pem", "serial_number")}
    if sealed and public_key:
        return Material(etag, seal_private_key(certificate.key, public_key) | issued)
    return Material(etag, issued | {"enc_scheme": DEVICE_KEY, "public_key_sha256": row["public_key_sha256"]})


class CertificateViews:
    """Reads of the table of certificates; all in the caller's unit of work."""

    def __init__(self, database: Database, table: CertificateTable, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._table = table
        self._wall_now = wall_now

    def page_of_user(
        self, user_id: int, after_id: int, limit: int, tags: Collection[str] = (), scope: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return up to ``limit`` certificates of a user with ids above ``after_id``, by id, as operators see them.

        With ``tags``, only those that are assigned to a device that carries all of them; ``scope`` as for `show`.
        """
        require_user(self._db, user_id)
        asked = (*checked_tags(tags, "tag"), *scope)
        device = f"SELECT 1 FROM assignments a WHERE a.cert_id = c.id AND {carried_by('a.device_id', asked)}"
        tagged = f" AND EXISTS ({device})" if asked else ""
        sql = f"SELECT c.* FROM certificates c WHERE c.user_id = ? AND c.id > ?{tagged} ORDER BY c.id LIMIT ?"
        return self._shown(self._db.all(sql, user_id, after_id, *asked, limit), scope)

    def show(self, user_id: int, cert_id: int, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Return one certificate as operators see it.

        ``scope``: only the devices that carry all of these tags, and what was made for those, are named.
        """
        return self._shown([self._table.row(user_id, cert_id)], scope)[0]

    def named(self, user_id: int, name: str) -> list[int]:
        """Return the ids of a user's certificates with a primary name, without revoked ones and those made from others."""
        sql = (
            "SELECT id FROM certificates WHERE user_id = ? AND domain_name = ? AND status != 'revoked'"
            " AND template_id IS NULL ORDER BY id"
        )
        return [row["id"] for row in self._db.all(sql, user_id, name)]

    def page(self, device_id: int, after_id: int, limit: int) -> list[dict[str, Any]]:
        """Return summaries of a device's issued certificates with ids above ``after_id``, by id."""
        rows = self._db.all(
            f"SELECT {_LISTED} {_OF_DEVICE} AND c.id > ? AND (c.serial_number != '' OR c.key_origin = ?)"
            " ORDER BY c.id LIMIT ?",
            device_id,
            after_id,
            KEY_AT_DEVICE,
            limit,
        )
        orders, sizes = visible_orders(self._db, rows), self._sizes(device_id, rows)
        return [self._of_device(row, orders, sizes) for row in rows]

    def _sizes(self, device_id: int, rows: Sequence[Row]) -> Mapping[str, int]:
        """Return the sizes of the batches of a device's certificates, without a query if no certificate is in one."""
        return sizes_of_device(self._db, device_id) if any(row["batch"] for row in rows) else {}

    def list_of(self, device_id: int) -> ListOfDevice:
        """Return all issued certificates of a device, as the table has them, for `listed`."""
        rows = self._db.all(
            f"SELECT {_LISTED} {_OF_DEVICE} AND (c.serial_number != '' OR c.key_origin = ?) ORDER BY c.id",
            *(device_id, KEY_AT_DEVICE),
        )
        return ListOfDevice(rows, visible_orders(self._db, rows), self._sizes(device_id, rows))

    def listed(self, found: ListOfDevice) -> list[ListedRow]:
        """Return the certificates of a device as it reads them, by id; without the database."""
        shown = [self._of_device(row, found.orders, found.sizes) for row in found.rows]
        return [
            ListedRow(row["id"], json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()) for row in shown
        ]

    def _of_device(self, row: Row, orders: Mapping[int, dict[str, Any]], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return a certificate as its device reads it."""
        size = sizes.get(row["batch"], 0)
        return self._with_order(row, orders) | ({"batch": {"id": row["batch"], "size": size}} if size > 1 else {})

    def _with_order(self, row: Row, orders: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
        if row["key_origin"] != KEY_AT_DEVICE:
            return self.summary(row)
        key = {"key_origin": KEY_AT_DEVICE, "public_key_sha256": row["public_key_sha256"]}
        return self.summary(row) | key | {"order": orders.get(row["id"])}

    def detail(self, device_id: int, cert_id: int) -> dict[str, Any]:
        """Return ``CertificateDetail``; ErrorResponse 404 unless the certificate is assigned to the device."""
        names = columns((*_COLUMNS, "certificate_pem", "chain_pem"))
        row = self._db.one(f"SELECT {names} {_OF_DEVICE} AND c.id = ?", device_id, cert_id)
        if row is None:
            raise not_found("No such certificate")
        pem = {"certificate_pem": row["certificate_pem"], "chain_pem": row["chain_pem"]}
        return self._of_device(row, visible_orders(self._db, [row]), self._sizes(device_id, [row])) | pem

    def materials(self, device_id: int, cert_id: int) -> dict[str, Any]:
        """Return ``DeployMaterials``, sealed to the device's key; ErrorResponse 404, 409 until issued, 410 if revoked.

        If the device made the key, they contain its public key instead of a sealed key.
        """
        (found,) = self._materials([(device_id, cert_id)], [""])
        if isinstance(found, CertctrlError):
            raise found
        return found.data or {}

    def materials_of(self, wanted: Sequence[tuple[DeviceSession, tuple[int, str]]]) -> list[Material | CertctrlError]:
        """Return for each device, certificate and known ETag what ``materials`` returns or raises, in two statements."""
        pairs = [(session.device_id, cert_id) for session, (cert_id, _) in wanted]
        return self._materials(pairs, [etag for _, (_, etag) in wanted])

    def batches_of(
        self, wanted: Sequence[tuple[DeviceSession, Sequence[tuple[int, str]]]]
    ) -> list[list[tuple[int, Seal | CertctrlError]]]:
        """Return for each device and each of its certificates, with a known ETag, a function that seals the material.

        Or the error for a certificate. Takes two statements; the functions need no unit of work.
        """
        each = [(session.device_id, cert_id, etag) for session, asked in wanted for cert_id, etag in asked]
        found = iter(self._seals([(device_id, cert_id) for device_id, cert_id, _ in each], [etag for *_, etag in each]))
        return [[(cert_id, next(found)) for cert_id, _ in asked] for _, asked in wanted]

    def _materials(self, wanted: Sequence[tuple[int, int]], known: Sequence[str]) -> list[Material | CertctrlError]:
        return [sealed_or_error(one) for one in self._seals(wanted, known)]

    def _seals(self, wanted: Sequence[tuple[int, int]], known: Sequence[str]) -> list[Seal | CertctrlError]:
        sql = (
            "SELECT a.device_id, a.cert_id, d.public_key, h.serial_number AS held"
            f" FROM (VALUES {', '.join(['(?, ?)'] * len(wanted))}) AS v"
            " JOIN assignments a ON a.device_id = v.column1 AND a.cert_id = v.column2"
            " JOIN devices d ON d.id = a.device_id"
            " LEFT JOIN certificate_holds h ON h.cert_id = a.cert_id AND h.device_id = a.device_id"
        )
        rows = self._db.all(sql, *chain.from_iterable(wanted))
        keys = {(row["device_id"], row["cert_id"]): (row["public_key"], row["held"]) for row in rows}
        certificates = self._versions({(row["cert_id"], row["held"]) for row in rows})
        return [
            partial(_material, certificates[pair[1], keys[pair][1]], keys[pair][0], etag)
            if pair in keys and (pair[1], keys[pair][1]) in certificates  # may have been removed between the statements
            else not_found("No such certificate")
            for pair, etag in zip(wanted, known, strict=True)
        ]

    def _versions(self, wanted: Collection[tuple[int, str | None]]) -> dict[tuple[int, str | None], _WithKey]:
        """Return certificates, each at the version with a serial number at which devices are held, or at the present one."""
        ids = sorted({cert_id for cert_id, _ in wanted})
        sql = f"SELECT * FROM certificates WHERE id IN ({marks(ids)})"
        rows = {row["id"]: row for row in self._db.all(sql, *ids)} if ids else {}
        held = self._table.holds.versions([(cert_id, serial) for cert_id, serial in wanted if serial is not None])
        found = {}
        for cert_id, serial in wanted:
            if (row := rows.get(cert_id)) is None:
                continue
            version = held.get((cert_id, serial)) if serial and row["status"] == "active" else None
            found[cert_id, serial] = _WithKey(row if version is None else at_version(row, version), self._table)
        return found

    def summary(self, row: Row) -> dict[str, Any]:
        """Return the fields that both operators and devices read."""
        issued = bool(row["serial_number"])
        status = row["status"]
        if status == "active":
            status = "pending" if not issued else "expired" if row["not_after"] <= self._wall_now() else status
        return {
            "id": row["id"],
            "domain_name": row["domain_name"],
            "sans": json.loads(row["sans"]),
            "serial_number": row["serial_number"],
            "fingerprint_sha256": row["fingerprint_sha256"],
            "not_before": when(row["not_before"]) if issued else None,
            "not_after": when(row["not_after"]) if issued else None,
            "status": status,
            "updated_at": when(row["updated_at"]),
        }

    def _shown(self, rows: Sequence[Row], scope: Sequence[str] = ()) -> list[dict[str, Any]]:
        ids = [row["id"] for row in rows]
        holders, orders = self._holders(ids, scope), self._open_orders(ids)
        made = self._children(ids, scope)
        templates = {row["template_id"] for row in rows if row["template_id"] is not None}
        if scope:
            templates = {cert_id for cert_id, found in self._holders(sorted(templates), scope).items() if found}
        blocked = self._blocked([row for row in rows if row["key_origin"] == KEY_AT_DEVICE], holders)
        return [
            self.summary(row)
            | {
                "key_type": row["key_type"],
                "validity_seconds": row["validity_seconds"],
                "issuer": row["issuer"],
                "key_origin": row["key_origin"],
                "profile": row["profile"],
                "must_staple": bool(row["must_staple"]),
                "reuse_key": bool(row["reuse_key"]),
                "renew_at": when(row["renew_at"]),
                "order_id": orders[row["id"]]["id"] if row["id"] in orders else None,
                "order_state": orders[row["id"]]["state"] if row["id"] in orders else "",
                "problem": (orders[row["id"]]["problem"] if row["id"] in orders else "") or blocked.get(row["id"], ""),
                "template_id": row["template_id"] if row["template_id"] in templates else None,
                "made_for_others": made.get(row["id"], []),
                "revoked_at": when(row["revoked_at"]),
                "revoke_reason": row["revoke_reason"],
                "device_ids": holders[row["id"]],
            }
            for row in rows
        ]

    def _holders(self, ids: Sequence[int], scope: Sequence[str]) -> dict[int, list[int]]:
        """Return the ids of the devices of each certificate."""
        found: dict[int, list[int]] = {cert_id: [] for cert_id in ids}
        sql = (
            f"SELECT a.cert_id, a.device_id FROM assignments a WHERE a.cert_id IN ({marks(ids)})"
            f" AND {carried_by('a.device_id', scope)} ORDER BY a.cert_id, a.device_id"
        )
        for row in self._db.all(sql, *ids, *scope) if ids else ():
            found[row["cert_id"]].append(row["device_id"])
        return found

    def _open_orders(self, ids: Sequence[int]) -> dict[int, Row]:
        """Return the open orders of certificates, by certificate."""
        sql = (
            f"SELECT cert_id, id, state, problem FROM orders WHERE cert_id IN ({marks(ids)})"
            " AND state IN ('csr_wanted', 'ready', 'blocked')"
        )
        return {row["cert_id"]: row for row in self._db.all(sql, *ids)} if ids else {}

    def _children(self, ids: Sequence[int], scope: Sequence[str]) -> dict[int, list[int]]:
        """Return the certificates that were made from templates for further devices, by template."""
        found: dict[int, list[int]] = {}
        sql = (
            f"SELECT c.id, c.template_id FROM certificates c WHERE c.template_id IN ({marks(ids)})"
            f" AND {carried_by('c.template_device_id', scope)} ORDER BY c.id"
        )
        for row in self._db.all(sql, *ids, *scope) if ids else ():
            found.setdefault(row["template_id"], []).append(row["id"])
        return found

    def _blocked(self, rows: Sequence[Row], holders: Mapping[int, list[int]]) -> dict[int, str]:
        """Return, by certificate, why the next renewal would be blocked, if its device makes the key."""
        ids = sorted({device_id for row in rows for device_id in holders[row["id"]][:1]})
        if not ids:
            return {}
        sql = f"SELECT id, name, status, app_version, features FROM devices WHERE id IN ({marks(ids)})"
        devices = {device["id"]: blocked_renewal(device) for device in self._db.all(sql, *ids)}
        return {row["id"]: devices.get(holders[row["id"]][0], "") for row in rows if holders[row["id"]]}
