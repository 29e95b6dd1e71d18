"""Facts of the files of a certificate: names, issuer, end, kind of key, and whether the key belongs to it.

A private key is read only to compare its public half; nothing of it is kept or shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from certctrl import lean
from certctrl.install.adopt.sources import HostFiles, UnreadableError
from certctrl.install.material.private_key import UNREADABLE

LIMIT = 1024 * 1024
MAX_CERTIFICATES = 50
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_UNREADABLE = (*UNREADABLE, x509.DuplicateExtension, UnicodeError)


@lean.frozen(kw_only=True)
class Leaf:
    """Facts of a certificate in use."""

    names: tuple[str, ...]
    """DNS names and addresses, the one of the subject first."""
    issuer: str
    not_after: float
    """Seconds since the epoch."""
    key: str
    """Kind of key, such as ``ECDSA secp256r1``."""
    fingerprint: str
    """SHA-256 of the certificate, lower-case hex."""
    public_key: str
    """SHA-256 of its public key, lower-case hex."""
    is_self_signed: bool = False
    is_ca: bool = False


@lean.frozen(kw_only=True)
class PemFile:
    """The contents of a file, without secrets."""

    path: str
    leaf: Leaf | None = None
    """The first certificate."""
    certificates: int = 0
    public_key: str = ""
    """Of the private key in it; empty: there is none, or it cannot be read."""
    has_key: bool = False
    key_is_last: bool = False
    is_encrypted: bool = False
    """Whether the private key is encrypted."""
    fault: str = ""
    """Why the file is of no use."""


def read_pem(files: HostFiles, path: str) -> PemFile:
    """Return the facts of a PEM file."""
    try:
        data = files.read(path, LIMIT)
    except UnreadableError as error:
        return PemFile(path=path, fault=f"cannot be read: {error}")
    blocks = [found[1] for found in _BLOCK.finditer(data)]
    keys = [number for number, block in enumerate(blocks) if block.endswith(b"PRIVATE KEY")]
    certificates = [number for number, block in enumerate(blocks) if block in (b"CERTIFICATE", b"X509 CERTIFICATE")]
    if not keys and not certificates:
        return PemFile(path=path, fault="has no certificate and no key in PEM format")
    leaf, fault = _leaf(data) if certificates else (None, "")
    public, is_encrypted, key_fault = _public_half(data) if keys else ("", False, "")
    return PemFile(
        path=path,
        leaf=leaf,
        certificates=len(certificates),
        public_key=public,
        has_key=bool(keys),
        key_is_last=bool(keys and certificates) and keys[0] > certificates[0],
        is_encrypted=is_encrypted,
        fault=fault or key_fault,
    )


def _leaf(data: bytes) -> tuple[Leaf | None, str]:
    begin, end = b"-----BEGIN ", b"-----END "
    start = min(found for kind in (b"CERTIFICATE", b"X509 CERTIFICATE") if (found := data.find(begin + kind)) >= 0)
    stop = data.find(end, start)
    stop = data.find(b"\n", stop) if stop >= 0 else -1
    try:
        return leaf_facts(x509.load_pem_x509_certificate(data[start : stop if stop >= 0 else len(data)] + b"\n")), ""
    except _UNREADABLE:
        return None, "has a certificate that cannot be read"


def leaf_facts(leaf: x509.Certificate) -> Leaf:
    """Return the facts of a certificate. Raises ValueError and others of ``cryptography`` for malformed ones."""
    key = leaf.public_key()
    match key:
        case rsa.RSAPublicKey():
            kind = f"RSA {key.key_size}"
        case ec.EllipticCurvePublicKey():
            kind = f"ECDSA {key.curve.name}"
        case _:
            kind = type(key).__name__.removesuffix("PublicKey").lstrip("_")
    try:
        is_ca = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    return Leaf(
        names=_names(leaf),
        issuer=_short(leaf.issuer),
        not_after=leaf.not_valid_after_utc.timestamp(),
        key=kind,
        fingerprint=sha256(leaf.public_bytes(Encoding.DER)).hexdigest(),
        public_key=_digest(key),
        is_self_signed=leaf.issuer == leaf.subject,
        is_ca=is_ca,
    )


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    subject = [str(one.value).lower() for one in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return tuple(subject)
    names = [name.lower() for name in san.get_values_for_type(x509.DNSName)]
    names += [str(address) for address in san.get_values_for_type(x509.IPAddress)]
    return tuple(dict.fromkeys((*(name for name in subject if name in names), *names)))


def _short(name: x509.Name) -> str:
    """Return the common name of an issuer, with its organization."""
    parts = [
        str(one.value)
        for oid in (x509.NameOID.ORGANIZATION_NAME, x509.NameOID.COMMON_NAME)
        for one in name.get_attributes_for_oid(oid)
    ]
    return " ".join(parts) or name.rfc4514_string()


def _public_half(data: bytes) -> tuple[str, bool, str]:
    """Return the digest of a key's public half, whether it is encrypted, and why it cannot be read."""
    starts = [found.start() for found in _BLOCK.finditer(data) if found[1].endswith(b"PRIVATE KEY")]
    try:
        return _digest(load_pem_private_key(data[starts[0] :], None).public_key()), False, ""
    except TypeError:
        return "", True, "has an encrypted key"
    except _UNREADABLE:
        return "", False, "has a key that cannot be read"


def _digest(key: object) -> str:
    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return sha256(der).hexdigest()


def chosen_leaf(files: Sequence[PemFile]) -> Leaf | None:
    """Return the certificate of several files: the first that is not a CA's, otherwise the first."""
    leaves = [file.leaf for file in files if file.leaf is not None]
    return next((leaf for leaf in leaves if not leaf.is_ca), next(iter(leaves), None))
