"""Imports: add certificates from elsewhere, with their keys.

The chain is sorted, completed and checked before anything is stored. A certificate for the same names as an imported
one is its renewal, and keeps its id. The plane cannot renew an imported certificate: its owner imports the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

from certctrl import lean
from certctrl.errors import MaterialError
from certctrl.plane.ca.domains import clean_names
from certctrl.plane.ca.issuer import Issued
from certctrl.plane.ca.x509 import fingerprint, pem_of, serial_text
from certctrl.plane.certificates.certificates import (
    MAX_VALIDITY,
    MIN_VALIDITY,
    Certificates,
    IssuingParts,
    refuse_rollout,
)
from certctrl.plane.certificates.chains import (
    UNREADABLE,
    Chain,
    certificates_of,
    chain_of,
    key_bytes,
    require_strong,
    require_valid,
    subject,
)
from certctrl.plane.certificates.table import NewCertificate
from certctrl.plane.clock import rfc3339
from certctrl.plane.devices.devices import require_device, require_user
from certctrl.plane.errors import ErrorResponse, bad_request, conflict
from certctrl.plane.issuers.registry import IMPORT
from certctrl.plane.storage.database import Database, Row
from certctrl.text import one_line

MAX_BYTES = 512 * 1024
"""Bytes of one file, and of one field of a request."""
MAX_RSA_BITS = 8192
RollOut = Callable[[Row], dict[str, Any]]
"""Called in the unit of work with a certificate whose row is locked, before it is replaced: holds its devices at it."""
_EXPORT_KEY = "openssl pkey -in FILE -out NEW-FILE"


@lean.frozen(kw_only=True)
class ImportRequest:
    """Certificates and key of an operator, in PEM and in any order."""

    certificate_pem: str
    private_key_pem: str = attrs.field(repr=False)
    chain_pem: str = ""


@lean.frozen(kw_only=True)
class CheckedImport:
    """A certificate that may be imported."""

    names: tuple[str, ...]
    chain: Chain
    key_der: bytes = attrs.field(repr=False)
    """Unencrypted PKCS#8."""
    key_type: str
    """The key type for a renewal by another issuer."""

    def issued(self) -> Issued:
        """Return the certificate as an issuer returns it."""
        leaf = self.chain.leaf
        return Issued(
            private_key_der=self.key_der,
            certificate_pem=self.chain.certificate_pem,
            chain_pem=self.chain.chain_pem,
            serial_number=serial_text(leaf),
            fingerprint_sha256=fingerprint(leaf),
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=leaf.not_valid_after_utc.timestamp(),
            public_key_sha256=hashlib.sha256(key_bytes(leaf.public_key())).hexdigest(),
        )


def from_pkcs12(data: bytes, password: bytes) -> ImportRequest:
    """Return the contents of a PKCS#12 file. Raises MaterialError."""
    try:
        found = load_pkcs12(data, password or None)
    except UNREADABLE:
        what = "the PKCS#12 file cannot be opened: it is damaged, or the password is wrong"
        raise MaterialError(what, reason="pkcs12", fix="check it: openssl pkcs12 -in FILE -info -noout") from None
    if found.key is None or found.cert is None:
        lacks = "a private key" if found.key is None else "a certificate"
        raise MaterialError(f"the PKCS#12 file has not {lacks}", reason="pkcs12", fix="export it again with its key")
    key = found.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    chain = "".join(pem_of(one.certificate) for one in found.additional_certs)
    return ImportRequest(certificate_pem=pem_of(found.cert.certificate), private_key_pem=key, chain_pem=chain)


def private_key(data: bytes, password: bytes = b"") -> Any:
    """Return the key of a PEM or DER file. Raises MaterialError."""
    load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
    try:  # validating a long RSA key would block the plane for seconds; _require_usable checks it
        return load(data, password or None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        if password:
            return private_key(data)
        what = "the private key is encrypted"
        raise MaterialError(what, reason="password", fix="give its password: --password-file FILE") from None
    except UNREADABLE:
        what = "the private key cannot be read" + (", or the password is wrong" if password else "")
        raise MaterialError(what, reason="key", fix=f"export it as PKCS#8: {_EXPORT_KEY}") from None


def check_import(request: ImportRequest, *, known: Collection[x509.Certificate] = (), now: float) -> CheckedImport:
    """Return the certificate for the key, with its chain; ``known`` certificates may end the chain.

    Raises MaterialError, and ErrorResponse 400 for names that the plane does not support.
    """
    key = private_key(request.private_key_pem.encode())
    found = certificates_of(request.certificate_pem + "\n" + request.chain_pem)
    wanted = key_bytes(key.public_key())
    ours = [one for one in found if key_bytes(one.public_key()) == wanted]
    if not ours:
        what = f"the private key does not belong to {subject(found[0])}" if found else "there is no certificate"
        reason = "key-mismatch" if found else "certificate"
        raise MaterialError(what, reason=reason, fix="give the certificate and the key that was made for it")
    leaf = max(ours, key=lambda one: one.not_valid_after_utc)
    if _is_ca(leaf):
        fix = "give the certificate of the service"
        raise MaterialError(f"{subject(leaf)} is the certificate of a CA", reason="ca", fix=fix)
    require_valid(leaf, now, "the certificate")
    require_strong(leaf, "the certificate")
    chain = chain_of(leaf, [one for one in found if one not in ours], known=known, now=now)
    _require_usable(key)
    key_der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return CheckedImport(names=_names(leaf), chain=chain, key_der=key_der, key_type=_key_type(key))


def _require_usable(key: Any) -> None:
    """Refuse RSA keys that are too long to serve with, or whose private half is wrong."""
    if not isinstance(key, rsa.RSAPrivateKey):
        return
    if key.key_size > MAX_RSA_BITS:
        what = f"the RSA key has {key.key_size} bits, more than {MAX_RSA_BITS}"
        raise MaterialError(what, reason="key", fix="get a certificate for an EC P-256 or RSA 3072 key")
    try:
        signature = key.sign(b"certctrl", padding.PKCS1v15(), hashes.SHA256())
        key.public_key().verify(signature, b"certctrl", padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, InternalError, *UNREADABLE):
        what = "the private key is damaged: its signatures are not valid"
        raise MaterialError(what, reason="key", fix="restore the key, or get a certificate for a new one") from None


def _is_ca(leaf: x509.Certificate) -> bool:
    try:
        return leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        what = "the certificate has no subject alternative names, which clients require"
        raise MaterialError(what, reason="names", fix="get a certificate with them from its CA") from None
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    names = [*found.get_values_for_type(x509.DNSName), *addresses]
    if not names:
        others = [
            *found.get_values_for_type(x509.UniformResourceIdentifier),
            *found.get_values_for_type(x509.RFC822Name),
        ]
        such = f", only others such as {one_line(others[0], 100)}" if others else ""
        what = f"the certificate has no DNS name and no IP address{such}"
        raise MaterialError(what, reason="names", fix="get a certificate from its CA that has one of them, too")
    return clean_names(names)


def _key_type(key: Any) -> str:
    """Return the supported key type that is closest to a key."""
    match key:
        case rsa.RSAPrivateKey():
            return next((f"rsa-{bits}" for bits in (2048, 3072) if key.key_size <= bits), "rsa-4096")
        case ec.EllipticCurvePrivateKey():
            return "ecdsa-p256" if key.curve.name == "secp256r1" else "ecdsa-p384"
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case _:
            return "ecdsa-p256"


@lru_cache(maxsize=1)
def system_roots() -> tuple[x509.Certificate, ...]:
    """Return the CAs that this host trusts, without unreadable ones."""
    file = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    roots: list[x509.Certificate] = []
    with contextlib.suppress(OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few old roots have serial numbers that RFC 5280 forbids
        for block in Path(file).read_text(encoding="ascii", errors="replace").split("-----BEGIN CERTIFICATE-----")[1:]:
            with contextlib.suppress(*UNREADABLE):
                roots.append(x509.load_pem_x509_certificate(f"-----BEGIN CERTIFICATE-----{block}".encode()))
    return tuple(roots)


class Imports:
    """Imports of certificates."""

    def __init__(
        self,
        database: Database,
        certificates: Certificates,
        parts: IssuingParts,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._certificates = certificates
        self._table, self._orders, self._reserved = parts.table, parts.orders, parts.reserved
        self._wall_now = wall_now

    async def add(
        self,
        user_id: int,
        request: ImportRequest,
        *,
        cert_id: int | None = None,
        device_ids: Collection[int] = (),
        roll_out: RollOut | None = None,
    ) -> dict[str, Any]:
        """Import a certificate and assign it to devices; return it as operators see it, with ``notes``.

        It renews the certificate ``cert_id``, or an imported one for the same names; otherwise it is a new certificate.
        ``roll_out``: its devices get it in waves; what that returns is ``rollout``, None if they have it already.
        ErrorResponse 400 for unusable material, 404, and 409 for reserved names, other names and older certificates.
        """
        return await self._db.work_long(self._add, user_id, request, cert_id, sorted(set(device_ids)), roll_out)

    def _add(
        self,
        user_id: int,
        request: ImportRequest,
        cert_id: int | None,
        device_ids: Sequence[int],
        roll_out: RollOut | None,
    ) -> dict[str, Any]:
        require_user(self._db, user_id)
        for device_id in device_ids:
            require_device(self._db, user_id, device_id)
        try:
            checked = check_import(request, known=(*self._authorities(), *system_roots()), now=self._wall_now())
        except MaterialError as error:
            raise unusable(error) from None
        self._reserved.refuse(checked.names)
        self._refuse_revoked(user_id, checked)
        row = self._renewed(user_id, checked.names, cert_id)
        notes, rollout = list(checked.chain.notes), None
        if row is None and roll_out is not None:
            what = f"There is no certificate for {', '.join(checked.names[:5])} that it renews. Import it without waves"
            raise conflict(what, "NOT_IN_USE")
        if row is None:
            row = self._table.locked(user_id, self._new(user_id, checked))
        if row["serial_number"] == serial_text(checked.chain.leaf) and row["status"] == "active":
            notes.append("this certificate was imported already")
        else:
            rollout = self._store(row, checked, roll_out)
        missing = [one for one in device_ids if not self._table.is_assigned(one, row["id"])]
        self._table.assign(missing, row["id"], serial_text(checked.chain.leaf))
        shown = self._certificates.show(user_id, row["id"]) | {"notes": notes}
        return shown if roll_out is None else shown | {"rollout": rollout}

    def _refuse_revoked(self, user_id: int, checked: CheckedImport) -> None:
        """Refuse a certificate that was revoked here: importing it would serve it again."""
        revoked = self._db.one(
            "SELECT r.cert_id FROM revocations r JOIN certificates c ON c.id = r.cert_id"
            " WHERE c.user_id = ? AND r.serial_number = ? AND r.certificate_pem = ?",
            *(user_id, serial_text(checked.chain.leaf), checked.chain.certificate_pem),
        )
        if revoked is not None:
            what = f"This certificate was revoked as certificate {revoked['cert_id']}: get a new one from its CA"
            raise conflict(what, "CERT_REVOKED")

    def _renewed(self, user_id: int, names: tuple[str, ...], cert_id: int | None) -> Row | None:
        """Return the locked row that an import renews; None if it is a new certificate."""
        if cert_id is not None:
            row = self._table.locked(user_id, cert_id)
            if set(json.loads(row["sans"])) != set(names):
                what = f"Certificate {cert_id} is for {', '.join(json.loads(row['sans'])[:5])}; this one is for other names"
                raise conflict(what, "OTHER_NAMES", names=list(names))
            return row
        rows = self._db.all(
            "SELECT id, sans FROM certificates WHERE user_id = ? AND issuer = ? AND domain_name IN"
            f" ({', '.join('?' * len(names))}) ORDER BY status, id",
            *(user_id, IMPORT, *names),
        )
        same = next((row["id"] for row in rows if set(json.loads(row["sans"])) == set(names)), None)
        return None if same is None else self._table.locked(user_id, same)

    def _new(self, user_id: int, checked: CheckedImport) -> int:
        leaf = checked.chain.leaf
        life = int((leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds())
        return self._table.add(
            user_id,
            NewCertificate(
                names=checked.names,
                key_type=checked.key_type,
                validity_seconds=min(max(life, MIN_VALIDITY), MAX_VALIDITY),
                issuer=IMPORT,
            ),
        )

    def _store(self, row: Row, checked: CheckedImport, roll_out: RollOut | None) -> dict[str, Any] | None:
        issued = checked.issued()
        if row["status"] == "active" and issued.not_before < row["not_before"]:
            what = f"it is older than the certificate in use, which is valid from {rfc3339(row['not_before'])}"
            raise conflict(f"This certificate cannot renew certificate {row['id']}: {what}", "OLDER")
        if row["status"] == "active":
            refuse_rollout(self._table, row["id"])
        rollout = None if roll_out is None else roll_out(row)
        self._orders.cancel_of(row["id"], "a certificate was imported")
        self._db.run(
            "UPDATE certificates SET issuer = ?, key_origin = 'plane', key_type = ? WHERE id = ?",
            *(IMPORT, checked.key_type, row["id"]),
        )
        self._table.store(row["id"], issued, "import", "", None)
        self._table.announce(row["id"], issued.serial_number)
        return rollout

    def _authorities(self) -> list[x509.Certificate]:
        """Return the CAs that operators have stored."""
        rows = self._db.all("SELECT certificate_pem FROM authorities ORDER BY id LIMIT 1000")
        return [one for row in rows for one in certificates_of(row["certificate_pem"])]


def unusable(error: MaterialError) -> ErrorResponse:
    """Return the response for unusable material: 400 with the reason and the fix."""
    what = f"{error}; {error.fix}" if error.fix else str(error)
    return bad_request(what[:1].upper() + what[1:], reason=error.reason)
