"""DeviceLife: rename a device, let new hardware take its place, and decommission it; all can be repeated.

A change with ``dry_run`` is carried out in a unit of work that is rolled back, or returned as a plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from certctrl import lean
from certctrl.plane.access.roles import Caller
from certctrl.plane.audit.log import AuditLog, Change
from certctrl.plane.authorities import Authorities
from certctrl.plane.certificates.certificates import Certificates
from certctrl.plane.clock import when
from certctrl.plane.devices.devices import Devices
from certctrl.plane.devices.enrolment import Enrolment
from certctrl.plane.devices.key_rotation import KeyRotation
from certctrl.plane.errors import ErrorResponse, bad_request, conflict
from certctrl.plane.revocation.revocations import clean_reason_code
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row

_NAMES_GUARD = 0x6E616D65  # "name"
"""Held alone by units of work that give a device a name."""
REPLACED, KEY_ROTATED = "device.replaced", "device.key-rotated"
"""What the audit log calls the registration of new hardware, and the new key of a device."""
WITHDRAW, REVOKE = "withdraw", "revoke"


@lean.frozen
class LifeParts:
    """The parts of a plane that the life of a device involves."""

    devices: Devices
    enrolment: Enrolment
    certificates: Certificates
    authorities: Authorities
    audit: AuditLog
    rotation: KeyRotation


@lean.frozen(kw_only=True)
class Decommissioning:
    """How to decommission a device."""

    reason: str = ""
    revoke: bool = False
    """Whether certificates that only this device has are revoked."""
    reason_code: str = ""


class DeviceLife:
    """The life of devices. Asynchronous methods run units of work."""

    def __init__(self, database: Database, parts: LifeParts, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._devices = parts.devices
        self._replacements = parts.enrolment.replacements
        self._certificates = parts.certificates
        self._authorities = parts.authorities
        self._audit = parts.audit
        self._wall_now = wall_now
        self.on_renamed: Callable[[Sequence[int]], object] = lambda device_ids: None
        """Called in the unit of work with devices that have another name; may refuse it."""
        self._rotation = parts.rotation
        parts.enrolment.on_replaced = self._note_replaced
        parts.rotation.on_rotated = self._note_rotated

    # --- names ----------------------------------------------------------------------------------------------------

    async def rename(
        self, user_id: int, device_id: int, name: str, *, expected: str = "", dry_run: bool = False
    ) -> dict[str, Any]:
        """Give a device another name, which it keeps when it registers again; ``expected``: only if that is its name now.

        ErrorResponse 404, 409 for the name of another device, 400 for a name that does not fit it or its profiles.
        """
        return await previewed(self._db, self._rename, user_id, device_id, name, expected, dry_run=dry_run)

    def _rename(self, user_id: int, device_id: int, name: str, expected: str) -> dict[str, Any]:
        if not name or name.isdecimal():
            raise bad_request("A device needs a name that is not a number, which would be an id", field="name")
        self._db.guard(_NAMES_GUARD, alone=True)
        row = self._devices.locked(device_id, user_id)
        if expected and row["name"] != expected:
            raise conflict(f"Device {device_id} is named {row['name']} now, not {expected}. Nothing was changed")
        taken = self._db.one(
            "SELECT id, name FROM devices WHERE user_id = ? AND id != ? AND status != 'revoked'"
            " AND (lower(name) = ? OR device_public_id = ?) ORDER BY id LIMIT 1",
            *(user_id, device_id, name.lower(), name),
        )
        if taken is not None:
            raise conflict(f"Device {taken['id']} has the name {name}", "NAME_TAKEN", device_id=taken["id"])
        before = self._config_version(device_id)
        if row["name"] != name or not row["renamed"]:
            self._db.run("UPDATE devices SET name = ?, renamed = 1 WHERE id = ?", name, device_id)
        if row["name"] != name:
            self.on_renamed([device_id])
        return {
            "id": device_id,
            "name": name,
            "former_name": row["name"],
            "changed": row["name"] != name,
            "config_changed": self._config_version(device_id) != before,
        }

    def _config_version(self, device_id: int) -> int:
        row = self._db.one("SELECT version FROM install_configs WHERE device_id = ?", device_id)
        return 0 if row is None else int(row["version"])

    # --- new hardware -----------------------------------------------------------------------------------------------

    async def replace(
        self, user_id: int, device_id: int, *, valid_seconds: int = DAY, dry_run: bool = False
    ) -> dict[str, Any]:
        """Return a token by which one new host registers as this device; it ends the token before it.

        Nothing changes until then. ErrorResponse 404, and 409 for a revoked device.
        """
        return await previewed(self._db, self._replace, user_id, device_id, valid_seconds, dry_run=dry_run)

    def _replace(self, user_id: int, device_id: int, valid_seconds: int) -> dict[str, Any]:
        row = self._devices.locked(device_id, user_id)
        if row["status"] == "revoked":
            what = f"Device {device_id} ({row['name']}) is revoked; approve its registration instead"
            raise conflict(what, "DEVICE_REVOKED")
        token = self._replacements.start(device_id, valid_seconds)
        held = self._held(device_id)
        return {
            "id": device_id,
            "name": row["name"],
            "certificates": [_named(one) for one in held],
            "new_keys": [one["id"] for one in held if one["key_origin"] == "device"],
            **token,
        }

    async def cancel_replacement(self, user_id: int, device_id: int, *, dry_run: bool = False) -> dict[str, Any]:
        """Void the token of a replacement that has not been used; idempotent."""
        return await previewed(self._db, self._cancel, user_id, device_id, dry_run=dry_run)

    def _cancel(self, user_id: int, device_id: int) -> dict[str, Any]:
        row = self._devices.locked(device_id, user_id)
        return {"id": device_id, "name": row["name"], "changed": self._replacements.end(device_id)}

    def _note_replaced(self, device: Row, replacement: Row, after: Mapping[str, Any]) -> None:
        """Record in the audit log that new hardware has registered as a device."""
        self._note(REPLACED, f"replacement token {replacement['id']}", device, after)

    def _note(self, action: str, via: str, device: Row, after: Mapping[str, Any]) -> None:
        entry = self._audit.add(Caller.of_plane(via=via), action)
        before = {name: device[name] for name in after}
        change = Change(kind="device", object_id=str(device["id"]), name=device["name"], before=before, after=after)
        self._audit.add_change(entry, change)

    # --- its key ----------------------------------------------------------------------------------------------------

    async def rotate_key(self, user_id: int, device_id: int, *, dry_run: bool = False) -> dict[str, Any]:
        """Have a device replace its key when it refreshes its token; idempotent. ErrorResponse 404, 409."""
        return await previewed(self._db, self._rotation.want, user_id, device_id, dry_run=dry_run)

    def _note_rotated(self, device: Row, new: str) -> None:
        """Record in the audit log that a device has another key."""
        self._note(KEY_ROTATED, "request of the device", device, {"key_fingerprint": new})

    # --- the end ----------------------------------------------------------------------------------------------------

    async def decommission(
        self, user_id: int, device_id: int, how: Decommissioning, *, dry_run: bool = False
    ) -> dict[str, Any]:
        """Void the tokens of a device, revoke what only it has if that is wanted, and withdraw all certificates and CAs.

        In this order, in several units of work: one that was interrupted is completed by the next call. What stays on
        the host's disk, its operator removes. ErrorResponse 400, 404.
        """
        clean_reason_code(how.reason_code)
        plan = await self._db.work_long(self._plan, user_id, device_id, how)
        if dry_run:
            return plan | {"dry_run": True}
        if plan["changed"]:
            await self._db.work(self._lock_out, user_id, device_id, how.reason)
            for one in plan["certificates"]:
                await self._withdraw(user_id, device_id, one, how)
            for ca_id in plan["cas"]:
                await _if_there(self._authorities.unassign(user_id, device_id, ca_id))
            await self._db.work(self._finish, device_id)
        shown = await self._db.work(self._devices.show, user_id, device_id)
        return plan | {"dry_run": False, "decommissioned_at": shown["decommissioned_at"]}

    def _plan(self, user_id: int, device_id: int, how: Decommissioning) -> dict[str, Any]:
        row = self._devices.row(user_id, device_id)
        held = [_named(one) | self._fate(device_id, one, how) for one in self._held(device_id)]
        cas = self._db.all("SELECT ca_id FROM authority_assignments WHERE device_id = ? ORDER BY ca_id", device_id)
        return {
            "id": device_id,
            "name": row["name"],
            "changed": row["decommissioned_at"] is None or bool(held) or bool(cas),
            "certificates": held,
            "cas": [one["ca_id"] for one in cas],
            "decommissioned_at": when(row["decommissioned_at"]),
        }

    def _fate(self, device_id: int, certificate: Row, how: Decommissioning) -> dict[str, Any]:
        """Return what becomes of a certificate, and how many other devices have it, or one that was made from it."""
        others = self._db.one(
            "SELECT count(*) AS n FROM assignments a JOIN certificates c ON c.id = a.cert_id"
            " JOIN devices d ON d.id = a.device_id WHERE (c.id = ? OR c.template_id = ?) AND a.device_id != ?"
            " AND d.status != 'revoked'",
            *(certificate["id"], certificate["id"], device_id),
        )
        count = 0 if others is None else int(others["n"])
        is_issued = certificate["status"] == "active" and certificate["serial_number"]
        revoke = how.revoke and not count and is_issued
        return {"action": REVOKE if revoke else WITHDRAW, "other_devices": count}

    def _fate_now(self, device_id: int, cert_id: int, how: Decommissioning) -> dict[str, Any]:
        row = self._db.one("SELECT id, status, serial_number FROM certificates WHERE id = ?", cert_id)
        return {} if row is None else self._fate(device_id, row, how)

    def _lock_out(self, user_id: int, device_id: int, reason: str) -> None:
        self._devices.locked(device_id, user_id)
        self._replacements.end(device_id)
        self._devices.revoke(user_id, device_id, reason or "decommissioned")

    async def _withdraw(self, user_id: int, device_id: int, planned: dict[str, Any], how: Decommissioning) -> None:
        cert_id = planned["id"]
        if planned["action"] == REVOKE:  # another device may have got it since
            planned |= await self._db.work(self._fate_now, device_id, cert_id, how)
        if planned["action"] == REVOKE:
            reason = how.reason or "its device was decommissioned"
            await self._certificates.revoke(user_id, cert_id, reason=reason, reason_code=how.reason_code)
        await _if_there(self._certificates.unassign(user_id, device_id, cert_id))

    def _finish(self, device_id: int) -> None:
        sql = (
            "UPDATE devices SET decommissioned_at = ? WHERE id = ? AND decommissioned_at IS NULL AND status = 'revoked'"
        )
        self._db.run(sql, self._wall_now(), device_id)

    def _held(self, device_id: int) -> list[Row]:
        return self._db.all(
            "SELECT c.id, c.domain_name, c.sans, c.status, c.serial_number, c.key_origin FROM assignments a"
            " JOIN certificates c ON c.id = a.cert_id WHERE a.device_id = ? ORDER BY c.id",
            device_id,
        )


def _named(certificate: Row) -> dict[str, Any]:
    return {"id": certificate["id"], "name": certificate["domain_name"], "names": json.loads(certificate["sans"])}


async def _if_there(call: Any) -> None:
    """Await the withdrawal of something that another request may have withdrawn meanwhile."""
    try:
        await call
    except ErrorResponse as error:
        if error.status != 404:
            raise


class _Preview(Exception):
    """Rolls a unit of work back, with what it would have returned."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


async def previewed(
    database: Database, change: Callable[..., dict[str, Any]], *arguments: Any, dry_run: bool
) -> dict[str, Any]:
    """Run a change in a unit of work and return its result; with ``dry_run``, roll it back."""
    if not dry_run:
        return await database.work_long(change, *arguments) | {"dry_run": False}

    def unit() -> NoReturn:
        raise _Preview(change(*arguments))

    try:
        await database.work_long(unit)
    except _Preview as preview:
        found = dict(preview.result)
        found.pop("token", None)
        return found | {"dry_run": True}
    raise AssertionError("the unit of work raises")
