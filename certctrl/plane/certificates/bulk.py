"""Bulk: check many certificates before any is issued, and order many renewals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from certctrl.plane.certificates.certificates import Certificates, IssuingParts, refuse_imported, refuse_rollout
from certctrl.plane.certificates.table import NewCertificate
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.orders.orders import OrderRequest
from certctrl.plane.storage.database import Database

MAX_CHECKED = 100
MAX_RENEWED = 1000
_PER_UNIT_OF_WORK = 10
"""Certificates per unit of work, so that other requests are answered in between."""


class Bulk:
    """Requests about many certificates of a user."""

    def __init__(self, database: Database, certificates: Certificates, parts: IssuingParts) -> None:
        self._db = database
        self._certificates = certificates
        self._table, self._orders, self._reserved = parts.table, parts.orders, parts.reserved
        self._batches = parts.batches

    async def check(self, user_id: int, wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return for each certificate ``problem`` and ``field``, both empty if it can be issued, and ``known``.

        ``wanted`` are the arguments of ``Certificates.issue``. ``known`` is the id and the devices of a certificate that is
        not revoked, with the same names, type of key and profile; otherwise None.
        """
        checked = []
        for begin in range(0, len(wanted), _PER_UNIT_OF_WORK):
            checked += await self._db.work_long(self._check_some, user_id, wanted[begin : begin + _PER_UNIT_OF_WORK])
            await trio.lowlevel.checkpoint()
        return checked

    def _check_some(self, user_id: int, wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [self._check(user_id, one) for one in wanted]

    def _check(self, user_id: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        try:
            new = self._certificates.check(user_id, **wanted)
        except ErrorResponse as error:
            return {"problem": error.what, "field": str(error.params.get("field", "")), "known": None}
        return {"problem": "", "field": "", "known": self._known(user_id, new)}

    def _known(self, user_id: int, new: NewCertificate) -> dict[str, Any] | None:
        rows = self._db.all(
            "SELECT id, sans FROM certificates WHERE user_id = ? AND domain_name IN"
            f" ({', '.join('?' * len(new.names))}) AND key_type = ? AND profile = ? AND status = 'active'"
            " AND template_id IS NULL ORDER BY id",
            *(user_id, *new.names, new.key_type, new.profile),
        )
        same = next((row["id"] for row in rows if set(json.loads(row["sans"])) == set(new.names)), None)
        return None if same is None else {"id": same, "device_ids": self._holders(same)}

    def _holders(self, cert_id: int) -> list[int]:
        """Return the devices of a certificate, including those with certificates that were made from it."""
        rows = self._db.all(
            "SELECT a.device_id FROM assignments a JOIN certificates c ON c.id = a.cert_id"
            " WHERE c.id = ? OR (c.template_id = ? AND c.status = 'active') ORDER BY a.device_id",
            *(cert_id, cert_id),
        )
        return [row["device_id"] for row in rows]

    async def renew(
        self, user_id: int, cert_ids: Sequence[int], reason: str, *, together: bool = False
    ) -> list[dict[str, Any]]:
        """Order renewals; return for each certificate ``cert_id``, ``order_id`` (or None) and ``problem``.

        ``together``: all or none are ordered, and devices receive them as one ``batch``.
        """
        if together:
            request = OrderRequest(action="renew", reason=reason, in_background=True)
            return await self._db.work_long(self._batches.start, user_id, cert_ids, request)
        ordered = []
        for begin in range(0, len(cert_ids), _PER_UNIT_OF_WORK):
            part = cert_ids[begin : begin + _PER_UNIT_OF_WORK]
            ordered += await self._db.work_long(self._renew_some, user_id, part, reason)
            await trio.lowlevel.checkpoint()
        return ordered

    def _renew_some(self, user_id: int, cert_ids: Sequence[int], reason: str) -> list[dict[str, Any]]:
        self._batches.lock_whole(cert_ids)
        return [self._renew(user_id, cert_id, reason) for cert_id in cert_ids]

    def _renew(self, user_id: int, cert_id: int, reason: str) -> dict[str, Any]:
        try:
            row = self._table.locked(user_id, cert_id)
            self._reserved.refuse(json.loads(row["sans"]))
            refuse_imported(row)
            refuse_rollout(self._table, cert_id)
        except ErrorResponse as error:
            return {"cert_id": cert_id, "order_id": None, "problem": error.what}
        action = "renew" if row["serial_number"] else "issue"
        request = OrderRequest(action=action, reason=reason, in_background=True)
        if ordered := self._batches.start_set(row, request):
            return ordered[cert_id]
        return {"cert_id": cert_id, "order_id": self._orders.start(row, request), "problem": ""}
