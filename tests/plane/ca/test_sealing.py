"""Sealing private keys to devices: what a device opens, byte for byte, and which device keys are refused."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox

from certctrl.plane.ca.sealing import device_key, fingerprint, seal_private_key
from certctrl.plane.errors import ErrorResponse

KEY = bytes(range(121))


def opened(sealed: dict[str, str], device: PrivateKey) -> bytes:
    """Return what a device decrypts, as docs/protocol.md says."""
    data_key = SealedBox(device).decrypt(base64.b64decode(sealed["enc_data_key_b64"], validate=True))
    assert len(data_key) == 32
    nonce, tag = (base64.b64decode(sealed[name], validate=True) for name in ("privkey_nonce_b64", "privkey_tag_b64"))
    assert (len(nonce), len(tag)) == (12, 16)
    body = base64.b64decode(sealed["enc_privkey_b64"], validate=True)
    assert len(body) == len(KEY)
    return AESGCM(data_key).decrypt(nonce, body + tag, None)


def test_the_device_opens_what_was_sealed_and_no_other_does() -> None:
    device = PrivateKey.generate()
    sealed = seal_private_key(KEY, bytes(device.public_key))
    assert (sealed["wrap_alg"], sealed["enc_scheme"]) == ("x25519", "aes256gcm")
    digest = hashlib.blake2b(bytes(device.public_key), digest_size=32).digest()
    assert base64.b64decode(sealed["device_keyfp_b64"]) == digest == fingerprint(bytes(device.public_key))
    assert opened(sealed, device) == KEY
    with pytest.raises(CryptoError):
        opened(sealed, PrivateKey.generate())


def test_a_changed_byte_is_noticed() -> None:
    device = PrivateKey.generate()
    sealed = seal_private_key(KEY, bytes(device.public_key))
    body = bytearray(base64.b64decode(sealed["enc_privkey_b64"]))
    body[7] ^= 1
    with pytest.raises(InvalidTag):
        opened(sealed | {"enc_privkey_b64": base64.b64encode(body).decode()}, device)


def test_each_seal_has_a_data_key_and_a_nonce_of_its_own() -> None:
    public = bytes(PrivateKey.generate().public_key)
    first, second = (seal_private_key(KEY, public) for _ in range(2))
    same = {name for name in first if first[name] == second[name]}
    assert same == {"wrap_alg", "enc_scheme", "device_keyfp_b64"}


def test_a_device_key_is_32_usable_bytes_of_base64() -> None:
    public = bytes(PrivateKey.generate().public_key)
    assert device_key(base64.b64encode(public).decode()) == public


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("not base64!", "dev_pk is not base64"),
        ("ä" * 44, "dev_pk is not base64"),
        (base64.b64encode(bytes(31)).decode(), "dev_pk must be 32 bytes"),
        (base64.b64encode(bytes(33)).decode(), "dev_pk must be 32 bytes"),
        ("", "dev_pk must be 32 bytes"),
        (base64.b64encode(bytes(32)).decode(), "dev_pk is not a usable X25519 key"),  # a point of low order
    ],
)
def test_other_device_keys_are_refused(text: str, what: str) -> None:
    with pytest.raises(ErrorResponse) as caught:
        device_key(text)
    assert (caught.value.status, caught.value.what, caught.value.params["field"]) == (400, what, "dev_pk")
