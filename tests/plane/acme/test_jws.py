"""Signed requests, judged by PyJWT and by the examples of the RFCs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import ConfigError
from certctrl.plane.acme.encoding import from_base64url, to_base64url
from certctrl.plane.acme.jws import AccountKey, external_account_binding, read_hmac_key, signed_request

URL = "https://ca.test/newOrder"


def parts(body: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    outer = json.loads(body)
    header, payload = (from_base64url(outer[name]) for name in ("protected", "payload"))
    return json.loads(header), payload, f"{outer['protected']}.{outer['payload']}.{outer['signature']}".encode()


@given(st.binary())
def test_base64url_there_and_back(data: bytes) -> None:
    text = to_base64url(data)
    assert base64.urlsafe_b64encode(data).decode().rstrip("=") == text
    assert from_base64url(text) == data


@pytest.mark.parametrize("text", ["a", "a+b/", "é", "a b", "aaaaa"])
def test_what_is_not_base64url(text: str) -> None:
    with pytest.raises(ValueError, match="base64url"):
        from_base64url(text)


def test_a_request_with_the_account_url() -> None:
    key = AccountKey.new()
    body = signed_request(key, URL, {"a": 1}, nonce="n", account_url="https://ca.test/acct/1")
    header, payload, token = parts(body)
    assert header == {"alg": "ES256", "url": URL, "nonce": "n", "kid": "https://ca.test/acct/1"}
    assert jwt.api_jws.decode(token, jwt.PyJWK(key.jwk()).key, algorithms=["ES256"]) == payload == b'{"a":1}'


def test_a_request_with_the_key_and_without_payload() -> None:
    key = AccountKey.new()
    header, payload, token = parts(signed_request(key, URL, None, nonce="n"))
    assert header["jwk"] == key.jwk() and "kid" not in header
    assert payload == b""
    jwt.api_jws.decode(token, jwt.PyJWK(key.jwk()).key, algorithms=["ES256"])


def test_the_thumbprint_is_that_of_the_sorted_jwk() -> None:
    key = AccountKey.new()
    canonical = json.dumps(key.jwk(), sort_keys=True, separators=(",", ":"))
    expected = base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).decode().rstrip("=")
    assert key.thumbprint() == expected
    assert key.key_authorization("token") == f"token.{expected}"


def test_coordinates_keep_their_leading_zeros() -> None:
    for number in range(1, 600):
        key = AccountKey(ec.derive_private_key(number, ec.SECP256R1()))
        assert {len(from_base64url(key.jwk()[name])) for name in "xy"} == {32}
        assert len(key.sign(b"x")) == 64


def test_a_key_is_stored_and_shown_nowhere_else() -> None:
    key = AccountKey.new()
    assert AccountKey.from_pem(key.pem()).jwk() == key.jwk()
    assert "PRIVATE" not in repr(key) and repr(key) == "AccountKey()"
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for damaged in (b"", b"junk", pem):
        with pytest.raises(ConfigError, match="account key"):
            AccountKey.from_pem(damaged)


def test_an_external_account_binding() -> None:
    key, mac = AccountKey.new(), b"m" * 32
    found = external_account_binding(key, URL, "kid-1", mac)
    assert json.loads(from_base64url(found["protected"])) == {"alg": "HS256", "kid": "kid-1", "url": URL}
    assert json.loads(from_base64url(found["payload"])) == key.jwk()
    signed = f"{found['protected']}.{found['payload']}".encode()
    assert from_base64url(found["signature"]) == hmac.new(mac, signed, hashlib.sha256).digest()


@pytest.mark.parametrize("text", [b"zWND-_xx" * 4, b"zWND+/xx" * 4 + b"\n", b" zWND+/xxzWND+/xxzWND+/xxzW==\n"])
def test_eab_keys_as_cas_print_them(text: bytes) -> None:
    assert len(read_hmac_key(text)) >= 16


@pytest.mark.parametrize("text", [b"", b"short", b"not a key!", b"\xff" * 40, b"a" * 33])
def test_eab_keys_that_are_none(text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^eab_hmac_key: "):
        read_hmac_key(text)
