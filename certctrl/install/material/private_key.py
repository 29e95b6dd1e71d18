"""Unseal a certificate's private key, convert it to PKCS#8 PEM and check that it is the leaf's.

The sealing is described in `docs/protocol.md`.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from certctrl.errors import HostKeyMissingError, MaterialError
from certctrl.model.certificate import DEVICE_KEY, DeployMaterials

if TYPE_CHECKING:
    from nacl.public import PrivateKey as BoxKey
    from nacl.public import SealedBox

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

MIN_RSA_BITS = 2048
GOOD_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
BRAINPOOL_CURVES = frozenset({"brainpoolP256r1", "brainpoolP384r1", "brainpoolP512r1"})
"""For TLS by RFC 7027 and RFC 8734; browsers do not know them."""
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, OverflowError, x509.InvalidVersion)
"""What `cryptography` raises for malformed bytes."""

_AGAIN = "register this device again: cert-ctrl -c DIR register"


def unsealed_key(materials: DeployMaterials, device_secret: bytes, *, allow_plaintext: bool) -> bytes:
    """Return the sealed private key, or the one made on this host; DER or PEM of any kind. Raises MaterialError."""
    if materials.enc_scheme == DEVICE_KEY:
        if not materials.host_key_pem:
            raise HostKeyMissingError("the key of this certificate was made on this host, but is no longer here")
        return materials.host_key_pem
    if materials.enc_scheme == "plaintext":
        return _plaintext_key(materials, allow_plaintext)
    if materials.enc_scheme != "aes256gcm" or materials.wrap_alg != "x25519":
        raise MaterialError(
            f"this version does not support the sealing of the key ({materials.wrap_alg}, {materials.enc_scheme})",
            reason="scheme",
            fix="update certctrl on this host",
        )
    if len(device_secret) != 32:
        raise MaterialError("this host has no device key to unseal the bundle with", reason="device-key", fix=_AGAIN)
    wrapped = _base64(materials.enc_data_key_b64, "enc_data_key_b64")
    nonce = _base64(materials.privkey_nonce_b64, "privkey_nonce_b64")
    tag = _base64(materials.privkey_tag_b64, "privkey_tag_b64")
    sealed = _base64(materials.enc_privkey_b64, "enc_privkey_b64")
    if len(nonce) != 12 or len(tag) != 16:
        raise MaterialError("the sealed key has a nonce or tag of the wrong length", reason="unsealing")
    data_key = _data_key(wrapped, device_secret, materials.device_keyfp_b64)
    try:
        return AESGCM(data_key).decrypt(nonce, sealed + tag, None)
    except (InvalidTag, ValueError):
        raise MaterialError("the sealed key was modified or belongs to another bundle", reason="unsealing") from None


@lru_cache(maxsize=1)
def _box(device_secret: bytes) -> tuple[SealedBox[BoxKey], bytes]:
    """Return this device's sealed box and public key; cached, as a burst opens a thousand bundles."""
    from nacl.public import PrivateKey, SealedBox

    key = PrivateKey(device_secret)
    return SealedBox(key), bytes(key.public_key)


def is_key_of(fingerprint_b64: str, public_key: bytes) -> bool:
    """Return whether a public key has this fingerprint, in base64 with or without padding."""
    ours = base64.b64encode(blake2b(public_key, digest_size=32).digest()).decode()
    return fingerprint_b64.rstrip("=") == ours.rstrip("=")


def _data_key(wrapped: bytes, device_secret: bytes, fingerprint_b64: str | None) -> bytes:
    """Return the data key. Raises MaterialError, with its own reason for a box that is sealed to another device."""
    from nacl.exceptions import CryptoError  # imported late: libsodium is needed here only

    box, public = _box(device_secret)
    try:
        data_key = box.decrypt(wrapped)
    except (CryptoError, ValueError, TypeError):
        if fingerprint_b64 and not is_key_of(fingerprint_b64, public):
            raise MaterialError(
                "the bundle is sealed to another device's key", reason="sealed-for-another-device", fix=_AGAIN
            ) from None
        raise MaterialError("this device's key does not open the sealed data key", reason="unsealing") from None
    if len(data_key) != 32:
        raise MaterialError("the sealed data key has the wrong length", reason="unsealing")
    return data_key


def _plaintext_key(materials: DeployMaterials, allowed: bool) -> bytes:
    if not allowed:
        raise MaterialError(
            "the plane sent the private key unsealed, which this host's policy forbids",
            reason="plaintext-refused",
            fix='register a device key, or add "plaintext_keys": true to policy.json',
        )
    if materials.private_key_pem:
        return materials.private_key_pem.encode()
    return _base64(materials.private_key_der_b64, "private_key_der_b64")


def _base64(text: str | None, field: str) -> bytes:
    if not text:
        raise MaterialError(f"the bundle has no {field}", reason="incomplete")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise MaterialError(f"{field} of the bundle is not base64", reason="incomplete") from None


def checked_key_pem(raw: bytes, leaf: x509.Certificate, *, brainpool: bool = False) -> bytes:
    """Return a key as PKCS#8 PEM after checking that it is strong, consistent and the leaf's. Raises MaterialError.

    Accepts PKCS#8, PKCS#1 and SEC1, each as DER or PEM. PKCS#8 DER goes into the PEM unchanged, so the staged bytes
    are the checked ones.
    """
    key = load_key(raw)
    _check_key(key, leaf)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        check_curve(key.curve, brainpool=brainpool)
    if _is_pkcs8(raw):
        return pem_block("PRIVATE KEY", raw)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _is_pkcs8(der: bytes) -> bool:
    """Return whether this is PKCS#8: after the version follows a SEQUENCE (PKCS#1: INTEGER, SEC1: OCTET STRING)."""
    if len(der) < 8 or der[0] != 0x30:
        return False
    start = 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)
    return der[start : start + 2] == b"\x02\x01" and der[start + 3 : start + 4] == b"\x30"


def pem_block(label: str, der: bytes) -> bytes:
    """Return one PEM block."""
    body = base64.b64encode(der)
    lines = b"\n".join([body[i : i + 64] for i in range(0, len(body), 64)])
    return b"-----BEGIN %s-----\n%s\n-----END %s-----\n" % (label.encode(), lines, label.encode())


def load_key(raw: bytes) -> PrivateKey:
    """Load an unencrypted private key, DER or PEM. Raises MaterialError.

    The library would test the primes of an RSA key on each load, which takes 40 ms, as long as forty certificates.
    The service depends on the key being the leaf's: `_check_key` compares the public numbers and checks that the
    private ones are consistent with them, and the probe sees the key in use.
    """
    load = load_pem_private_key if raw.lstrip()[:5] == b"-----" else load_der_private_key
    try:
        key = load(raw, None, unsafe_skip_rsa_key_validation=True)
    except UNREADABLE:
        raise MaterialError("the private key cannot be read", reason="key-unreadable") from None
    if not isinstance(key, PrivateKey):
        raise MaterialError("TLS does not use this kind of private key", reason="key-weak")
    return key


def _check_key(key: PrivateKey, leaf: x509.Certificate) -> None:
    try:
        same = key.public_key() == leaf.public_key()
    except UNREADABLE:
        same = False
    if not same:
        raise MaterialError("the private key does not belong to the certificate", reason="key-mismatch")
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise MaterialError(f"an RSA key of {key.key_size} bits is too weak", reason="key-weak")
        _check_rsa_numbers(key)


def check_curve(curve: ec.EllipticCurve, *, brainpool: bool) -> None:
    """Raise MaterialError for the curve of a key that this host does not accept."""
    if curve.name in GOOD_CURVES or (brainpool and curve.name in BRAINPOOL_CURVES):
        return
    if curve.name in BRAINPOOL_CURVES:
        raise MaterialError(
            f"the key is on the curve {curve.name}, which this host's policy does not allow",
            reason="brainpool-refused",
            fix='issue it with another key, or if all clients know the curve, add "brainpool": true to policy.json',
        )
    raise MaterialError(f"keys on the curve {curve.name} are not accepted", reason="key-weak")


def _check_rsa_numbers(key: rsa.RSAPrivateKey) -> None:
    own = key.private_numbers()
    n, e = own.public_numbers.n, own.public_numbers.e
    p, q, d = own.p, own.q, own.d
    whole = e >= 3 and e % 2 == 1 and p > 1 and q > 1 and p * q == n
    whole = whole and d * e % (p - 1) == 1 and d * e % (q - 1) == 1
    whole = whole and own.dmp1 == d % (p - 1) and own.dmq1 == d % (q - 1) and own.iqmp * q % p == 1
    if not whole:
        raise MaterialError("the private numbers of the RSA key do not match its public ones", reason="key-mismatch")
