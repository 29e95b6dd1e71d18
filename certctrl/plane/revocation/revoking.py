"""Revoking: revoke certificates, current or earlier, and replace them with new keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from certctrl.plane.ca.issuer import Issued, Issuer
from certctrl.plane.certificates.table import CertificateTable, is_immediate
from certctrl.plane.certificates.views import CertificateViews
from certctrl.plane.errors import bad_request, conflict
from certctrl.plane.issuers.registry import IMPORT
from certctrl.plane.orders.orders import OrderRequest, Orders
from certctrl.plane.revocation.revocations import KEY_COMPROMISE, Revocations, clean_reason_code, clean_serial
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.signal_stream import SignalStream


class Revoking(CertificateViews):
    """Revokes and replaces certificates."""

    def __init__(
        self,
        database: Database,
        table: CertificateTable,
        stream: SignalStream,
        wall_now: Callable[[], float],
        *,
        issuer: Issuer,
        orders: Orders,
        revocations: Revocations,
    ) -> None:
        super().__init__(database, table, wall_now)
        self._stream = stream
        self._issuer = issuer
        self._orders = orders
        self._revocations = revocations

    async def revoke(
        self,
        user_id: int,
        cert_id: int,
        *,
        reason: str = "",
        reason_code: str = "",
        serial_number: str = "",
        replace: bool = False,
        confirmed: bool = False,
    ) -> dict[str, Any]:
        """Revoke a certificate at its CA, until an operator renews it, and signal its devices to withdraw it.

        With ``replace``, devices keep it until its replacement arrives; it is revoked then, or immediately if its key is
        compromised. ``serial_number`` may be that of an earlier certificate, which only devices have that a rollout holds at it:
        they get the present one.
        With ``confirmed``, only record that an operator has revoked it at its CA. ``reason_code`` is a name of RFC 5280.
        ErrorResponse 400, 404, and 409 if it cannot be replaced.
        """
        code, serial = clean_reason_code(reason_code), clean_serial(serial_number) if serial_number else ""
        if confirmed:
            return await self._db.work(self._confirm, user_id, cert_id, serial)
        if not replace:
            return await self._db.work_long(self._revoke, user_id, cert_id, reason, code, serial)
        if serial:
            raise bad_request("Only the present certificate can be replaced", field="serial_number")
        for row in await self._db.work_long(self._begin_replacement, user_id, cert_id, reason, code):
            issued = await self._issuer.issue(
                json.loads(row["sans"]), key_type=row["key_type"], validity_seconds=row["validity_seconds"]
            )
            await self._db.work_long(self._finish_replacement, user_id, row["id"], issued, reason, code)
        return await self._db.work(self.show, user_id, cert_id)

    def _confirm(self, user_id: int, cert_id: int, serial: str) -> dict[str, Any]:
        self._revocations.confirm(self._table.locked(user_id, cert_id)["id"], serial)
        return self.show(user_id, cert_id)

    def _revoke(self, user_id: int, cert_id: int, reason: str, code: str, serial: str) -> dict[str, Any]:
        if serial:
            self._lock_whole(cert_id)
        row = self._table.locked(user_id, cert_id)
        if serial and serial != row["serial_number"]:
            self._revocations.start(row, code, serial)
            self._table.log(cert_id, "revoke", reason, None, serial)
            if row["status"] == "active" and (held := self._table.holds.held_at(cert_id, serial)):
                self._release(cert_id, held, replaces_revoked=True)
            return self.show(user_id, cert_id)
        for one in (row, *self._made_from(row)):
            self._withdraw(one, reason, code)
        return self.show(user_id, cert_id)

    def _withdraw(self, row: Row, reason: str, code: str) -> None:
        """Revoke a certificate and signal its devices; one that is already revoked is only retried at its CA."""
        cert_id, now = row["id"], self._wall_now()
        if row["serial_number"]:
            self._revocations.start(row, code)
        if row["status"] == "revoked":
            return
        self._db.run(
            "UPDATE certificates SET status = 'revoked', revoked_at = ?, revoke_reason = ?, revoke_code = ?, updated_at = ?,"
            " private_key_enc = ? WHERE id = ?",
            *(now, reason, code, now, b"", cert_id),
        )
        self._table.holds.end(cert_id)
        self._orders.cancel_of(cert_id, "the certificate was revoked")
        self._forget_requests(cert_id)
        self._table.log(cert_id, "revoke", reason, None, row["serial_number"])
        self._stream.append_to_all(self._table.holders(cert_id), "cert.revoked", {"cert_id": cert_id})

    def _begin_replacement(self, user_id: int, cert_id: int, reason: str, code: str) -> list[Row]:
        """Order replacements; return the certificates to replace within this request."""
        row = self._table.locked(user_id, cert_id)
        rows = [row, *self._made_from(row)]
        issued = [one for one in rows if one["serial_number"]]
        if not issued:
            raise conflict("This certificate is not issued yet, so it cannot be replaced", "WRAP_PENDING")
        if any(one["issuer"] == IMPORT for one in issued):
            what = "This certificate was imported; import its replacement: cert-ctrl plane import"
            raise conflict(what, "CERT_IMPORTED")
        for one in issued:
            self._refuse_names(json.loads(one["sans"]))
            if not is_immediate(one):
                self._order_replacement(one, reason, code)
        return [one for one in issued if is_immediate(one)]

    def _order_replacement(self, row: Row, reason: str, code: str) -> None:
        self._note(row, reason, code, now=code == KEY_COMPROMISE)
        self._orders.cancel_of(row["id"], "a replacement was ordered")
        self._forget_requests(row["id"])
        self._orders.start(row, OrderRequest(action="replace", reason=reason))

    def _finish_replacement(self, user_id: int, cert_id: int, issued: Issued, reason: str, code: str) -> None:
        """Store a replacement, revoke the certificate before it, and signal the devices."""
        row = self._table.locked(user_id, cert_id)
        self._refuse_names(json.loads(row["sans"]))  # a plane may have started since
        self._note(row, reason, code, now=True)
        self._orders.cancel_of(cert_id, "it was replaced meanwhile")
        self._table.store(cert_id, issued, "replace", reason, None)
        self._table.announce(cert_id, issued.serial_number, replaces_revoked=True)

    def _forget_requests(self, cert_id: int) -> None:
        """Delete earlier signing requests, so that devices make new keys even with ``reuse_key``."""
        self._db.run("UPDATE orders SET csr_der = NULL WHERE cert_id = ? AND finished_at IS NOT NULL", cert_id)

    def _note(self, row: Row, reason: str, code: str, *, now: bool) -> None:
        if now:
            self._revocations.start(row, code)
        else:
            self._revocations.start_when_replaced(row, code)
        self._table.log(row["id"], "revoke", reason, None, row["serial_number"])

    def _refuse_names(self, names: Sequence[str]) -> None:
        """Refuse names of the plane; ErrorResponse 409."""

    def _release(self, cert_id: int, device_ids: Sequence[int], *, replaces_revoked: bool = False) -> None:
        """Hold devices at a former certificate, and at those renewed together with it, no longer."""

    def _lock_whole(self, cert_id: int) -> None:
        """Lock a certificate with those that are renewed together with it."""

    def _made_from(self, template: Row) -> list[Row]:
        """Return the certificates of a template, one per device, locked."""
        return self._db.all_locked("SELECT * FROM certificates WHERE template_id = ? ORDER BY id", template["id"])

    def _shown(self, rows: Sequence[Row], scope: Sequence[str] = ()) -> list[dict[str, Any]]:
        revoked = self._revocations.of([row["id"] for row in rows])
        codes = {row["id"]: row["revoke_code"] for row in rows}
        return [
            one | {"revoke_code": codes[one["id"]], "revocations": revoked[one["id"]]}
            for one in super()._shown(rows, scope)
        ]
