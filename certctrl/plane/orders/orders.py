"""Orders: requests to issuers, at most one open order per certificate; all in the caller's unit of work.

An open order waits for a signing request of a device (``csr_wanted``), is attempted and retried (``ready``), or needs
an operator (``blocked``), until it is ``done`` or ``failed``. The key of its job is its id; ``runner.py`` runs it. A
failed renewal does not change the certificate in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from certctrl import lean
from certctrl.plane.certificates.table import KEY_AT_DEVICE
from certctrl.plane.clock import when
from certctrl.plane.devices.devices import require_user
from certctrl.plane.devices.tags import carried_by
from certctrl.plane.errors import conflict, not_found
from certctrl.plane.jobs import Jobs
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row, marks

CSR_WANTED, READY, DONE, FAILED, BLOCKED = "csr_wanted", "ready", "done", "failed", "blocked"
OPEN = (CSR_WANTED, READY, BLOCKED)
JOB = "order"
BACKGROUND_JOB = "background_order"
"""The kind of the jobs of renewals that no one waits for: those that are due, and many ordered with one request."""
KEPT_SECONDS = 90 * DAY
"""Seconds for which finished orders are kept."""
_OPEN_SQL = "state IN ('csr_wanted', 'ready', 'blocked')"


@lean.frozen(kw_only=True)
class OrderRequest:
    """Why a certificate is ordered."""

    action: str
    """``issue``, ``renew`` or ``replace``."""
    reason: str = ""
    device_id: int | None = None
    """The device that requests it; None: an operator, or the plane."""
    in_background: bool = False
    """Whether it may wait for orders that someone waits for."""
    batch: str = ""
    """The batch that it belongs to; empty: that of the certificate's failed order, if there is one."""
    refused_requests: int = 0
    """How many signing requests its issuer has refused in a row, each for another key of the device."""


class Orders:
    """The table of orders."""

    def __init__(self, database: Database, jobs: Jobs, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._jobs = jobs
        self._wall_now = wall_now
        self.request_csr: Callable[[int, Row], object] = lambda order_id, certificate: None
        """Called in the unit of work with the id of an order that needs a device's CSR, and its certificate."""
        self.on_due: Callable[[], object] = lambda: None
        """Called after the commit when an order has become due."""

    def start(self, certificate: Row, request: OrderRequest) -> int:
        """Order a certificate, whose row is locked; return the id of its order.

        An open order is returned instead; an operator's request makes it due now.
        """
        known = self.open_of(certificate["id"])
        if known is not None:
            if request.batch:
                self._join(known["id"], certificate["id"], request.batch)
            if request.device_id is None:
                self._make_due(known, request.in_background)
            return int(known["id"])
        at_device = certificate["key_origin"] == KEY_AT_DEVICE
        now = self._wall_now()
        order_id = self._db.insert(
            "INSERT INTO orders (cert_id, issuer, action, reason, device_id, state, refused_requests, created_at,"
            " updated_at, next_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(certificate["id"], certificate["issuer"], request.action, request.reason, request.device_id),
            *(CSR_WANTED if at_device else READY, request.refused_requests, now, now, None if at_device else now),
        )
        if batch := request.batch or self._batch_of_failed(certificate["id"]):
            self._join(order_id, certificate["id"], batch)
        if at_device:
            self.request_csr(order_id, certificate)
        else:
            self._put(order_id, now, request.in_background)
        return order_id

    def _batch_of_failed(self, cert_id: int) -> str:
        """Return the batch that waits for a certificate because its order has failed."""
        sql = "SELECT batch FROM orders WHERE cert_id = ? AND batch != '' AND state = ? ORDER BY id DESC LIMIT 1"
        row = self._db.one(sql, cert_id, FAILED)
        return "" if row is None else str(row["batch"])

    def _join(self, order_id: int, cert_id: int, batch: str) -> None:
        """Make an order the only one of its certificate in a batch."""
        self._leave(cert_id)
        self._db.run("UPDATE orders SET batch = ? WHERE id = ?", batch, order_id)

    def _leave(self, cert_id: int) -> None:
        """Take the open and failed orders of a certificate out of their batches."""
        self._db.run("UPDATE orders SET batch = '' WHERE cert_id = ? AND batch != '' AND state != ?", cert_id, DONE)

    def keep_issued(self, order_id: int, issued_enc: bytes, key_enc: bytes) -> None:
        """Keep the issued certificate of an order, which stays open without further attempts."""
        self._db.run(
            "UPDATE orders SET issued_enc = ?, issued_key_enc = ?, problem = '', fix = '', updated_at = ?,"
            " next_at = NULL WHERE id = ?",
            *(issued_enc, key_enc, self._wall_now(), order_id),
        )
        self._drop_job(order_id)

    def attempt_again(self, order_id: int) -> None:
        """Drop the kept certificate of an order, and make it due now."""
        now = self._wall_now()
        sql = "UPDATE orders SET issued_enc = NULL, issued_key_enc = NULL, next_at = ?, updated_at = ? WHERE id = ?"
        self._db.run(sql, now, now, order_id)
        self._put(order_id, now, True)

    def start_over(self, certificate: Row, order: Row) -> None:
        """Replace an order whose signing request was refused by one that asks the device for another key."""
        problem, fix, refused = order["problem"], order["fix"], order["refused_requests"]
        self.end(order["id"], FAILED, problem, fix)
        device_id = order["device_id"]
        request = OrderRequest(
            action=order["action"], reason=order["reason"], device_id=device_id, refused_requests=refused
        )
        order_id = self.start(certificate, request)
        sql = "UPDATE orders SET problem = ?, fix = ? WHERE id = ? AND state = ?"
        self._db.run(sql, problem, fix, order_id, CSR_WANTED)

    def accept_csr(self, order_id: int, csr_der: bytes) -> None:
        """Store the checked CSR of a device, and make the order due; ErrorResponse 409 unless it is wanted."""
        order = self._db.one("SELECT action FROM orders WHERE id = ?", order_id)
        sql = "UPDATE orders SET state = ?, csr_der = ?, problem = '', fix = '', updated_at = ?, next_at = ? WHERE id = ? AND state = ?"
        now = self._wall_now()
        if order is None or not self._db.run(sql, READY, csr_der, now, now, order_id, CSR_WANTED):
            raise conflict("This order wants no CSR", "ORDER_STATE")
        self._put(order_id, now, order["action"] == "renew")

    def block(self, order_id: int, problem: str, fix: str) -> None:
        """Block an open order until an operator acts or its device changes."""
        self._db.run(
            f"UPDATE orders SET state = ?, problem = ?, fix = ?, updated_at = ?, next_at = NULL WHERE id = ? AND {_OPEN_SQL}",
            *(BLOCKED, problem, fix, self._wall_now(), order_id),
        )
        self._drop_job(order_id)

    def retry(self, user_id: int, order_id: int) -> dict[str, Any]:
        """Make an open order due now; a failed one is ordered again. ErrorResponse 404 and 409."""
        order = self._of_user(user_id, order_id)
        certificate = self._db.one_locked("SELECT * FROM certificates WHERE id = ?", order["cert_id"])
        assert certificate is not None  # an order refers to an existing certificate
        if order["state"] == DONE:
            raise conflict("This order is done", "ORDER_STATE")
        if order["state"] == FAILED:
            order_id = self.start(certificate, OrderRequest(action=order["action"], reason=order["reason"]))
        elif order["state"] == READY:
            self._make_due(order)
        else:
            self.ask_again(order_id, certificate)
        return self.show(user_id, order_id)

    def cancel(self, user_id: int, order_id: int) -> dict[str, Any]:
        """End an open order; the certificate in use stays. ErrorResponse 404, and 409 if it has ended."""
        order = self._of_user(user_id, order_id)
        self._db.one_locked("SELECT id FROM certificates WHERE id = ?", order["cert_id"])
        if not self.end(order_id, FAILED, "cancelled by an operator"):
            raise conflict("This order has ended", "ORDER_STATE")
        return self.show(user_id, order_id)

    def cancel_of(self, cert_id: int, why: str) -> None:
        """End the open order of a certificate, if there is one; the certificate leaves its batch."""
        self._leave(cert_id)
        known = self.open_of(cert_id)
        if known is not None:
            self.end(known["id"], FAILED, why)

    def end(self, order_id: int, state: str, problem: str = "", fix: str = "") -> bool:
        """End an open order, and delete its secrets and job; return False if it had already ended."""
        now = self._wall_now()
        changed = self._db.run(
            "UPDATE orders SET state = ?, problem = ?, fix = ?, memo_enc = NULL, updated_at = ?,"
            " csr_der = CASE WHEN key_enc IS NULL THEN csr_der ELSE NULL END, key_enc = NULL,"
            " issued_enc = NULL, issued_key_enc = NULL,"
            f" next_at = NULL, finished_at = ? WHERE id = ? AND {_OPEN_SQL}",
            *(state, problem, fix, now, now, order_id),
        )
        self._drop_job(order_id)
        return changed == 1

    def open_of(self, cert_id: int) -> Row | None:
        """Return the open order of a certificate."""
        return self._db.one(f"SELECT * FROM orders WHERE cert_id = ? AND {_OPEN_SQL}", cert_id)

    def show(self, user_id: int, order_id: int, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Return one order as operators see it; ErrorResponse 404.

        ``scope``: without the device that asked for it, unless it carries all of these tags.
        """
        return self._shown([self._of_user(user_id, order_id)], scope)[0]

    def page_of_user(
        self, user_id: int, after_id: int, limit: int, scope: Sequence[str] = (), *, only_open: bool = False
    ) -> list[dict[str, Any]]:
        """Return up to ``limit`` orders of a user with ids above ``after_id``, by id.

        ``scope``: only for certificates of devices that carry all of these tags, and as for `show`.
        """
        require_user(self._db, user_id)
        sql = f"{_SELECT} AND o.id > ?"
        if scope:
            sql += f" AND EXISTS (SELECT 1 FROM assignments a WHERE a.cert_id = o.cert_id AND {carried_by('a.device_id', scope)})"
        if only_open:
            sql += f" AND o.{_OPEN_SQL}"
        rows = self._db.all(f"{sql} ORDER BY o.id LIMIT ?", user_id, after_id, *scope, limit)
        return self._shown(rows, scope)

    def _shown(self, rows: Sequence[Row], scope: Sequence[str]) -> list[dict[str, Any]]:
        shown = [_shown(row) for row in rows]
        ids = sorted({row["device_id"] for row in rows if row["device_id"] is not None}) if scope else []
        if ids:
            sql = f"SELECT id FROM devices WHERE id IN ({marks(ids)}) AND {carried_by('devices.id', scope)}"
            seen = {row["id"] for row in self._db.all(sql, *ids, *scope)}
            shown = [one | {"device_id": one["device_id"] if one["device_id"] in seen else None} for one in shown]
        return shown

    def answer(self, order_id: int) -> dict[str, Any]:
        """Return the order as the answer to a request for a renewal."""
        row = self._db.one("SELECT * FROM orders WHERE id = ?", order_id)
        if row is None:
            raise not_found("There is no such order; see plane orders list --all")
        shown = {"id": row["id"], "cert_id": row["cert_id"], "action": row["action"], "status": "pending"}
        return shown | {"serial_number": "", "order_id": row["id"], "state": row["state"]}

    def delete_expired(self) -> None:
        """Delete orders that ended long ago."""
        last = "SELECT max(id) FROM orders WHERE state = 'done' AND csr_der IS NOT NULL GROUP BY cert_id"
        waited_for = "state = 'failed' AND batch != ''"
        sql = f"DELETE FROM orders WHERE finished_at < ? AND id NOT IN ({last}) AND NOT ({waited_for})"  # its CSR may be reused
        self._db.run(sql, self._wall_now() - KEPT_SECONDS)

    def _make_due(self, order: Row, in_background: bool = False) -> None:
        """Make an order that waits for its next attempt due now."""
        if order["state"] != READY or order["issued_enc"] is not None:
            return
        now = self._wall_now()
        job = self._db.one(f"SELECT lease FROM jobs WHERE {_ITS_JOB} ORDER BY lease DESC", *_its_job(order["id"]))
        if job is None or job["lease"] <= now:  # otherwise an attempt is running
            self._db.run("UPDATE orders SET next_at = ?, updated_at = ? WHERE id = ?", now, now, order["id"])
            self._put(order["id"], now, in_background)

    def ask_again(self, order_id: int, certificate: Row) -> None:
        """Ask a device again for the CSR of an open order, or continue with the one that it sent."""
        order, now = self._db.one("SELECT * FROM orders WHERE id = ?", order_id), self._wall_now()
        assert order is not None  # the caller found it open
        state = CSR_WANTED if certificate["key_origin"] == KEY_AT_DEVICE and order["csr_der"] is None else READY
        self._db.run(
            "UPDATE orders SET state = ?, problem = '', fix = '', updated_at = ?, next_at = ? WHERE id = ?",
            *(state, now, now if state == READY else None, order["id"]),
        )
        if state == READY:
            self._put(order["id"], now, order["action"] == "renew")
        else:
            self.request_csr(order["id"], certificate)

    def _put(self, order_id: int, due: float, in_background: bool) -> None:
        kind, other = (BACKGROUND_JOB, JOB) if in_background else (JOB, BACKGROUND_JOB)
        self._db.run("DELETE FROM jobs WHERE kind = ? AND job_key = ?", other, str(order_id))
        self._jobs.put(kind, str(order_id), due)
        self._db.after_commit(self.on_due)

    def _drop_job(self, order_id: int) -> None:
        self._db.run(f"DELETE FROM jobs WHERE {_ITS_JOB}", *_its_job(order_id))

    def _of_user(self, user_id: int, order_id: int) -> Row:
        row = self._db.one(f"{_SELECT} AND o.id = ?", user_id, order_id)
        if row is None:
            raise not_found("There is no such order; see plane orders list --all")
        return row


_ITS_JOB = "kind IN (?, ?) AND job_key = ?"


def _its_job(order_id: int) -> tuple[str, str, str]:
    """Return the parameters of `_ITS_JOB`."""
    return JOB, BACKGROUND_JOB, str(order_id)


_SELECT = "SELECT o.*, c.domain_name FROM orders o JOIN certificates c ON c.id = o.cert_id WHERE c.user_id = ?"


def _shown(row: Row) -> dict[str, Any]:
    plain = (
        "id",
        "cert_id",
        "domain_name",
        "issuer",
        "action",
        "reason",
        "device_id",
        "state",
        "attempts",
        "problem",
        "fix",
    )
    times = ("created_at", "updated_at", "next_at", "finished_at")
    return {name: row[name] for name in plain} | {name: when(row[name]) for name in times}
