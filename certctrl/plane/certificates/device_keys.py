"""DeviceKeys: certificates whose keys are made at their devices; all in the caller's unit of work.

An order of such a certificate asks its device for a signing request (``cert.csr_wanted``), and continues once the
request has been checked. The plane never has the key. A device is asked only if its agent has announced that it makes
keys; otherwise the order is blocked until then. The plane never makes a key instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from certctrl.model.features import CSR
from certctrl.plane.ca.csr import NONE_DENIED, CheckedRequest, check_csr, der_of_pem, key_digest
from certctrl.plane.ca.denied_keys import DeniedKeys
from certctrl.plane.certificates.table import KEY_AT_DEVICE, CertificateTable
from certctrl.plane.devices.features import announced
from certctrl.plane.errors import ErrorResponse, conflict, csr_refused, gone, not_found
from certctrl.plane.orders.orders import BLOCKED, CSR_WANTED, DONE, FAILED, READY, OrderRequest, Orders
from certctrl.plane.settings import DAY
from certctrl.plane.shared_limits import SharedBuckets
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.plane.storage.signal_stream import SignalStream

CSR_SECONDS = 7 * DAY
"""Seconds that an order waits for its device before a new order replaces it."""
CSR_CONFLICT = "CSR_CONFLICT"
_MAX_EXPIRED = 100
_MAX_NAMES = 2000
"""Characters of the names in a signal; longer ones are in the certificate's detail only."""
_UPDATE = "update certctrl on the host; the order then continues"


class DeviceKeys:
    """Asks devices for signing requests, and receives them."""

    def __init__(
        self,
        database: Database,
        table: CertificateTable,
        orders: Orders,
        stream: SignalStream,
        wall_now: Callable[[], float],
        denied: DeniedKeys = NONE_DENIED,
    ) -> None:
        """``denied`` keys are refused."""
        self._db = database
        self._table = table
        self._orders = orders
        self._stream = stream
        self._wall_now = wall_now
        self._denied = denied
        self._requests = SharedBuckets(database, "csrs", 1.0, 50, wall_now)
        """Signing requests that a device may send: a burst of fifty, then one each second."""

    def ask(self, order_id: int, certificate: Row) -> None:
        """Ask the device of a certificate for the signing request of an order, or block the order.

        With ``reuse_key``, the request for the key in use is reused, except for a replacement or after a refusal.
        """
        device = self._holder(certificate["id"])
        obstacle = _obstacle(device)
        order = self._db.one("SELECT * FROM orders WHERE id = ?", order_id)
        assert order is not None  # just stored by the caller
        if device is None or obstacle is not None:
            self._orders.block(order_id, *(obstacle or _UNASSIGNED))
        elif (
            order["action"] == "renew"
            and not order["refused_requests"]
            and (known := self._request_in_use(certificate, device["id"]))
        ):
            self._orders.accept_csr(order_id, known)
        else:
            wanted = wanted_csr(order, certificate)
            if len(certificate["sans"]) > _MAX_NAMES:
                del wanted["names"]
            ref = {"cert_id": certificate["id"], "order_id": order_id} | {
                name: wanted[name] for name in ("expires_ms", "key_type", "names") if name in wanted
            }
            self._touch(certificate["id"])
            self._stream.append(device["id"], "cert.csr_wanted", ref)

    def count_request(self, device_id: int) -> None:
        """Count a signing request in a separate unit of work, because refused ones count, too; ErrorResponse 429."""
        self._requests.take(str(device_id))

    def receive(self, device_id: int, cert_id: int, order_id: int, csr_pem: str) -> dict[str, Any]:
        """Store the signing request of an order; idempotent for the same key.

        ErrorResponse 404 (not assigned, another's order), 410 (the order has ended), 409 ``CSR_CONFLICT`` (it has another
        key), 409 (blocked), 400 with ``reason`` (it does not match the order).
        """
        self._table.of_device(device_id, cert_id)
        certificate = self._table.locked_by_id(cert_id)
        order = self._db.one("SELECT * FROM orders WHERE id = ? AND cert_id = ?", order_id, cert_id)
        if certificate is None or order is None or certificate["key_origin"] != KEY_AT_DEVICE:
            raise not_found("No such order")
        if order["state"] == FAILED:
            raise gone("This order has ended", "ORDER_ENDED")
        csr_der = der_of_pem(csr_pem)
        checked = _checked(csr_der, certificate, self._denied)
        if order["csr_der"] is not None:
            if _digest_of(bytes(order["csr_der"])) != checked.public_key_sha256:
                raise conflict("This order has a request with another key", CSR_CONFLICT)
        elif order["state"] != CSR_WANTED:
            raise conflict("This order wants no request now", "ORDER_STATE")
        else:
            self._note_key(checked.public_key_sha256, cert_id, device_id)
            self._orders.accept_csr(order_id, csr_der)
            self._touch(cert_id)
        shown = self._db.one("SELECT state FROM orders WHERE id = ?", order_id)
        return {"order_id": order_id, "state": DONE if shown is None else shown["state"]}

    def announced(self, device_id: int) -> None:
        """Continue or block the orders of a device after its agent has announced its features."""
        obstacle = _obstacle(self._device(device_id))
        for order in self._db.all(
            "SELECT o.id, o.cert_id, o.state FROM orders o JOIN assignments a ON a.cert_id = o.cert_id"
            " JOIN certificates c ON c.id = o.cert_id WHERE a.device_id = ? AND c.key_origin = ?"
            " AND o.state IN (?, ?) AND o.csr_der IS NULL ORDER BY o.cert_id",
            *(device_id, KEY_AT_DEVICE, CSR_WANTED, BLOCKED),
        ):
            certificate = self._table.locked_by_id(order["cert_id"])
            if obstacle is not None:
                self._orders.block(order["id"], *obstacle)
            elif order["state"] == BLOCKED and certificate is not None:
                self._orders.ask_again(order["id"], certificate)

    def registered(self, device_id: int, new_identity: bool) -> None:
        """Order new keys from a device that has registered with another identity: it does not have the old keys."""
        for row in self._of_device(device_id) if new_identity else ():
            certificate = self._table.locked_by_id(row["id"])
            if certificate is not None and certificate["status"] == "active":
                self.replace_key(certificate, OrderRequest(action="replace", reason="the device has a new identity"))
        self.announced(device_id)

    def replace_key(self, certificate: Row, request: OrderRequest) -> int:
        """Order a certificate with a new key because the device has lost its key; return the order's id."""
        known = self._orders.open_of(certificate["id"])
        if known is not None and known["csr_der"] is not None:
            self._orders.end(known["id"], FAILED, "the device has lost the key of its request")
        self._db.run(
            "UPDATE orders SET csr_der = NULL WHERE cert_id = ? AND finished_at IS NOT NULL", certificate["id"]
        )
        return self._orders.start(certificate, request)

    def can_make_keys(self, device_id: int) -> bool:
        """Return whether the agent of a device has announced that it makes keys."""
        return _obstacle(self._device(device_id)) is None

    def replace_expired(self) -> None:
        """Replace orders that devices did not answer in time, and delete expired limits."""
        self._requests.delete_expired()
        rows = self._db.all(
            "SELECT id, cert_id, action, reason, refused_requests FROM orders WHERE state = ? AND created_at < ? ORDER BY cert_id LIMIT ?",
            *(CSR_WANTED, self._wall_now() - CSR_SECONDS, _MAX_EXPIRED),
        )
        for order in rows:
            certificate = self._table.locked_by_id(order["cert_id"])
            problem = f"the device has sent no signing request for {CSR_SECONDS // DAY} days"
            if certificate is not None and self._orders.end(order["id"], FAILED, problem):
                refused = order["refused_requests"]
                request = OrderRequest(action=order["action"], reason=order["reason"], refused_requests=refused)
                self._orders.start(certificate, request)

    def _request_in_use(self, certificate: Row, device_id: int) -> bytes | None:
        """Return the request for the key in use if the key is reused and the request still matches."""
        if not certificate["reuse_key"] or certificate["status"] != "active" or not certificate["serial_number"]:
            return None
        order = self._db.one(
            "SELECT o.csr_der FROM orders o JOIN known_keys k ON k.cert_id = o.cert_id WHERE o.cert_id = ?"
            " AND o.state = ? AND o.csr_der IS NOT NULL AND k.public_key_sha256 = ? AND k.device_id = ?"
            " ORDER BY o.id DESC LIMIT 1",
            *(certificate["id"], DONE, certificate["public_key_sha256"], device_id),
        )
        csr_der = b"" if order is None else bytes(order["csr_der"])
        try:
            digest = _checked(csr_der, certificate, self._denied).public_key_sha256 if csr_der else ""
            fits = bool(digest) and digest == certificate["public_key_sha256"]
        except ErrorResponse:  # names or key type have changed, or the key is now denied
            fits = False
        return csr_der if fits else None

    def _note_key(self, public_sha256: str, cert_id: int, device_id: int) -> None:
        """Record a key; ErrorResponse 400 if any certificate has used it before."""
        known = self._db.one("SELECT 1 FROM known_keys WHERE public_key_sha256 = ?", public_sha256)
        used = self._db.one("SELECT 1 FROM certificates WHERE public_key_sha256 = ?", public_sha256)
        if known is not None or used is not None:
            raise csr_refused("its key has been used for another certificate or order", "known-key", "make a new key")
        self._db.run("INSERT INTO known_keys VALUES (?, ?, ?, ?)", public_sha256, cert_id, device_id, self._wall_now())

    def _touch(self, cert_id: int) -> None:
        """Mark a certificate as changed, so that devices see the change of its order."""
        self._db.run("UPDATE certificates SET updated_at = ? WHERE id = ?", self._wall_now(), cert_id)

    def _holder(self, cert_id: int) -> Row | None:
        holders = self._table.holders(cert_id)
        return self._device(holders[0]) if holders else None

    def _device(self, device_id: int) -> Row | None:
        return self._db.one("SELECT id, name, status, app_version, features FROM devices WHERE id = ?", device_id)

    def _of_device(self, device_id: int) -> list[Row]:
        return self._db.all(
            "SELECT c.id FROM certificates c JOIN assignments a ON a.cert_id = c.id"
            " WHERE a.device_id = ? AND c.key_origin = ? ORDER BY c.id",
            *(device_id, KEY_AT_DEVICE),
        )


_UNASSIGNED = "is assigned to no device that could make its key", "assign it: cert-ctrl plane assign"


def _obstacle(device: Row | None) -> tuple[str, str] | None:
    """Return why a device cannot be asked for a signing request, and the fix; None if it can."""
    if device is None:
        return _UNASSIGNED
    name = device["name"] or f"device {device['id']}"
    if device["status"] == "revoked":
        return f"{name} is revoked", "assign the certificate to another device, or register this one again"
    if CSR in announced(device):
        return None
    if device["status"] == "expected":
        return f"{name} has not registered yet", "register it; the order then continues"
    version = device["app_version"] or "unknown version"
    return f"the agent of {name} ({version}) does not make keys", _UPDATE


def blocked_renewal(device: Row) -> str:
    """Return why the next renewal of a certificate with a key of this device would be blocked; empty if it would not."""
    obstacle = _obstacle(device)
    return "" if obstacle is None else obstacle[0]


def wanted_csr(order: Row, certificate: Row) -> dict[str, Any]:
    """Return an open order as its device reads it."""
    return {
        "id": order["id"],
        "state": CSR_WANTED if order["state"] == CSR_WANTED else "issuing",
        "key_type": certificate["key_type"],
        "names": json.loads(certificate["sans"]),
        "must_staple": bool(certificate["must_staple"]),
        "expires_ms": int((order["created_at"] + CSR_SECONDS) * 1000),
    }


def visible_orders(database: Database, certificates: list[Row]) -> dict[int, dict[str, Any]]:
    """Return the open orders of certificates with keys at devices, by certificate, as devices see them."""
    rows = {row["id"]: row for row in certificates if row["key_origin"] == KEY_AT_DEVICE}
    if not rows:
        return {}
    sql = f"SELECT * FROM orders WHERE cert_id IN ({marks(list(rows))}) AND state IN (?, ?)"
    orders = database.all(sql, *rows, CSR_WANTED, READY)
    return {order["cert_id"]: wanted_csr(order, rows[order["cert_id"]]) for order in orders}


def _checked(csr_der: bytes, certificate: Row, denied: DeniedKeys) -> CheckedRequest:
    return check_csr(
        csr_der,
        json.loads(certificate["sans"]),
        key_type=certificate["key_type"],
        must_staple=bool(certificate["must_staple"]),
        denied=denied,
    )


def _digest_of(csr_der: bytes) -> str:
    """Return the key digest of a request that was checked when it was received."""
    from cryptography import x509

    public_key = x509.load_der_x509_csr(csr_der).public_key()
    return key_digest(public_key)  # type: ignore[arg-type]
