"""CertificateTable: certificates, their issues and their assignments; all in the caller's unit of work.

A certificate that is not yet issued has an empty serial number and ``not_after`` 0; its devices get no signals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cryptography.x509 import load_pem_x509_certificate

from certctrl import lean
from certctrl.model.priority import Priority
from certctrl.plane.ca.issuer import Issued
from certctrl.plane.certificates.holds import Holds
from certctrl.plane.errors import not_found
from certctrl.plane.issuers.issuer import BUILTIN
from certctrl.plane.orders.renewal_times import Life, due_at, late_at
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.signal_stream import SignalStream

KEY_AT_PLANE, KEY_AT_DEVICE = "plane", "device"
"""Where the key of a certificate is made (``key_origin``)."""


@lean.frozen(kw_only=True)
class NewCertificate:
    """The properties of a certificate to issue."""

    names: tuple[str, ...]
    key_type: str
    validity_seconds: int
    issuer: str = BUILTIN
    key_origin: str = KEY_AT_PLANE
    profile: str = ""
    must_staple: bool = False
    reuse_key: bool = False


def is_immediate(row: Row) -> bool:
    """Return whether a certificate is issued within the request: by the plane's CA, with a new key made here."""
    at_plane = row["issuer"] == BUILTIN and row["key_origin"] == KEY_AT_PLANE
    return at_plane and not row["must_staple"] and not row["reuse_key"]


class CertificateTable:
    """The tables ``certificates``, ``issues`` and ``assignments``."""

    def __init__(
        self, database: Database, keyring: Keyring, stream: SignalStream, wall_now: Callable[[], float]
    ) -> None:
        self._db = database
        self._keyring = keyring
        self._stream = stream
        self._wall_now = wall_now
        self.holds = Holds(database)
        self.on_stored: Callable[[int], object] = lambda cert_id: None
        """Called in the unit of work with the id of a replaced certificate."""
        self.refuse_names: Callable[[Sequence[str]], object] = lambda names: None
        """Called in the unit of work before a certificate for names is stored; ErrorResponse 409 for a name of a plane."""
        self.on_assigned: Callable[[Sequence[int]], object] = lambda device_ids: None
        """Called in the unit of work with devices whose assignments have changed."""

    def row(self, user_id: int, cert_id: int) -> Row:
        """Return a certificate of a user; ErrorResponse 404."""
        row = self._db.one("SELECT * FROM certificates WHERE id = ? AND user_id = ?", cert_id, user_id)
        if row is None:
            raise not_found("No such certificate")
        return row

    def locked(self, user_id: int, cert_id: int) -> Row:
        """Return and lock a certificate of a user, to change it or its assignments; ErrorResponse 404."""
        row = self._db.one_locked("SELECT * FROM certificates WHERE id = ? AND user_id = ?", cert_id, user_id)
        if row is None:
            raise not_found("No such certificate")
        return row

    def locked_by_id(self, cert_id: int) -> Row | None:
        """Return and lock a certificate of any user, to change it."""
        return self._db.one_locked("SELECT * FROM certificates WHERE id = ?", cert_id)

    def add(self, user_id: int, new: NewCertificate) -> int:
        """Add a certificate that is not yet issued; return its id."""
        now = self._wall_now()
        return self._db.insert(
            "INSERT INTO certificates (user_id, domain_name, sans, key_type, validity_seconds, issuer, key_origin,"
            " profile, must_staple, reuse_key, status, serial_number, fingerprint_sha256, not_before, not_after,"
            " certificate_pem, chain_pem, private_key_enc, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'active', '', '', 0, 0, '', '', ?, ?, ?)",
            user_id,
            new.names[0],
            json.dumps(new.names),
            new.key_type,
            new.validity_seconds,
            new.issuer,
            new.key_origin,
            new.profile,
            int(new.must_staple),
            int(new.reuse_key),
            b"",
            now,
            now,
        )

    def store(
        self, cert_id: int, issued: Issued, action: str, reason: str, device_id: int | None, *, batch: str = ""
    ) -> int:
        """Replace certificate, chain and key; return the id of the issue. The key is empty if a device has it.

        ``batch``: the batch in which it was issued. ErrorResponse 409 for a name of a plane.
        """
        row = self._db.one("SELECT sans FROM certificates WHERE id = ?", cert_id)
        self.refuse_names(json.loads(row["sans"]) if row is not None else ())
        key = issued.private_key_der
        self._keep_former(cert_id, issued.serial_number)
        self._db.run(
            "UPDATE certificates SET status = 'active', issued_by = issuer, serial_number = ?, fingerprint_sha256 = ?, not_before = ?,"
            " not_after = ?, certificate_pem = ?, chain_pem = ?, private_key_enc = ?, public_key_sha256 = ?,"
            " renew_at = ?, updated_at = ?, revoked_at = NULL, revoke_reason = '', revoke_code = '', batch = ? WHERE id = ?",
            issued.serial_number,
            issued.fingerprint_sha256,
            issued.not_before,
            issued.not_after,
            issued.certificate_pem,
            issued.chain_pem,
            self._keyring.seal(f"certificate {cert_id}", key) if key else b"",
            issued.public_key_sha256,
            due_at(Life(issued.not_before, issued.not_after), issued.serial_number),
            self._wall_now(),
            batch,
            cert_id,
        )
        self.holds.note_stored(cert_id, action if key else "")
        self.on_stored(cert_id)
        return self.log(cert_id, action, reason, device_id, issued.serial_number)

    def _keep_former(self, cert_id: int, new_serial: str) -> None:
        """Keep a replaced certificate until it expires: revoking it at a CA needs the certificate."""
        self._db.run(
            "INSERT INTO former_certificates SELECT serial_number, id, CASE WHEN issued_by = '' THEN issuer ELSE issued_by"
            " END, certificate_pem, chain_pem, not_after, ? FROM certificates WHERE id = ? AND serial_number != ''"
            " AND serial_number != ? ON CONFLICT (cert_id, serial_number) DO NOTHING",
            *(self._wall_now(), cert_id, new_serial),
        )

    def key_of(self, row: Row) -> bytes:
        """Return the private key of a certificate; empty if the plane does not have it."""
        sealed = bytes(row["private_key_enc"])
        return self._keyring.unseal(f"certificate {row['id']}", sealed) if sealed else b""

    def announce(self, cert_id: int, serial: str, *, replaces_revoked: bool = False) -> None:
        """Signal a new certificate to its devices, more urgently if theirs is revoked or near its end.

        Devices that a rollout holds at the former one are left out.
        """
        self.announce_to(self.holders(cert_id, held=False), cert_id, serial, replaces_revoked=replaces_revoked)

    def announce_to(
        self, device_ids: Sequence[int], cert_id: int, serial: str, *, replaces_revoked: bool = False
    ) -> None:
        """Signal a new certificate to some of its devices, as ``announce``."""
        priority = self.priority_of({cert_id: serial}, [cert_id] if replaces_revoked else ())
        self._stream.append_to_all(device_ids, "cert.renewed", {"cert_id": cert_id, "serial": serial}, priority)

    def priority_of(self, serials: Mapping[int, str], replaced: Collection[int]) -> Priority | None:
        """Return the class of the signals of new certificates, some of which replace revoked ones; None: the usual one."""
        if replaced:
            return Priority.REVOCATION
        ending = any(self._former_is_ending(cert_id, serial) for cert_id, serial in serials.items())
        return Priority.EXPIRING if ending else None

    def _former_is_ending(self, cert_id: int, serial: str) -> bool:
        """Return whether less than a third of the previous certificate's life is left."""
        former = self._db.one(
            "SELECT certificate_pem, not_after FROM former_certificates WHERE cert_id = ? AND serial_number != ?"
            " ORDER BY replaced_at DESC, not_after DESC LIMIT 1",
            *(cert_id, serial),
        )
        if former is None:
            return False
        try:
            begins = load_pem_x509_certificate(former["certificate_pem"].encode()).not_valid_before_utc.timestamp()
        except ValueError:  # only the priority depends on it
            return False
        return self._wall_now() > late_at(Life(begins, former["not_after"]), is_imported=False)

    def log(self, cert_id: int, action: str, reason: str, device_id: int | None, serial: str) -> int:
        """Record a change as an issue; return its id."""
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

    def issue(self, issue_id: int) -> dict[str, Any]:
        """Return an issue; ErrorResponse 404."""
        row = self._db.one("SELECT * FROM issues WHERE id = ?", issue_id)
        if row is None:
            raise not_found("No such issue")
        return {name: row[name] for name in ("id", "cert_id", "action", "status", "serial_number")}

    def assign(self, device_ids: Sequence[int], cert_id: int, serial: str) -> None:
        """Assign a certificate to devices, and signal it to them if it is issued.

        During a rollout, they get the version of the devices that are still held.
        """
        serial = self.holds.begin_as_others(cert_id, device_ids) or serial
        for device_id in device_ids:
            self._db.run("INSERT INTO assignments VALUES (?, ?, ?)", device_id, cert_id, self._wall_now())
        self.on_assigned(device_ids)
        if serial:
            self._stream.append_to_all(device_ids, "cert.renewed", {"cert_id": cert_id, "serial": serial})

    def unassign(self, device_id: int, cert_id: int) -> bool:
        """Unassign a certificate from a device, and signal it; return False if it was not assigned."""
        self._db.run("DELETE FROM endpoints WHERE device_id = ? AND cert_id = ?", device_id, cert_id)
        if not self._db.run("DELETE FROM assignments WHERE device_id = ? AND cert_id = ?", device_id, cert_id):
            return False
        self.holds.end(cert_id, [device_id])
        self.on_assigned([device_id])  # takes the lock of profiles, which comes before that of the stream
        self._stream.append(device_id, "cert.unassigned", {"cert_id": cert_id})
        return True

    def holders(self, cert_id: int, *, held: bool = True) -> list[int]:
        """Return the devices that a certificate is assigned to; without ``held``, those that no rollout holds."""
        free = (
            ""
            if held
            else (
                " AND NOT EXISTS (SELECT 1 FROM certificate_holds h WHERE h.cert_id = a.cert_id AND h.device_id = a.device_id)"
            )
        )
        sql = f"SELECT a.device_id FROM assignments a WHERE a.cert_id = ?{free} ORDER BY a.device_id"
        return [row["device_id"] for row in self._db.all(sql, cert_id)]

    def is_assigned(self, device_id: int, cert_id: int) -> bool:
        """Return whether a certificate is assigned to a device."""
        sql = "SELECT 1 FROM assignments WHERE device_id = ? AND cert_id = ?"
        return self._db.one(sql, device_id, cert_id) is not None

    def of_device(self, device_id: int, cert_id: int) -> Row:
        """Return a certificate that is assigned to a device; ErrorResponse 404."""
        row = self._db.one(
            "SELECT c.* FROM certificates c JOIN assignments a ON a.cert_id = c.id WHERE a.device_id = ? AND c.id = ?",
            device_id,
            cert_id,
        )
        if row is None:
            raise not_found("No such certificate")
        return row
