"""Private keys: how they are sealed, in which forms they come, and which are refused for which reason."""

from __future__ import annotations

import base64
import os
import re
from hashlib import blake2b
from math import gcd
from typing import Any

import attrs
import pytest
from bundle_maker import Maker, b64, der, opened, reason
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from nacl.public import SealedBox

from certctrl.errors import MaterialError
from certctrl.install.material.private_key import checked_key_pem, pem_block

TRADITIONAL = PrivateFormat.TraditionalOpenSSL


def refused(maker: Maker, now: float, **fields: Any) -> MaterialError:
    with pytest.raises(MaterialError) as caught:
        opened(maker, attrs.evolve(maker.materials(), **fields), now)
    return caught.value


@pytest.mark.parametrize(
    ("field", "size"),
    [("privkey_nonce_b64", 8), ("privkey_nonce_b64", 16), ("privkey_tag_b64", 12), ("privkey_tag_b64", 17)],
)
def test_nonce_and_tag_have_their_length(maker: Maker, now: float, field: str, size: int) -> None:
    error = refused(maker, now, **{field: b64(os.urandom(size))})
    assert (error.reason, "nonce or tag" in str(error)) == ("unsealing", True)


@pytest.mark.parametrize("size", [16, 24, 31, 33])
def test_a_data_key_has_32_bytes(maker: Maker, now: float, size: int) -> None:
    """AES-GCM would take the shorter ones."""
    key = ec.generate_private_key(ec.SECP256R1())
    data_key, nonce = os.urandom(size), os.urandom(12)
    sealed = AESGCM(data_key).encrypt(nonce, der(key), None) if size in (16, 24) else bytes(64)
    fields = {
        "enc_data_key_b64": b64(SealedBox(maker.device.public_key).encrypt(data_key)),
        "enc_privkey_b64": b64(sealed[:-16]),
        "privkey_nonce_b64": b64(nonce),
        "privkey_tag_b64": b64(sealed[-16:]),
    }
    with pytest.raises(MaterialError, match="wrong length") as caught:
        opened(maker, attrs.evolve(maker.materials(key=key), **fields), now)
    assert caught.value.reason == "unsealing"


@pytest.mark.parametrize("pad", ["", "="])
def test_a_box_that_should_open_is_not_blamed_on_another_device(maker: Maker, now: float, pad: str) -> None:
    ours = base64.b64encode(blake2b(bytes(maker.device.public_key), digest_size=32).digest()).decode()
    assert ours.endswith("=")
    error = refused(maker, now, enc_data_key_b64=b64(bytes(80)), device_keyfp_b64=ours.rstrip("=") + pad)
    assert (error.reason, error.fix) == ("unsealing", None)


def test_a_bundle_for_another_device_asks_for_a_registration(maker: Maker, now: float) -> None:
    for digest in (b"f" * 32, blake2b(bytes(maker.device.public_key), digest_size=16).digest()):
        error = refused(maker, now, enc_data_key_b64=b64(bytes(80)), device_keyfp_b64=b64(digest))
        assert (error.reason, "register" in (error.fix or "")) == ("sealed-for-another-device", True)
    for length in (0, 31, 33):
        with pytest.raises(MaterialError, match="no device key") as caught:
            opened(maker, maker.materials(), now, secret=bytes(length))
        assert (caught.value.reason, "register" in (caught.value.fix or "")) == ("device-key", True)


@pytest.mark.parametrize("field", ["enc_data_key_b64", "enc_privkey_b64", "privkey_nonce_b64", "privkey_tag_b64"])
@pytest.mark.parametrize("text", [None, "", "no base64!", "QUJ", "QU-_"])
def test_a_field_that_is_missing_or_not_base64_is_named(maker: Maker, now: float, field: str, text: str | None) -> None:
    error = refused(maker, now, **{field: text})
    assert error.reason == "incomplete" and re.search(rf"\b{field}\b", str(error))


def test_base64_may_be_wrapped(maker: Maker, now: float) -> None:
    materials = maker.materials()
    text = materials.enc_privkey_b64 or ""
    wrapped = attrs.evolve(materials, enc_privkey_b64=f" {text[:20]}\r\n{text[20:]}\n")
    assert opened(maker, wrapped, now).key_pem == opened(maker, materials, now).key_pem


@pytest.mark.parametrize(
    "fields", [{"enc_scheme": "rot13"}, {"wrap_alg": "mlkem"}, {"enc_scheme": "a", "wrap_alg": "b"}]
)
def test_an_unknown_sealing_is_named(maker: Maker, now: float, fields: dict[str, str]) -> None:
    error = refused(maker, now, **fields)
    assert (error.reason, "update" in (error.fix or "")) == ("scheme", True)
    assert all(value in str(error) for value in fields.values())


def test_an_unsealed_key_comes_as_pem_or_as_der(maker: Maker, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    plain = attrs.evolve(maker.materials(key=key), enc_scheme="plaintext")
    with pytest.raises(MaterialError) as caught:
        opened(maker, attrs.evolve(plain, private_key_der_b64=b64(der(key))), now)
    assert (caught.value.reason, "policy.json" in (caught.value.fix or "")) == ("plaintext-refused", True)
    wanted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for fields in ({"private_key_der_b64": b64(der(key))}, {"private_key_pem": f"\n {wanted.decode()}"}):
        assert opened(maker, attrs.evolve(plain, **fields), now, allow_plaintext=True).key_pem == wanted
    with pytest.raises(MaterialError, match=r"has no private_key_der_b64$") as caught:
        opened(maker, plain, now, allow_plaintext=True)
    assert caught.value.reason == "incomplete"


def test_pkcs8_is_kept_byte_for_byte(maker: Maker, now: float, an_rsa_key: rsa.RSAPrivateKey) -> None:
    """With attributes or a public key in it (RFC 5958), the library would write other bytes."""
    small, attribute = ed25519.Ed25519PrivateKey.generate(), bytes.fromhex("a000")
    extended = b"\x30" + bytes([len(der(small))]) + der(small)[2:] + attribute
    large = der(an_rsa_key)
    longer = b"\x30\x82" + (len(large) - 2).to_bytes(2, "big") + large[4:] + attribute
    for key, raw in ((small, der(small)), (an_rsa_key, large), (small, extended), (an_rsa_key, longer)):
        bundle = opened(maker, maker.materials(key=key, raw_key=raw), now)
        assert bundle.key_pem == pem_block("PRIVATE KEY", raw)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_older_forms_are_converted(maker: Maker, now: float, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    wanted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for raw in (key.private_bytes(form, TRADITIONAL, NoEncryption()) for form in (Encoding.DER, Encoding.PEM)):
        assert opened(maker, maker.materials(key=key, raw_key=raw), now).key_pem == wanted


def test_a_certificate_with_a_key_that_cannot_be_read_has_no_matching_key(maker: Maker, now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = bytes.fromhex("06072a8648ce3d0201")  # the object identifier of keys on elliptic curves
    plain = maker.issuer.leaf(key, ("example.com",)).public_bytes(Encoding.DER)
    odd = x509.load_der_x509_certificate(plain.replace(public, public[:-1] + b"\x7f"))
    assert reason(maker, maker.materials(key=key, leaf=odd, chain_pem=""), now) == "key-mismatch"


def test_brainpool_curves_are_refused_unless_allowed(maker: Maker) -> None:
    key = ec.generate_private_key(ec.BrainpoolP256R1())
    leaf = maker.issuer.leaf(key, ("example.com",))
    with pytest.raises(MaterialError, match="brainpool"):
        checked_key_pem(der(key), leaf)
    assert checked_key_pem(der(key), leaf, brainpool=True)


def test_a_pem_block_has_lines_of_64() -> None:
    for size in (1, 47, 48, 49, 96, 1000):
        raw = os.urandom(size)
        lines = pem_block("SOME KEY", raw).decode().split("\n")
        assert (lines[0], lines[-2], lines[-1]) == ("-----BEGIN SOME KEY-----", "-----END SOME KEY-----", "")
        assert all(len(line) == 64 for line in lines[1:-3]) and 0 < len(lines[-3]) <= 64
        assert base64.b64decode("".join(lines[1:-2])) == raw


def test_a_key_that_tls_does_not_use_is_weak(maker: Maker, now: float) -> None:
    assert reason(maker, maker.materials(raw_key=der(x25519.X25519PrivateKey.generate())), now) == "key-weak"


def test_an_rsa_key_needs_2048_bits(maker: Maker, now: float) -> None:
    with pytest.raises(MaterialError, match="1024 bits is too weak") as caught:
        opened(maker, maker.materials(key=rsa.generate_private_key(65537, 1024)), now)
    assert caught.value.reason == "key-weak"


def test_each_private_number_of_an_rsa_key_is_checked(maker: Maker, now: float, an_rsa_key: rsa.RSAPrivateKey) -> None:
    right = an_rsa_key.private_numbers()
    fields = {name: getattr(right, name) for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp", "public_numbers")}
    wrong = [{name: fields[name] + step} for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp") for step in (-2, 2)]
    wrong += [{"d": right.d + right.p - 1}, {"d": right.d + right.q - 1}, {"p": 1}, {"q": 1}]
    wrong += [{"p": right.q, "q": right.p}, {"dmp1": right.dmp1 + right.p - 1}, {"dmq1": right.dmq1 + right.q - 1}]
    for change in wrong:
        assert reason(maker, forged(maker, an_rsa_key, fields | change), now) == "key-mismatch", change
    assert opened(maker, forged(maker, an_rsa_key, fields), now).key_pem


def test_two_numbers_that_are_wrong_together_are_noticed(
    maker: Maker, now: float, an_rsa_key: rsa.RSAPrivateKey
) -> None:
    right = an_rsa_key.private_numbers()
    fields = {name: getattr(right, name) for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp", "public_numbers")}
    n, p, q = right.public_numbers.n, right.p, right.q
    other = rsa.generate_private_key(65537, 2048).private_numbers()
    for_another_modulus = {name: getattr(other, name) for name in ("p", "q", "d", "dmp1", "dmq1", "iqmp")}
    for change in (
        for_another_modulus,
        {"p": 1, "q": n},
        {"p": n, "q": 1},
        {"p": n, "q": 1, "d": pow(65537, -1, n - 1) if gcd(65537, n - 1) == 1 else right.d},
        {"d": right.d + q - 1, "dmp1": (right.d + q - 1) % (p - 1)},
        {"d": right.d + p - 1, "dmq1": (right.d + p - 1) % (q - 1)},
    ):
        assert reason(maker, forged(maker, an_rsa_key, fields | change), now) == "key-mismatch"


def test_the_smallest_public_exponent_is_accepted(maker: Maker, now: float) -> None:
    assert opened(maker, maker.materials(key=rsa.generate_private_key(3, 2048)), now).key_pem


def forged(maker: Maker, key: rsa.RSAPrivateKey, numbers: dict[str, Any]) -> Any:
    """Return material whose sealed PKCS#1 key has these numbers."""

    def integer(value: int) -> bytes:
        body = value.to_bytes(value.bit_length() // 8 + 1, "big")
        return tagged(2, body)

    def tagged(tag: int, body: bytes) -> bytes:
        size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
        return bytes([tag]) + (bytes([0x80 + len(size)]) if len(body) > 127 else b"") + size + body

    public = numbers["public_numbers"]
    order = (0, public.n, public.e, *(numbers[name] for name in ("d", "p", "q", "dmp1", "dmq1", "iqmp")))
    return maker.materials(key=key, raw_key=tagged(0x30, b"".join(map(integer, order))))
