"""Account keys and signed requests (RFC 8555, section 6.2; RFC 7515).

An account key is EC P-256, which every CA accepts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

import attrs
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.acme.encoding import from_base64url, to_base64url

_COORDINATE_BYTES = 32
MIN_HMAC_BYTES = 16


@lean.frozen
class AccountKey:
    """The private key of an ACME account."""

    _key: ec.EllipticCurvePrivateKey = attrs.field(repr=False, eq=False)

    @classmethod
    def new(cls) -> AccountKey:
        """Return a new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> AccountKey:
        """Return a stored key; raises ConfigError."""
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError("the stored ACME account key is not an EC P-256 key", fix="restore the database")
        return cls(key)

    def pem(self) -> bytes:
        """Return the key as unencrypted PKCS#8 PEM."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def jwk(self) -> dict[str, str]:
        """Return the public key as a JWK, with members in the order that the thumbprint needs."""
        numbers = self._key.public_key().public_numbers()
        x, y = (to_base64url(number.to_bytes(_COORDINATE_BYTES, "big")) for number in (numbers.x, numbers.y))
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}

    def thumbprint(self) -> str:
        """Return the thumbprint of the public key (RFC 7638)."""
        return to_base64url(hashlib.sha256(_compact(self.jwk())).digest())

    def key_authorization(self, token: str) -> str:
        """Return the key authorization of a challenge (RFC 8555, section 8.1)."""
        return f"{token}.{self.thumbprint()}"

    def sign(self, data: bytes) -> bytes:
        """Return the ES256 signature of bytes: r and s, 32 bytes each."""
        r, s = decode_dss_signature(self._key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")


def signed_request(
    key: AccountKey, url: str, payload: Mapping[str, Any] | None, *, nonce: str | None, account_url: str = ""
) -> bytes:
    """Return the body of a signed request.

    ``payload`` None: POST-as-GET. Without ``account_url`` the request carries the public key. ``nonce`` None: the inner
    request of a key change.
    """
    header: dict[str, Any] = {"alg": "ES256", "url": url}
    if nonce is not None:
        header["nonce"] = nonce
    header |= {"kid": account_url} if account_url else {"jwk": key.jwk()}
    return _jws(header, payload, key.sign)


def external_account_binding(key: AccountKey, url: str, kid: str, hmac_key: bytes) -> dict[str, Any]:
    """Return the binding of a new account to one at the CA (RFC 8555, section 7.3.4)."""
    header = {"alg": "HS256", "kid": kid, "url": url}
    bound: dict[str, Any] = json.loads(
        _jws(header, key.jwk(), lambda data: hmac.digest(hmac_key, data, "sha256")),
    )
    return bound


def read_hmac_key(text: bytes) -> bytes:
    """Return the bytes of an EAB key as CAs print it, in base64url or base64; raises ConfigError."""
    try:
        plain = text.decode("ascii").strip()
        key = from_base64url(plain.replace("+", "-").replace("/", "_"))
    except ValueError:
        raise ConfigError("is not base64url", path="eab_hmac_key", fix="copy the HMAC key as the CA shows it") from None
    if len(key) < MIN_HMAC_BYTES:
        raise ConfigError(
            f"has {len(key)} bytes; at least {MIN_HMAC_BYTES} are needed",
            path="eab_hmac_key",
            fix="copy the whole HMAC key as the CA shows it",
        )
    return key


def _jws(header: Mapping[str, Any], payload: Mapping[str, Any] | None, sign: Any) -> bytes:
    protected = to_base64url(_compact(header))
    body = "" if payload is None else to_base64url(_compact(payload))
    signature = to_base64url(sign(f"{protected}.{body}".encode("ascii")))
    return _compact({"protected": protected, "payload": body, "signature": signature})


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
