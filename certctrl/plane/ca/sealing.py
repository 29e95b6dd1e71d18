"""Encrypt private keys to device keys (``DeployMaterials`` in docs/protocol.md)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.exceptions import CryptoError
from nacl.public import PublicKey, SealedBox

from certctrl.plane.errors import bad_request

_TAG_BYTES = 16


def device_key(text: str) -> bytes:
    """Return the raw X25519 public key (32 bytes) from base64; ErrorResponse 400 if it is not usable."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("dev_pk is not base64", field="dev_pk") from None
    if len(key) != 32:
        raise bad_request("dev_pk must be 32 bytes", field="dev_pk")
    try:
        SealedBox(PublicKey(key)).encrypt(b"")  # refuses points of low order now instead of at each delivery
    except CryptoError:
        raise bad_request("dev_pk is not a usable X25519 key", field="dev_pk") from None
    return key


def fingerprint(key: bytes) -> bytes:
    """Return the BLAKE2b-256 digest of a raw public key."""
    return hashlib.blake2b(key, digest_size=32).digest()


def seal_private_key(der: bytes, public_key: bytes) -> dict[str, str]:
    """Return the key fields of ``DeployMaterials`` for a PKCS#8 DER key and a raw X25519 public key."""
    data_key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
    sealed = AESGCM(data_key).encrypt(nonce, der, None)
    return {
        "wrap_alg": "x25519",
        "enc_scheme": "aes256gcm",
        "device_keyfp_b64": _b64(fingerprint(public_key)),
        "enc_data_key_b64": _b64(SealedBox(PublicKey(public_key)).encrypt(data_key)),
        "enc_privkey_b64": _b64(sealed[:-_TAG_BYTES]),
        "privkey_nonce_b64": _b64(nonce),
        "privkey_tag_b64": _b64(sealed[-_TAG_BYTES:]),
    }


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
