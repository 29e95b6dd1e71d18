"""Batches: renewals that devices receive together, once all are issued. Methods run in the caller's unit of work.

An order of a batch stays open after its certificate is issued, and keeps the certificate, so that devices see none of
the new ones until all are issued. Then all are stored and signalled in one unit of work, with ``ref.batch`` for devices
whose agents switch them together. A failed order keeps its batch waiting until it is repeated, or an operator dissolves
the batch. Certificates of a *set* are always renewed together.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.features import ATOMIC_BATCH
from certctrl.model.priority import Priority
from certctrl.model.signals import MAX_IN_BATCH
from certctrl.plane.ca.issuer import Issued
from certctrl.plane.certificates.holds import JOINED
from certctrl.plane.certificates.table import KEY_AT_DEVICE, CertificateTable
from certctrl.plane.clock import when
from certctrl.plane.devices.devices import require_user
from certctrl.plane.devices.features import announced
from certctrl.plane.errors import bad_request, conflict, not_found
from certctrl.plane.issuers.registry import IMPORT, Issuers
from certctrl.plane.orders.orders import CSR_WANTED, DONE, FAILED, OrderRequest, Orders
from certctrl.plane.reserved_names import ReservedNames, refuse_reserved, taken
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.signal_stream import SignalStream

MAX_ORDERED = 1000
"""Certificates that are ordered together, including those that were made from templates."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_MAX_CHECKED = 20
"""Batches that one round checks."""

log = logging.getLogger("certctrl.Orders")


@lean.frozen(kw_only=True)
class OrderParts:
    """The parts that change orders and store what is issued for them."""

    database: Database
    keyring: Keyring
    table: CertificateTable
    orders: Orders
    issuers: Issuers
    wall_now: Callable[[], float]


class Batches:
    """Orders with the same ``batch``, and certificates with the same ``together``."""

    def __init__(self, parts: OrderParts, stream: SignalStream, reserved: ReservedNames) -> None:
        self._db, self._keyring, self._table = parts.database, parts.keyring, parts.table
        self._orders, self._issuers, self._wall_now = parts.orders, parts.issuers, parts.wall_now
        self._stream = stream
        self._reserved = reserved

    # --- sets -----------------------------------------------------------------------------------------------------

    def mark(self, user_id: int, name: str, cert_ids: Collection[int]) -> list[dict[str, Any]]:
        """Make certificates the set with a name, in place of its former ones; without any, end it. Return all sets."""
        require_user(self._db, user_id)
        if not _NAME.fullmatch(name):
            raise bad_request("A set's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -", field="name")
        if len(set(cert_ids)) == 1 or len(set(cert_ids)) > MAX_IN_BATCH:
            raise bad_request(f"A set has 2 to {MAX_IN_BATCH} certificates", field="cert_ids")
        self._db.run("UPDATE certificates SET together = '' WHERE user_id = ? AND together = ?", user_id, name)
        for cert_id in sorted(set(cert_ids)):
            self._table.locked(user_id, cert_id)
            self._db.run("UPDATE certificates SET together = ? WHERE id = ?", name, cert_id)
        return self.sets(user_id)

    def sets(self, user_id: int) -> list[dict[str, Any]]:
        """Return a user's sets, by name."""
        sql = "SELECT id, together FROM certificates WHERE user_id = ? AND together != '' ORDER BY together, id"
        found: dict[str, list[int]] = {}
        for row in self._db.all(sql, user_id):
            found.setdefault(row["together"], []).append(row["id"])
        return [{"name": name, "cert_ids": ids} for name, ids in found.items()]

    # --- orders ---------------------------------------------------------------------------------------------------

    def start(self, user_id: int, cert_ids: Collection[int], request: OrderRequest) -> list[dict[str, Any]]:
        """Order renewals that belong together; return for each certificate its order and its batch.

        Certificates made from a template are included. ErrorResponse 400, 404 and 409 if one cannot be renewed; then
        none is ordered.
        """
        ids = self._expanded(user_id, cert_ids)
        if not 2 <= len(ids) <= MAX_ORDERED or len(set(cert_ids)) > MAX_IN_BATCH:
            raise bad_request(f"A batch has 2 to {MAX_IN_BATCH} certificates, not {len(ids)}", field="cert_ids")
        rows, reserved = [self._table.locked(user_id, cert_id) for cert_id in ids], self._reserved.all()
        for row in rows:
            refuse_reserved(json.loads(row["sans"]), reserved)
            if row["issuer"] == IMPORT:
                raise conflict(f"Certificate {row['id']} was imported, so it is not renewed here", "CERT_IMPORTED")
            if row["status"] == "revoked":
                raise conflict(f"Certificate {row['id']} is revoked", "CERT_REVOKED")
            if (rollout := self._table.holds.rollout_of(row["id"])) is not None:
                what = (
                    f"Rollout {rollout['id']} renews certificate {row['id']}, and is {rollout['state']}: abort it first"
                )
                raise conflict(what, "ROLLOUT_OPEN")
        return self._order(rows, self._batch_names(ids), request)

    def start_set(self, certificate: Row, request: OrderRequest) -> dict[int, dict[str, Any]]:
        """Order a certificate with the others of its set, and return what ``start`` does, by certificate.

        Empty if it must be ordered alone. A member that cannot be renewed is left out: it must not keep the others. The
        request of a device is only for certificates that share hosts with its own.
        """
        rollout = self._ids_of_rollout(certificate) if request.device_id is not None else []
        ids = rollout or self.ids_of_set(certificate)
        if len(ids) > MAX_ORDERED:
            what = "certificate %d is renewed alone: its set has %d certificates, more than %d"
            log.warning(what, certificate["id"], len(ids), MAX_ORDERED)
            return {}
        rows, reserved = [self._table.locked_by_id(cert_id) for cert_id in ids], self._reserved.all()
        good = [
            row
            for row in rows
            if row is not None and self._is_renewable(row, reserved) and (rollout or not self._in_rollout(row["id"]))
        ]
        if certificate["id"] not in [row["id"] for row in good]:
            return {}
        batches = self._batch_names([row["id"] for row in good])
        if request.device_id is not None:
            good = [row for row in good if batches[row["id"]] == batches[certificate["id"]] != ""]
        if len(good) < 2:
            return {}
        return {one["cert_id"]: one for one in self._order(good, batches, request)}

    def _ids_of_rollout(self, certificate: Row) -> list[int]:
        """Return what an open rollout is to renew in one batch with a certificate that it has not renewed; empty: nothing."""
        rows = self._db.all(
            "SELECT m.cert_id, c.serial_number = m.serial_number AS due FROM rollout_certificates t"
            " JOIN rollouts r ON r.id = t.rollout_id AND r.state IN ('running', 'paused', 'halted')"
            " JOIN rollout_certificates m ON m.rollout_id = t.rollout_id AND m.together = t.together"
            " JOIN certificates c ON c.id = m.cert_id WHERE t.cert_id = ? AND t.together != '' ORDER BY m.cert_id",
            certificate["id"],
        )
        due = [row["cert_id"] for row in rows if row["due"]]
        return due if certificate["id"] in due else []

    def _in_rollout(self, cert_id: int) -> bool:
        return self._table.holds.rollout_of(cert_id) is not None

    def lock_whole(self, cert_ids: Collection[int]) -> None:
        """Lock certificates with those that they are renewed together with, in the order of their ids.

        So does, before anything else, each unit of work that changes several: otherwise two of them may wait for each other.
        """
        if not cert_ids:
            return
        given = sorted(set(cert_ids))
        ids = {*given, *self._table.holds.mates(given)}
        for row in self._db.all(f"SELECT * FROM certificates WHERE id IN ({marks(given)})", *given):
            ids |= {*self.ids_of_set(row)}
        self.lock_ids(ids)

    def lock_ids(self, cert_ids: Collection[int]) -> dict[int, Row]:
        """Lock certificates in the order of their ids; return them by id."""
        ids = sorted(cert_ids)
        if not ids:
            return {}
        sql = f"SELECT * FROM certificates WHERE id IN ({marks(ids)}) ORDER BY id"
        return {row["id"]: row for row in self._db.all_locked(sql, *ids)}

    def ids_of_set(self, certificate: Row) -> list[int]:
        """Return the set of a certificate or of its template, with those made from templates, by id; empty: none."""
        name = certificate["together"]
        if not name and certificate["template_id"] is not None:
            template = self._db.one("SELECT together FROM certificates WHERE id = ?", certificate["template_id"])
            name = "" if template is None else template["together"]
        if not name:
            return []
        named = "SELECT id FROM certificates WHERE user_id = ? AND together = ?"
        sql = f"SELECT id FROM certificates WHERE id IN ({named}) OR template_id IN ({named}) ORDER BY id"
        return [row["id"] for row in self._db.all(sql, *(certificate["user_id"], name) * 2)]

    def _is_renewable(self, row: Row, reserved: Collection[str]) -> bool:
        if row["status"] != "active" or row["issuer"] == IMPORT or taken(json.loads(row["sans"]), reserved):
            return False
        known = self._orders.open_of(row["id"])
        if known is not None and known["action"] == "replace":  # what replaces a revoked certificate waits for nothing
            return False
        return row["key_origin"] != KEY_AT_DEVICE or bool(self._table.holders(row["id"]))

    def _order(self, rows: Sequence[Row], batches: Mapping[int, str], request: OrderRequest) -> list[dict[str, Any]]:
        """Order certificates, each in its batch."""
        ordered = []
        for row in rows:
            action, batch = "renew" if row["serial_number"] else "issue", batches[row["id"]]
            order_id = self._orders.start(row, attrs.evolve(request, action=action, batch=batch))
            ordered.append({"cert_id": row["id"], "order_id": order_id, "problem": "", "batch": batch})
        return ordered

    def _batch_names(self, ids: Sequence[int]) -> dict[int, str]:
        """Return a new batch for each certificate: the same for those that share devices, directly or through others.

        So no host waits for another one with which it shares nothing. Those on no device are one batch, too. One that would
        be the only one of its batch has none.
        """
        rows = self._db.all(f"SELECT device_id, cert_id FROM assignments WHERE cert_id IN ({marks(ids)})", *ids)
        found = dict.fromkeys(ids, _new_name()) | {row["cert_id"]: _new_name() for row in rows}
        of_device: dict[int, str] = {}
        for row in rows:
            ours, theirs = found[row["cert_id"]], of_device.setdefault(row["device_id"], found[row["cert_id"]])
            if ours != theirs:
                found |= {cert_id: ours for cert_id, one in found.items() if one == theirs}
                of_device |= {device_id: ours for device_id, one in of_device.items() if one == theirs}
        sizes = Counter(found.values())
        return {cert_id: name if sizes[name] > 1 else "" for cert_id, name in found.items()}

    def _expanded(self, user_id: int, cert_ids: Collection[int]) -> list[int]:
        """Return certificates, and those made from them that are in use, by id."""
        ids = sorted(set(cert_ids))
        if not ids:
            return []
        sql = (
            f"SELECT id FROM certificates c WHERE user_id = ? AND template_id IN ({marks(ids)}) AND status = 'active'"
            " AND EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = c.id)"
        )
        return sorted({*ids, *(row["id"] for row in self._db.all(sql, user_id, *ids))})

    # --- rollouts -------------------------------------------------------------------------------------------------

    def release(
        self, cert_ids: Collection[int], device_ids: Sequence[int], *, replaces_revoked: bool = False
    ) -> dict[int, Row]:
        """Hold devices at former certificates no longer, and signal the new ones: those of one batch together.

        Returns the certificates, which are locked.
        """
        rows = self.lock_ids(cert_ids)
        of_batch: dict[str, set[int]] = {}
        for cert_id, row in rows.items():
            told = self._table.holds.end(cert_id, device_ids)
            if not told or row["status"] != "active":
                continue
            if row["batch"]:
                of_batch.setdefault(row["batch"], set()).update(told)
            else:
                serial = row["serial_number"]
                self._table.announce_to(told, cert_id, serial, replaces_revoked=replaces_revoked)
        for batch, devices in of_batch.items():
            serials = {cert_id: row["serial_number"] for cert_id, row in rows.items() if row["batch"] == batch}
            priority = self._table.priority_of(serials, list(serials) if replaces_revoked else ())
            self._announce(batch, serials, priority, sorted(devices))
        return rows

    def order_group(self, rows: Sequence[Row], device_ids: Sequence[int], request: OrderRequest) -> None:
        """Order those certificates of a group that devices have, each with those that share devices with it.

        What the same request has ordered before, and is not issued yet, stays in its batch.
        """
        if not rows:
            return
        batches = self._batch_names([row["id"] for row in rows])
        sql = f"SELECT DISTINCT cert_id FROM assignments WHERE device_id IN ({marks(device_ids)})"
        held = self._db.all(sql, *device_ids)
        touched = {row["cert_id"] for row in held} & batches.keys()
        alone = [row for row in rows if row["id"] in touched and not batches[row["id"]]]
        for row in alone:
            self._orders.start(row, request)
        for batch in sorted({batches[cert_id] for cert_id in touched} - {""}):
            of_batch = [row for row in rows if batches[row["id"]] == batch]
            if not self._is_ordered(of_batch, request.reason):
                self._order(of_batch, batches, request)

    def _is_ordered(self, rows: Sequence[Row], reason: str) -> bool:
        """Return whether certificates have open orders for one reason and in one batch."""
        known = [self._orders.open_of(row["id"]) for row in rows]
        found = {(order["batch"], order["reason"]) for order in known if order is not None}
        return None not in known and len(found) == 1 and all(batch and why == reason for batch, why in found)

    # --- issued ---------------------------------------------------------------------------------------------------

    def lock(self, order_id: int) -> str:
        """Lock the certificates of an order's batch, in the order of their ids; return the batch, empty: none."""
        order = self._db.one("SELECT batch FROM orders WHERE id = ?", order_id)
        if order is None or not order["batch"]:
            return ""
        self._lock_all(order["batch"])
        return str(order["batch"])

    def _lock_all(self, batch: str) -> None:
        of_batch = "SELECT cert_id FROM orders WHERE batch = ?"
        self._db.all_locked(f"SELECT id FROM certificates WHERE id IN ({of_batch}) ORDER BY id", batch)

    def keep(self, order_id: int, issued: Issued) -> None:
        """Keep an issued certificate with its order, and release its batch if it was the last one."""
        row = self._db.one("SELECT batch FROM orders WHERE id = ?", order_id)
        assert row is not None  # the caller's attempt has its claim
        plain = json.dumps(attrs.asdict(issued, filter=_is_text)).encode()
        sealed = self._keyring.seal(f"order {order_id} issued", plain)
        key = issued.private_key_der
        self._orders.keep_issued(
            order_id, sealed, self._keyring.seal(f"order {order_id} issued key", key) if key else b""
        )
        self._release(row["batch"])

    def release_ready(self) -> int:
        """Release the batches that are complete, and return their number.

        The last order may have left its batch instead of being issued.
        """
        rows = self._db.all(
            "SELECT batch FROM orders WHERE batch != '' AND state != ? GROUP BY batch"
            " HAVING count(*) = sum(CASE WHEN issued_enc IS NOT NULL THEN 1 ELSE 0 END) ORDER BY batch LIMIT ?",
            *(DONE, _MAX_CHECKED),
        )
        for row in rows:
            self._lock_all(row["batch"])
            self._release(row["batch"])
        return len(rows)

    def _release(self, batch: str) -> None:
        """Store and signal all certificates of a batch, unless one is missing."""
        missing = "SELECT 1 FROM orders WHERE batch = ? AND state != ? AND (state = ? OR issued_enc IS NULL) LIMIT 1"
        if self._db.one(missing, batch, DONE, FAILED) is not None:
            return
        found = [(order, self._issued(order)) for order in self._of(batch)]
        reserved = self._reserved.all()
        if unusable := [order for order, issued in found if self._is_unusable(order["cert_id"], issued, reserved)]:
            for order in unusable:
                self._orders.attempt_again(order["id"])
            return
        for order, issued in found:
            self._store(order, issued, batch if len(found) > 1 else "")
        serials = {order["cert_id"]: issued.serial_number for order, issued in found}
        replaced = {order["cert_id"] for order, _ in found if order["action"] == "replace"}
        self._announce(batch, serials, self._table.priority_of(serials, replaced))

    def _is_unusable(self, cert_id: int, issued: Issued, reserved: Collection[str]) -> bool:
        """Return whether a certificate has waited too long: it has expired, or a plane has one of its names by now."""
        row = self._db.one("SELECT sans FROM certificates WHERE id = ?", cert_id)
        names = () if row is None else json.loads(row["sans"])
        return issued.not_after <= self._wall_now() or bool(taken(names, reserved))

    def _of(self, batch: str) -> list[Row]:
        return self._db.all("SELECT * FROM orders WHERE batch = ? AND state != ? ORDER BY cert_id", batch, DONE)

    def _issued(self, order: Row) -> Issued:
        plain = self._keyring.unseal(f"order {order['id']} issued", bytes(order["issued_enc"]))
        sealed = bytes(order["issued_key_enc"] or b"")
        key = self._keyring.unseal(f"order {order['id']} issued key", sealed) if sealed else b""
        return Issued(private_key_der=key, **json.loads(plain))

    def _store(self, order: Row, issued: Issued, batch: str) -> None:
        cert_id = order["cert_id"]
        self._table.store(cert_id, issued, order["action"], order["reason"], order["device_id"], batch=batch)
        self._orders.end(order["id"], DONE)
        self._issuers.note_success(order["issuer"], used=True)

    def _announce(
        self, batch: str, serials: Mapping[int, str], priority: Priority | None, device_ids: Sequence[int] = ()
    ) -> None:
        """Signal new certificates to their devices, or to some; devices with the same ones get the same signals.

        All of a batch are as urgent as the most urgent one, because they are switched together.
        """
        chosen = f" AND a.device_id IN ({marks(device_ids)})" if device_ids else ""
        rows = self._db.all(
            "SELECT a.device_id, a.cert_id, d.features FROM assignments a JOIN devices d ON d.id = a.device_id"
            f" WHERE a.cert_id IN ({marks(list(serials))}) AND NOT EXISTS (SELECT 1 FROM certificate_holds h"
            f" WHERE h.cert_id = a.cert_id AND h.device_id = a.device_id){chosen} ORDER BY a.device_id, a.cert_id",
            *(*serials, *device_ids),
        )
        held: dict[int, list[int]] = {}
        able = {row["device_id"]: ATOMIC_BATCH in announced(row) for row in rows}
        for row in rows:
            held.setdefault(row["device_id"], []).append(row["cert_id"])
        alike: dict[tuple[tuple[int, ...], bool], list[int]] = {}
        for device_id, ids in held.items():
            alike.setdefault((tuple(ids), able[device_id] and len(ids) > 1), []).append(device_id)
        for (of_device, together), devices in alike.items():
            more = {"batch": {"id": batch, "size": len(of_device)}} if together else {}
            for cert_id in of_device:
                ref = {"cert_id": cert_id, "serial": serials[cert_id]} | more
                self._stream.append_to_all(devices, "cert.renewed", ref, priority)

    # --- operators ------------------------------------------------------------------------------------------------

    def open_batches(self, user_id: int) -> list[dict[str, Any]]:
        """Return a user's waiting batches, the oldest first."""
        require_user(self._db, user_id)
        rows = self._db.all(
            "SELECT o.* FROM orders o JOIN certificates c ON c.id = o.cert_id"
            " WHERE c.user_id = ? AND o.batch != '' AND o.state != ? ORDER BY o.id",
            *(user_id, DONE),
        )
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(row["batch"], []).append(row)
        return [_shown(batch, orders) for batch, orders in found.items()]

    def dissolve(self, user_id: int, batch: str) -> list[dict[str, Any]]:
        """Deliver the issued certificates of a batch separately; its other orders continue alone. ErrorResponse 404."""
        if not any(one["id"] == batch for one in self.open_batches(user_id)):
            raise not_found("There is no such batch; see plane together")
        self._lock_all(batch)
        for order in self._of(batch):
            self._db.run("UPDATE orders SET batch = '' WHERE id = ?", order["id"])
            if order["issued_enc"] is None or order["state"] == FAILED:
                continue
            issued = self._issued(order)
            self._store(order, issued, "")
            self._table.announce(order["cert_id"], issued.serial_number, replaces_revoked=order["action"] == "replace")
        return self.open_batches(user_id)


def sizes_of_device(database: Database, device_id: int) -> Counter[str]:
    """Return the batches of a device's certificates, and the number of certificates in each."""
    rows = database.all(
        "SELECT coalesce(f.batch, c.batch) AS batch, count(*) AS n FROM certificates c JOIN assignments a"
        f" ON a.cert_id = c.id{JOINED} WHERE a.device_id = ? AND coalesce(f.batch, c.batch) != '' AND c.status = 'active'"
        " GROUP BY coalesce(f.batch, c.batch)",
        device_id,
    )
    return Counter({row["batch"]: int(row["n"]) for row in rows})


def _new_name() -> str:
    """Return the name of a new batch."""
    return f"b-{secrets.token_hex(8)}"


def _is_text(field: Any, value: object) -> bool:
    return not isinstance(value, bytes)


def _shown(batch: str, orders: Sequence[Row]) -> dict[str, Any]:
    failed = [order for order in orders if order["state"] == FAILED]
    fails = [order for order in orders if order["problem"]]
    worst = next(iter(failed or fails), None)
    waiting = [order["cert_id"] for order in orders if order["issued_enc"] is None]
    csr = any(order["state"] == CSR_WANTED for order in orders)
    return {
        "id": batch,
        "cert_ids": [order["cert_id"] for order in orders],
        "waiting_for": waiting,
        "state": "failed" if failed else "csr_wanted" if csr else "waiting",
        "problem": f"certificate {worst['cert_id']}: {worst['problem']}" if worst is not None else "",
        "created_at": when(min(order["created_at"] for order in orders)),
    }
