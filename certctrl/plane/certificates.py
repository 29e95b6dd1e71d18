"""Certificates: issue, renew, revoke and assign; each change is signalled to the assigned devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from certctrl.plane.ca.domains import clean_names, collides
from certctrl.plane.ca.issuer import Issued, Issuer
from certctrl.plane.ca.sealing import seal_private_key
from certctrl.plane.ca.x509 import KEY_TYPES
from certctrl.plane.clock import when
from certctrl.plane.devices import require_device, require_user
from certctrl.plane.errors import bad_request, conflict, gone, not_found
from certctrl.plane.settings import DAY, PlaneSettings
from certctrl.plane.shared_limits import SharedBuckets
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.signal_stream import SignalStream

MAX_VALIDITY = 366 * DAY
MIN_VALIDITY = 10


class Certificates:
    """The table of certificates and their assignments to devices."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        issuer: Issuer,
        stream: SignalStream,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._keyring = keyring
        self._issuer = issuer
        self._stream = stream
        self._settings = settings
        self._wall_now = wall_now
        self._requests = SharedBuckets(database, "renewals", 0.1, 5, wall_now)
        """Renewals that a device may request: a burst of five, then one every ten seconds."""
        self._reserved: tuple[str, ...] = ()

    def reserve(self, names: Collection[str]) -> list[dict[str, Any]]:
        """Issue and renew nothing that is valid for one of these canonical names from now on.

        Returns the certificates that are already valid for one.
        """
        self._reserved = tuple(names)
        rows = self._db.all(
            "SELECT * FROM certificates WHERE status = 'active' AND not_after > ? ORDER BY id", self._wall_now()
        )
        return [self._summary(row) for row in rows if self._taken(json.loads(row["sans"]))]

    async def issue(
        self,
        user_id: int,
        domains: Sequence[str],
        *,
        key_type: str = KEY_TYPES[0],
        validity_seconds: int | None = None,
        device_ids: Collection[int] = (),
    ) -> dict[str, Any]:
        """Issue a certificate for ``domains`` (the first is primary) and assign it to devices of the user."""
        names = clean_names(domains)
        self._refuse_reserved(names)
        validity = self._settings.certificate_seconds if validity_seconds is None else validity_seconds
        if key_type not in KEY_TYPES:
            raise bad_request(f"key_type must be one of {', '.join(KEY_TYPES)}", field="key_type")
        if not MIN_VALIDITY <= validity <= MAX_VALIDITY:
            what = f"validity_seconds must be {MIN_VALIDITY} to {MAX_VALIDITY}"
            raise bad_request(what, field="validity_seconds")
        await self._db.work_long(self._require_owner, user_id, device_ids)
        issued = await self._issuer.issue(names, key_type=key_type, validity_seconds=validity)
        return await self._db.work_long(self._add, user_id, names, key_type, validity, issued, device_ids)

    def _require_owner(self, user_id: int, device_ids: Collection[int]) -> None:
        require_user(self._db, user_id)
        for device_id in device_ids:
            require_device(self._db, user_id, device_id)

    def _add(
        self,
        user_id: int,
        names: Sequence[str],
        key_type: str,
        validity_seconds: int,
        issued: Issued,
        device_ids: Collection[int],
    ) -> dict[str, Any]:
        now = self._wall_now()
        cert_id = self._db.insert(
            "INSERT INTO certificates (user_id, domain_name, sans, key_type, validity_seconds, status,"
            " serial_number, fingerprint_sha256, not_before, not_after, certificate_pem, chain_pem,"
            " private_key_enc, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, 'active', '', '', 0, 0, '', '', ?, ?, ?)",
            user_id,
            names[0],
            json.dumps(names),
            key_type,
            validity_seconds,
            b"",
            now,
            now,
        )
        self._store(cert_id, issued, "issue", "", None)
        self._assign_to(sorted(set(device_ids)), cert_id, issued.serial_number)
        return self.show(user_id, cert_id)

    async def renew(
        self, user_id: int, cert_id: int, *, reason: str = "", device_id: int | None = None
    ) -> dict[str, Any]:
        """Replace key and certificate, signal the assigned devices, and return the issue: ``{"id", "status", …}``.

        A device (``device_id``) may renew only assigned certificates that are not revoked, within its rate limit. If
        another device has just renewed the certificate, it gets that renewal.
        """
        row, shared = await self._db.work(self._begin_renewal, user_id, cert_id, device_id)
        if shared is not None:
            return shared
        issued = await self._issuer.issue(
            json.loads(row["sans"]), key_type=row["key_type"], validity_seconds=row["validity_seconds"]
        )
        return await self._db.work_long(self._finish_renewal, user_id, cert_id, issued, reason, device_id)

    def _begin_renewal(self, user_id: int, cert_id: int, device_id: int | None) -> tuple[Row, dict[str, Any] | None]:
        """Return the certificate, and another device's renewal if that is recent enough to share."""
        row = self._row(user_id, cert_id)
        self._refuse_reserved(json.loads(row["sans"]))
        return row, None if device_id is None else self._device_request(row, device_id)

    def _finish_renewal(
        self, user_id: int, cert_id: int, issued: Issued, reason: str, device_id: int | None
    ) -> dict[str, Any]:
        row = self._locked_row(user_id, cert_id)
        if device_id is not None:  # the row may have changed while the key was generated
            self._require_renewable(row, device_id)
        issue_id = self._store(cert_id, issued, "renew", reason, device_id)
        renewed = {"cert_id": cert_id, "serial": issued.serial_number}
        self._stream.append_to_all(self._holders(cert_id), "cert.renewed", renewed)
        return self._issue(issue_id)

    async def revoke(self, user_id: int, cert_id: int, *, reason: str = "") -> dict[str, Any]:
        """Revoke a certificate, until an operator renews it, and signal its devices."""
        return await self._db.work_long(self._revoke, user_id, cert_id, reason)

    def _revoke(self, user_id: int, cert_id: int, reason: str) -> dict[str, Any]:
        row = self._locked_row(user_id, cert_id)
        if row["status"] != "revoked":
            now = self._wall_now()
            self._db.run(
                "UPDATE certificates SET status = 'revoked', revoked_at = ?, revoke_reason = ?, updated_at = ?,"
                " private_key_enc = ? WHERE id = ?",
                now,
                reason,
                now,
                b"",
                cert_id,
            )
            self._log(cert_id, "revoke", reason, None, row["serial_number"])
            self._stream.append_to_all(self._holders(cert_id), "cert.revoked", {"cert_id": cert_id})
        return self.show(user_id, cert_id)

    async def assign(self, user_id: int, device_id: int, cert_id: int) -> dict[str, Any]:
        """Assign a certificate to a device; idempotent."""
        return await self._db.work_long(self._assign, user_id, device_id, cert_id)

    def _assign(self, user_id: int, device_id: int, cert_id: int) -> dict[str, Any]:
        row = self._locked_row(user_id, cert_id)
        require_device(self._db, user_id, device_id)
        if row["status"] == "revoked":
            raise conflict("This certificate is revoked", "CERT_REVOKED")
        if not self._is_assigned(device_id, cert_id):
            self._assign_to([device_id], cert_id, row["serial_number"])
        return self.show(user_id, cert_id)

    async def unassign(self, user_id: int, device_id: int, cert_id: int) -> None:
        """Unassign a certificate from a device; ErrorResponse 404 if it is not assigned."""
        await self._db.work(self._unassign, user_id, device_id, cert_id)

    def _unassign(self, user_id: int, device_id: int, cert_id: int) -> None:
        self._locked_row(user_id, cert_id)
        require_device(self._db, user_id, device_id)
        if not self._db.run("DELETE FROM assignments WHERE device_id = ? AND cert_id = ?", device_id, cert_id):
            raise not_found("Not assigned to this device")
        self._stream.append(device_id, "cert.unassigned", {"cert_id": cert_id})

    def page_of_user(self, user_id: int, after_id: int, limit: int) -> list[dict[str, Any]]:
        """Return up to ``limit`` certificates of a user with ids above ``after_id``, by id, as operators see them."""
        require_user(self._db, user_id)
        sql = "SELECT * FROM certificates WHERE user_id = ? AND id > ? ORDER BY id LIMIT ?"
        return self._shown(self._db.all(sql, user_id, after_id, limit))

    def show(self, user_id: int, cert_id: int) -> dict[str, Any]:
        """Return one certificate as operators see it."""
        return self._shown([self._row(user_id, cert_id)])[0]

    def page(self, device_id: int, after_id: int, limit: int) -> list[dict[str, Any]]:
        """Return summaries of a device's certificates with ids above ``after_id``, by id."""
        rows = self._db.all(
            "SELECT c.* FROM certificates c JOIN assignments a ON a.cert_id = c.id"
            " WHERE a.device_id = ? AND c.id > ? ORDER BY c.id LIMIT ?",
            device_id,
            after_id,
            limit,
        )
        return [self._summary(row) for row in rows]

    def detail(self, device_id: int, cert_id: int) -> dict[str, Any]:
        """Return ``CertificateDetail``; ErrorResponse 404 unless the certificate is assigned to the device."""
        row = self._assigned(device_id, cert_id)
        return self._summary(row) | {"certificate_pem": row["certificate_pem"], "chain_pem": row["chain_pem"]}

    def materials(self, device_id: int, cert_id: int) -> dict[str, Any]:
        """Return ``DeployMaterials``, sealed to the device's key; ErrorResponse 404, or 410 if revoked."""
        row = self._assigned(device_id, cert_id)
        if row["status"] == "revoked":
            raise gone("This certificate is revoked", "CERT_REVOKED")
        device = self._db.one("SELECT public_key FROM devices WHERE id = ?", device_id)
        if device is None or device["public_key"] is None:
            raise conflict("The device has no key yet", "WRAP_PENDING")
        key = self._keyring.unseal(f"certificate {cert_id}", row["private_key_enc"])
        return seal_private_key(key, device["public_key"]) | {
            "certificate_pem": row["certificate_pem"],
            "chain_pem": row["chain_pem"],
            "serial_number": row["serial_number"],
        }

    def delete_expired(self) -> None:
        """Delete limits that no longer count."""
        self._requests.delete_expired()

    def _taken(self, names: Collection[str]) -> list[str]:
        """Return the names that would make a certificate valid for a reserved one."""
        return [name for name in names if any(collides(name, reserved) for reserved in self._reserved)]

    def _refuse_reserved(self, names: Collection[str]) -> None:
        taken = self._taken(names)
        if taken:
            what = f"{taken[0]} is, or covers, a name of this control plane, which has its certificate from another CA"
            raise conflict(what, "NAME_RESERVED", names=taken)

    def _device_request(self, row: Row, device_id: int) -> dict[str, Any] | None:
        """Check a device's renewal request; return another device's renewal if it is recent enough to share."""
        self._require_renewable(row, device_id)
        last = self._db.one(
            "SELECT * FROM issues WHERE cert_id = ? AND action = 'renew' AND at > ? AND device_id != ?"
            " ORDER BY id DESC LIMIT 1",
            row["id"],
            self._wall_now() - self._settings.shared_renewal_seconds,
            device_id,
        )
        if last is not None:
            return self._issue(last["id"])
        self._requests.take(str(device_id))
        return None

    def _require_renewable(self, row: Row, device_id: int) -> None:
        if not self._is_assigned(device_id, row["id"]):
            raise not_found("No such certificate")
        if row["status"] == "revoked":
            raise conflict("This certificate is revoked; an operator must renew it", "CERT_REVOKED")

    def _store(self, cert_id: int, issued: Issued, action: str, reason: str, device_id: int | None) -> int:
        self._db.run(
            "UPDATE certificates SET status = 'active', serial_number = ?, fingerprint_sha256 = ?, not_before = ?,"
            " not_after = ?, certificate_pem = ?, chain_pem = ?, private_key_enc = ?, updated_at = ?,"
            " revoked_at = NULL, revoke_reason = '' WHERE id = ?",
            issued.serial_number,
            issued.fingerprint_sha256,
            issued.not_before,
            issued.not_after,
            issued.certificate_pem,
            issued.chain_pem,
            self._keyring.seal(f"certificate {cert_id}", issued.private_key_der),
            self._wall_now(),
            cert_id,
        )
        return self._log(cert_id, action, reason, device_id, issued.serial_number)

    def _log(self, cert_id: int, action: str, reason: str, device_id: int | None, serial: str) -> int:
        return self._db.insert(
            "INSERT INTO issues (cert_id, action, reason, device_id, serial_number, status, at)"
            " VALUES (?, ?, ?, ?, ?, 'done', ?)",
            cert_id,
            action,
            reason,
            device_id,
            serial,
            self._wall_now(),
        )

    def _issue(self, issue_id: int) -> dict[str, Any]:
        row = self._db.one("SELECT * FROM issues WHERE id = ?", issue_id)
        if row is None:
            raise not_found("No such issue")
        return {name: row[name] for name in ("id", "cert_id", "action", "status", "serial_number")}

    def _assign_to(self, device_ids: Sequence[int], cert_id: int, serial: str) -> None:
        for device_id in device_ids:
            self._db.run("INSERT INTO assignments VALUES (?, ?, ?)", device_id, cert_id, self._wall_now())
        self._stream.append_to_all(device_ids, "cert.renewed", {"cert_id": cert_id, "serial": serial})

    def _holders(self, cert_id: int) -> list[int]:
        rows = self._db.all("SELECT device_id FROM assignments WHERE cert_id = ? ORDER BY device_id", cert_id)
        return [row["device_id"] for row in rows]

    def _is_assigned(self, device_id: int, cert_id: int) -> bool:
        sql = "SELECT 1 FROM assignments WHERE device_id = ? AND cert_id = ?"
        return self._db.one(sql, device_id, cert_id) is not None

    def _assigned(self, device_id: int, cert_id: int) -> Row:
        row = self._db.one(
            "SELECT c.* FROM certificates c JOIN assignments a ON a.cert_id = c.id WHERE a.device_id = ? AND c.id = ?",
            device_id,
            cert_id,
        )
        if row is None:
            raise not_found("No such certificate")
        return row

    def _row(self, user_id: int, cert_id: int) -> Row:
        row = self._db.one("SELECT * FROM certificates WHERE id = ? AND user_id = ?", cert_id, user_id)
        if row is None:
            raise not_found("No such certificate")
        return row

    def _locked_row(self, user_id: int, cert_id: int) -> Row:
        """Return the row of a certificate for a change of it or of its assignments."""
        row = self._db.one_locked("SELECT * FROM certificates WHERE id = ? AND user_id = ?", cert_id, user_id)
        if row is None:
            raise not_found("No such certificate")
        return row

    def _summary(self, row: Row) -> dict[str, Any]:
        expired = row["status"] == "active" and row["not_after"] <= self._wall_now()
        return {
            "id": row["id"],
            "domain_name": row["domain_name"],
            "sans": json.loads(row["sans"]),
            "serial_number": row["serial_number"],
            "fingerprint_sha256": row["fingerprint_sha256"],
            "not_before": when(row["not_before"]),
            "not_after": when(row["not_after"]),
            "status": "expired" if expired else row["status"],
            "updated_at": when(row["updated_at"]),
        }

    def _shown(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        holders: dict[int, list[int]] = {row["id"]: [] for row in rows}
        if holders:
            for found in self._db.all(
                f"SELECT cert_id, device_id FROM assignments WHERE cert_id IN ({marks(list(holders))})"
                " ORDER BY cert_id, device_id",
                *holders,
            ):
                holders[found["cert_id"]].append(found["device_id"])
        return [
            self._summary(row)
            | {
                "key_type": row["key_type"],
                "validity_seconds": row["validity_seconds"],
                "revoked_at": when(row["revoked_at"]),
                "revoke_reason": row["revoke_reason"],
                "device_ids": holders[row["id"]],
            }
            for row in rows
        ]
