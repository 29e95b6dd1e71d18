"""Certificates: issue, renew, revoke and assign certificates, and signal each change to their devices.

The plane's own CA issues within the request, with a key of the plane. Any other certificate becomes an order
(``orders.py``), and stays pending, or as it is, until its issuer has issued it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypedDict, Unpack

import attrs

from certctrl import lean
from certctrl.plane.ca.domains import clean_names
from certctrl.plane.ca.issuer import Issued, Issuer
from certctrl.plane.ca.x509 import KEY_TYPES
from certctrl.plane.certificates.device_keys import DeviceKeys
from certctrl.plane.certificates.table import KEY_AT_DEVICE, CertificateTable, NewCertificate, is_immediate
from certctrl.plane.certificates.templates import Templates
from certctrl.plane.devices.devices import require_device, require_user
from certctrl.plane.errors import bad_request, conflict, not_found
from certctrl.plane.issuers.registry import IMPORT, Issuers
from certctrl.plane.orders.batches import Batches
from certctrl.plane.orders.orders import OrderRequest, Orders
from certctrl.plane.reserved_names import ReservedNames, taken
from certctrl.plane.revocation.revocations import Revocations
from certctrl.plane.revocation.revoking import Revoking
from certctrl.plane.settings import DAY, PlaneSettings
from certctrl.plane.shared_limits import SharedBuckets
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.signal_stream import SignalStream

MAX_VALIDITY = 366 * DAY
MIN_VALIDITY = 10
_RELEASED_AT_ONCE = 500


@lean.frozen(kw_only=True)
class IssuingParts:
    """The parts that issue certificates."""

    table: CertificateTable
    issuer: Issuer
    """Issues within a request."""
    issuers: Issuers
    orders: Orders
    reserved: ReservedNames
    revocations: Revocations
    keys: DeviceKeys
    batches: Batches


class IssueOptions(TypedDict, total=False):
    """Optional properties of a new certificate, and its devices."""

    key_type: str
    validity_seconds: int | None
    device_ids: Collection[int]
    issuer: str
    """Empty: a rule decides."""
    key_origin: str
    profile: str
    must_staple: bool
    reuse_key: bool


class Certificates(Revoking):
    """The table of certificates and their assignments to devices."""

    def __init__(
        self,
        database: Database,
        stream: SignalStream,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
        parts: IssuingParts,
    ) -> None:
        super().__init__(
            database,
            parts.table,
            stream,
            wall_now,
            issuer=parts.issuer,
            orders=parts.orders,
            revocations=parts.revocations,
        )
        self._issuers = parts.issuers
        self._settings = settings
        self._requests = SharedBuckets(database, "renewals", 0.1, 5, wall_now)
        """Renewals that a device may request: a burst of five, then one every ten seconds."""
        self._reserved = parts.reserved
        self._keys = parts.keys
        self._batches = parts.batches
        self._templates = Templates(database, parts.table, parts.orders, parts.keys)

    def reserve(self, names: Collection[str]) -> list[dict[str, Any]]:
        """Reserve canonical names for this plane: no certificate for them is issued or renewed any longer.

        Returns the certificates that are already valid for a name of a plane.
        """
        self._reserved.set(names)
        rows = self._db.all(
            "SELECT * FROM certificates WHERE status = 'active' AND (not_after > ? OR serial_number = '') ORDER BY id",
            self._wall_now(),
        )
        reserved = self._reserved.all()
        return [self.summary(row) for row in rows if taken(json.loads(row["sans"]), reserved)]

    async def issue(self, user_id: int, domains: Sequence[str], **options: Unpack[IssueOptions]) -> dict[str, Any]:
        """Issue a certificate for ``domains`` (the first is primary) and assign it to devices of the user.

        Unless it is issued immediately, it is pending, with ``order_id``.
        """
        device_ids = options.pop("device_ids", ())
        new = await self._db.work_long(self._choose, user_id, self._checked(domains, **options), device_ids)
        issued = None
        if is_immediate(attrs.asdict(new)):
            issued = await self._issuer.issue(new.names, key_type=new.key_type, validity_seconds=new.validity_seconds)
        return await self._db.work_long(self._add, user_id, new, issued, device_ids)

    def check(self, user_id: int, domains: Sequence[str], **options: Unpack[IssueOptions]) -> NewCertificate:
        """Return what ``issue`` would issue, in the caller's unit of work; ErrorResponse as from ``issue``."""
        device_ids = options.pop("device_ids", ())
        return self._choose(user_id, self._checked(domains, **options), device_ids)

    def _checked(
        self,
        domains: Sequence[str],
        *,
        key_type: str = KEY_TYPES[0],
        validity_seconds: int | None = None,
        issuer: str = "",
        **options: Any,
    ) -> NewCertificate:
        names = clean_names(domains)
        validity = self._settings.certificate_seconds if validity_seconds is None else validity_seconds
        if key_type not in KEY_TYPES:
            raise bad_request(f"key_type must be one of {', '.join(KEY_TYPES)}", field="key_type")
        if not MIN_VALIDITY <= validity <= MAX_VALIDITY:
            what = f"validity_seconds must be {MIN_VALIDITY} to {MAX_VALIDITY}"
            raise bad_request(what, field="validity_seconds")
        return NewCertificate(names=names, key_type=key_type, validity_seconds=validity, issuer=issuer, **options)

    def _choose(self, user_id: int, new: NewCertificate, device_ids: Collection[int]) -> NewCertificate:
        """Check names and owner, and choose the issuer if none is given."""
        self._reserved.refuse(new.names)
        require_user(self._db, user_id)
        for device_id in device_ids:
            require_device(self._db, user_id, device_id)
        origin = self._templates.origin(new.key_origin, device_ids)
        return attrs.evolve(new, issuer=self._issuers.choose(new.names, new.issuer), key_origin=origin)

    def _add(
        self, user_id: int, new: NewCertificate, issued: Issued | None, device_ids: Collection[int]
    ) -> dict[str, Any]:
        self._reserved.refuse(new.names)  # a plane may have started since
        cert_id, serial = self._table.add(user_id, new), ""
        if issued is not None:
            serial = issued.serial_number
            self._table.store(cert_id, issued, "issue", "", None)
        if new.key_origin == KEY_AT_DEVICE:
            for device_id in sorted(set(device_ids)):
                self._templates.assign(device_id, self._table.locked(user_id, cert_id))
            return self.show(user_id, cert_id)
        self._table.assign(sorted(set(device_ids)), cert_id, serial)
        if issued is None:
            self._orders.start(self._table.locked(user_id, cert_id), OrderRequest(action="issue"))
        return self.show(user_id, cert_id)

    async def renew(
        self, user_id: int, cert_id: int, *, reason: str = "", device_id: int | None = None, key_lost: bool = False
    ) -> dict[str, Any]:
        """Replace key and certificate, signal the assigned devices, and return the issue: ``{"id", "status", …}``.

        For a certificate that becomes an order, return that: ``{"order_id", "status": "pending", …}``. A device
        (``device_id``) may renew only assigned certificates that are not revoked, within its rate limit. If another
        device has just renewed the certificate, it gets that renewal. ``key_lost``: the device no longer has the key
        that it made for the certificate or its open order. An operator also renews what was made from a template.
        """
        row, answer = await self._db.work(self._begin_renewal, user_id, cert_id, reason, device_id, key_lost)
        if answer is not None:
            return answer
        issued = await self._issuer.issue(
            json.loads(row["sans"]), key_type=row["key_type"], validity_seconds=row["validity_seconds"]
        )
        return await self._db.work_long(self._finish_renewal, user_id, cert_id, issued, reason, device_id)

    def _begin_renewal(
        self, user_id: int, cert_id: int, reason: str, device_id: int | None, key_lost: bool
    ) -> tuple[Row, dict[str, Any] | None]:
        """Return the certificate; with an order, or with another device's renewal if that is recent enough to share."""
        row = self._table.row(user_id, cert_id)
        self._reserved.refuse(json.loads(row["sans"]))
        refuse_imported(row)
        if device_id is None:
            refuse_rollout(self._table, cert_id)
        shared = None if device_id is None else self._device_request(row, device_id, share=not key_lost)
        if shared is not None:
            return row, shared
        action = "renew" if row["serial_number"] else "issue"
        request = OrderRequest(action=action, reason=reason, device_id=device_id)
        if not key_lost and (ordered := self._batches.start_set(row, request)):
            return row, self._orders.answer(ordered[cert_id]["order_id"])
        if is_immediate(row):
            return row, None
        locked = self._table.locked(user_id, cert_id)
        if row["key_origin"] == KEY_AT_DEVICE and device_id is None:
            for made in self._templates.made_from(cert_id):
                child = self._table.locked(user_id, made)
                if self._table.holders(made):
                    self._orders.start(
                        child, attrs.evolve(request, action="renew" if child["serial_number"] else "issue")
                    )
        if key_lost and row["key_origin"] == KEY_AT_DEVICE:
            return row, self._orders.answer(self._keys.replace_key(locked, request))
        return row, self._orders.answer(self._orders.start(locked, request))

    def _finish_renewal(
        self, user_id: int, cert_id: int, issued: Issued, reason: str, device_id: int | None
    ) -> dict[str, Any]:
        row = self._table.locked(user_id, cert_id)
        if device_id is not None:  # the row may have changed while the key was made
            self._require_renewable(row, device_id)
        self._reserved.refuse(json.loads(row["sans"]))
        self._orders.cancel_of(cert_id, "issued by another issuer meanwhile")
        issue_id = self._table.store(cert_id, issued, "renew", reason, device_id)
        self._table.announce(cert_id, issued.serial_number)
        return self._table.issue(issue_id)

    async def change(self, user_id: int, cert_id: int, *, issuer: str) -> dict[str, Any]:
        """Change the issuer of a certificate, and of those made from it, from the next renewal on.

        Open orders end. A certificate that is not yet issued is ordered from the new issuer immediately.
        """
        return await self._db.work(self._change, user_id, cert_id, issuer)

    def _change(self, user_id: int, cert_id: int, issuer: str) -> dict[str, Any]:
        row = self._table.locked(user_id, cert_id)
        names = json.loads(row["sans"])
        self._reserved.refuse(names)
        chosen = self._issuers.choose(names, issuer)
        for one in (row, *self._made_from(row)):
            if chosen != one["issuer"]:
                self._change_one(one["id"], chosen)
        return self.show(user_id, cert_id)

    def _change_one(self, cert_id: int, issuer: str) -> None:
        self._db.run(
            "UPDATE certificates SET issuer = ?, updated_at = ? WHERE id = ?", issuer, self._wall_now(), cert_id
        )
        self._orders.cancel_of(cert_id, f"the issuer is {issuer} now")
        row = self._table.locked_by_id(cert_id)
        if row is None or row["serial_number"] or row["status"] != "active":
            return  # the next renewal orders it from the new issuer
        if row["key_origin"] != KEY_AT_DEVICE or self._table.holders(cert_id):
            self._orders.start(row, OrderRequest(action="issue", reason=f"the issuer is {issuer} now"))

    async def assign(self, user_id: int, device_id: int, cert_id: int, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Assign a certificate to a device, and return it as `show`; idempotent.

        If keys are made at devices, a further device gets its own certificate, which is returned.
        """
        return await self._db.work_long(self._assign, user_id, device_id, cert_id, scope)

    def _assign(self, user_id: int, device_id: int, cert_id: int, scope: Sequence[str]) -> dict[str, Any]:
        row = self._table.locked(user_id, cert_id)
        require_device(self._db, user_id, device_id)
        if row["status"] == "revoked":
            raise conflict("This certificate is revoked", "CERT_REVOKED")
        if row["key_origin"] == KEY_AT_DEVICE:
            return self.show(user_id, self._templates.assign(device_id, row), scope)
        if not self._table.is_assigned(device_id, cert_id):
            self._table.assign([device_id], cert_id, row["serial_number"])
        return self.show(user_id, cert_id, scope)

    async def unassign(self, user_id: int, device_id: int, cert_id: int, *, since: float | None = None) -> None:
        """Unassign a certificate from a device; ErrorResponse 404 if it is not assigned.

        ``since``: only if it was assigned then (`assigned_at`), otherwise ErrorResponse 409.
        """
        await self._db.work(self._unassign, user_id, device_id, cert_id, since)

    def assigned_at(self, device_id: int, cert_id: int) -> float | None:
        """Return when a certificate was assigned to a device; None: it is not."""
        sql = "SELECT assigned_at FROM assignments WHERE device_id = ? AND cert_id = ?"
        row = self._db.one(sql, device_id, cert_id)
        return None if row is None else float(row["assigned_at"])

    def _unassign(self, user_id: int, device_id: int, cert_id: int, since: float | None) -> None:
        row = self._table.locked(user_id, cert_id)
        require_device(self._db, user_id, device_id)
        if since is not None and self.assigned_at(device_id, cert_id) not in (None, since):
            raise conflict("It was assigned again since: look at it. Nothing was changed")
        if row["key_origin"] == KEY_AT_DEVICE:
            self._templates.unassign(device_id, row)
            return
        if not self._table.unassign(device_id, cert_id):
            raise not_found("Not assigned to this device")

    def delete_expired(self) -> None:
        """Delete expired limits, and the records of expired certificates."""
        self._requests.delete_expired()
        self._revocations.delete_expired()

    def _refuse_names(self, names: Sequence[str]) -> None:
        self._reserved.refuse(names)

    def _device_request(self, row: Row, device_id: int, *, share: bool) -> dict[str, Any] | None:
        """Check a device's renewal request; return an open order, or a renewal that is recent enough to ``share``."""
        self._require_renewable(row, device_id)
        self._release(row["id"], [device_id])  # it asks for the new one itself
        if not share:
            self._requests.take(str(device_id))
            return None
        known = self._orders.open_of(row["id"])
        if known is not None:
            return self._orders.answer(known["id"])
        last = self._db.one(
            "SELECT * FROM issues WHERE cert_id = ? AND action = 'renew' AND at > ?"
            " AND (device_id IS NULL OR device_id != ?) ORDER BY id DESC LIMIT 1",
            row["id"],
            self._wall_now() - self._settings.shared_renewal_seconds,
            device_id,
        )
        if last is not None:
            return self._table.issue(last["id"])
        self._requests.take(str(device_id))
        return None

    def _release(self, cert_id: int, device_ids: Sequence[int], *, replaces_revoked: bool = False) -> None:
        if mates := self._table.holds.mates([cert_id]):
            self._batches.lock_whole([cert_id])
            for start in range(0, len(device_ids), _RELEASED_AT_ONCE):
                some = device_ids[start : start + _RELEASED_AT_ONCE]
                self._batches.release(mates, some, replaces_revoked=replaces_revoked)

    def _lock_whole(self, cert_id: int) -> None:
        self._batches.lock_whole([cert_id])

    def _require_renewable(self, row: Row, device_id: int) -> None:
        if not self._table.is_assigned(device_id, row["id"]):
            raise not_found("No such certificate")
        if row["status"] == "revoked":
            raise conflict("This certificate is revoked; an operator must renew it", "CERT_REVOKED")


def refuse_imported(row: Row) -> None:
    """Raise ErrorResponse 409 for the renewal of a certificate that only its owner can replace."""
    if row["issuer"] == IMPORT:
        what = (
            f"Certificate {row['id']} was imported: get a new one from its CA and import it (cert-ctrl plane import),"
            " or give it an issuer"
        )
        raise conflict(what, "CERT_IMPORTED")


def refuse_rollout(table: CertificateTable, cert_id: int) -> None:
    """Raise ErrorResponse 409 for the renewal of a certificate that a rollout renews."""
    if (row := table.holds.rollout_of(cert_id)) is not None:
        what = f"Rollout {row['id']} renews certificate {cert_id}, and is {row['state']}: abort it first"
        raise conflict(what, "ROLLOUT_OPEN")
