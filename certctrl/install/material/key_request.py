"""Make private keys on this host, and sign certificate requests with them (PKCS#10, RFC 2986).

A key never leaves the host: a request carries its public half and proves possession of the other one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from certctrl.errors import MaterialError
from certctrl.install.material.private_key import PrivateKey, load_key
from certctrl.model.policy import KeyType

_MAX_COMMON_NAME = 64
_RSA_EXPONENT = 65_537


def new_key_pem(kind: KeyType) -> bytes:
    """Return a new private key as unencrypted PKCS#8 PEM; RSA keys take up to some seconds."""
    return _new_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _new_key(kind: KeyType) -> PrivateKey:
    match kind:
        case KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyType.RSA_2048 | KeyType.RSA_3072 | KeyType.RSA_4096:
            return rsa.generate_private_key(_RSA_EXPONENT, int(kind.value.removeprefix("rsa-")))


def is_of_kind(pem: bytes, kind: KeyType) -> bool:
    """Return whether a private key in PEM is of a kind. Raises MaterialError if it cannot be read."""
    match load_key(pem):
        case rsa.RSAPrivateKey(key_size=bits):
            return kind.value == f"rsa-{bits}"
        case ec.EllipticCurvePrivateKey(curve=curve):
            return {"secp256r1": KeyType.P256, "secp384r1": KeyType.P384}.get(curve.name) is kind
        case ed25519.Ed25519PrivateKey():
            return kind is KeyType.ED25519
        case _:
            return False


def public_key_sha256(pem: bytes) -> str:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo (DER) in lower-case hex, from its private half in PEM.

    Raises MaterialError if it cannot be read.
    """
    der = load_key(pem).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def signing_request(pem: bytes, names: Sequence[str], *, must_staple: bool = False) -> str:
    """Return a request in PEM for DNS names and addresses, the primary one first. Raises MaterialError."""
    key = load_key(pem)
    try:
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names[:1] if _fits_common_name(name)]
        builder = x509.CertificateSigningRequestBuilder(x509.Name(subject)).add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=not subject
        )
    except (ValueError, TypeError):
        raise MaterialError("a certificate cannot have these names", reason="san") from None
    if must_staple:
        builder = builder.add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    plain = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if plain else hashes.SHA256()).public_bytes(Encoding.PEM).decode("ascii")


def _fits_common_name(name: str) -> bool:
    return len(name) <= _MAX_COMMON_NAME and isinstance(_general_name(name), x509.DNSName)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
