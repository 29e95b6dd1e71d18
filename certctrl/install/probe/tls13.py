"""Ask a TLS 1.3 server for a certificate with a given kind of key.

In TLS 1.3 only the client's signature algorithms select the kind, and Python's ``ssl`` cannot set them. So this
is the first half of a client's handshake (RFC 8446), up to the proof that the server has the key of its certificate.
It does not protect secrets, because it sends none.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256, sha384
from typing import Any

import attrs
import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certctrl import lean
from certctrl.errors import ProbeError, ProbeFault
from certctrl.model.certificate import KeyKind

_MAX_RECORD = (1 << 14) + 256
_MAX_FLIGHT = 1 << 18
_CHANGE_CIPHER, _ALERT, _HANDSHAKE, _ENCRYPTED = 20, 21, 22, 23
_SERVER_HELLO, _CERTIFICATE, _CERTIFICATE_VERIFY = 2, 11, 15
_RETRY = sha256(b"HelloRetryRequest").digest()
_SHA2: tuple[hashes.HashAlgorithm, ...] = (hashes.SHA256(), hashes.SHA384(), hashes.SHA512())
_PSS = dict(zip((0x0804, 0x0805, 0x0806, 0x0809, 0x080A, 0x080B), _SHA2 * 2, strict=True))
_ECDSA = dict(zip((0x0403, 0x0503, 0x0603, 0x081A, 0x081B, 0x081C), _SHA2 * 2, strict=True))  # the latter: brainpool
_EDDSA = (0x0807, 0x0808)
_WANTED: Mapping[KeyKind, Sequence[int]] = {KeyKind.RSA: [*_PSS], KeyKind.ECDSA: [*_ECDSA, *_EDDSA]}
_IN_CHAIN = (*_PSS, *_ECDSA, *_EDDSA, 0x0401, 0x0501, 0x0601)
_SUITES: Mapping[int, tuple[Callable[..., Any], hashes.HashAlgorithm, Callable[[bytes], Any], int]] = {
    0x1301: (sha256, hashes.SHA256(), AESGCM, 16),
    0x1302: (sha384, hashes.SHA384(), AESGCM, 32),
    0x1303: (sha256, hashes.SHA256(), ChaCha20Poly1305, 32),
}
_CURVES: Mapping[int, ec.EllipticCurve] = {0x17: ec.SECP256R1(), 0x18: ec.SECP384R1()}
_X25519 = 0x1D


async def leaf_of_kind(stream: trio.abc.Stream, server_name: str | None, kind: KeyKind) -> bytes:
    """Return the leaf (DER) that the server presents and proves. Raises ProbeError, trio.BrokenResourceError."""
    try:
        return await _Client(stream).leaf(server_name, kind)
    except (
        InvalidSignature,
        InvalidTag,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        ValueError,
        LookupError,
        TypeError,
    ):
        raise ProbeError("TLS: the handshake is malformed", fault=ProbeFault.NO_TLS) from None


@lean.define(eq=False)
class _Client:
    stream: trio.abc.Stream
    received: bytearray = attrs.field(factory=bytearray)
    transcript: bytes = b""
    total: int = 0

    async def leaf(self, server_name: str | None, kind: KeyKind) -> bytes:
        keys: dict[int, Any] = {_X25519: x25519.X25519PrivateKey.generate()}
        keys |= {group: ec.generate_private_key(curve) for group, curve in _CURVES.items()}
        self.transcript = client_hello(server_name, kind, keys)
        await self.stream.send_all(b"\x16\x03\x01" + _sized(2, self.transcript))
        hello = await self._server_hello()
        suite, group, share = _parsed_hello(hello)
        self.transcript += hello
        decrypt = _decryption(suite, _shared(keys[group], group, share), self.transcript)
        digest, messages, leaf = _SUITES[suite][0], bytearray(), b""
        while True:
            while (end := 4 + int.from_bytes(messages[1:4], "big")) <= len(messages) and len(messages) >= 4:
                message = bytes(messages[:end])
                del messages[:end]
                if message[0] == _CERTIFICATE:
                    leaf = _first_certificate(message[4:])
                elif message[0] == _CERTIFICATE_VERIFY:
                    _prove(leaf, message[4:], digest(self.transcript).digest())
                    return leaf
                self.transcript += message
            kind_of_record, header, body = await self._record()
            if kind_of_record == _ENCRYPTED:
                messages += decrypt(header, body)

    async def _server_hello(self) -> bytes:
        message = b""
        while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4], "big"):
            kind, _, body = await self._record()
            if kind != _HANDSHAKE:
                raise ProbeError("TLS: the server refuses TLS 1.3 for this kind of key", fault=ProbeFault.NO_TLS)
            message += body
        return message

    async def _record(self) -> tuple[int, bytes, bytes]:
        """Return the next record: its type, header and contents; an alert ends the handshake."""
        await self._fill(5)
        header = bytes(self.received[:5])
        size = int.from_bytes(header[3:], "big")
        self.total += size
        if size > _MAX_RECORD or self.total > _MAX_FLIGHT:
            raise ValueError("too large")
        await self._fill(5 + size)
        body = bytes(self.received[5 : 5 + size])
        del self.received[: 5 + size]
        if header[0] == _ALERT:
            raise ProbeError("TLS: the server refuses this kind of key", fault=ProbeFault.NO_TLS)
        return header[0], header, body

    async def _fill(self, size: int) -> None:
        while len(self.received) < size:
            data = await self.stream.receive_some()
            if not data:
                raise ProbeError("TLS: the server closed the connection", fault=ProbeFault.NO_TLS)
            self.received += data


# --- messages -----------------------------------------------------------------------------------------------------


def _sized(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def client_hello(server_name: str | None, kind: KeyKind, keys: Mapping[int, Any]) -> bytes:
    """Return a ClientHello that accepts certificates with this kind of key; ``keys``: group -> private key."""

    def numbers(width: int, values: Sequence[int]) -> bytes:
        return _sized(width, b"".join(value.to_bytes(2, "big") for value in values))

    extensions = {
        10: numbers(2, [*keys]),
        13: numbers(2, _WANTED[kind]),
        43: numbers(1, [0x0304]),
        50: numbers(2, _IN_CHAIN),
        51: _sized(2, b"".join(group.to_bytes(2, "big") + _sized(2, _public(key)) for group, key in keys.items())),
    }
    if server_name:
        extensions[0] = _sized(2, b"\0" + _sized(2, server_name.encode("ascii")))
    body = b"\x03\x03" + os.urandom(32) + _sized(1, os.urandom(32)) + numbers(2, [*_SUITES]) + b"\x01\0"
    body += _sized(2, b"".join(number.to_bytes(2, "big") + _sized(2, data) for number, data in extensions.items()))
    return b"\x01" + _sized(3, body)


def _public(key: Any) -> bytes:
    form = PublicFormat.Raw if isinstance(key, x25519.X25519PrivateKey) else PublicFormat.UncompressedPoint
    encoding = Encoding.Raw if form is PublicFormat.Raw else Encoding.X962
    return bytes(key.public_key().public_bytes(encoding, form))


def _parsed_hello(message: bytes) -> tuple[int, int, bytes]:
    """Return cipher suite, group and key share of a ServerHello."""
    if message[0] != _SERVER_HELLO or message[6:38] == _RETRY:
        raise ValueError("no ServerHello")
    place = 39 + message[38]
    suite = int.from_bytes(message[place : place + 2], "big")
    rest, found = message[place + 5 :], dict[int, bytes]()
    while rest:
        size = int.from_bytes(rest[2:4], "big")
        found[int.from_bytes(rest[:2], "big")] = rest[4 : 4 + size]
        rest = rest[4 + size :]
    if found[43] != b"\x03\x04":
        raise ValueError("not TLS 1.3")
    return suite, int.from_bytes(found[51][:2], "big"), found[51][4:]


def _shared(key: Any, group: int, share: bytes) -> bytes:
    if group == _X25519:
        return bytes(key.exchange(x25519.X25519PublicKey.from_public_bytes(share)))
    return bytes(key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[group], share)))


def _decryption(suite: int, shared: bytes, transcript: bytes) -> Callable[[bytes, bytes], bytes]:
    """Return a function (record header, contents) -> handshake messages, called once per record in order."""
    digest, algorithm, cipher, key_size = _SUITES[suite]
    size = algorithm.digest_size

    def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
        info = length.to_bytes(2, "big") + _sized(1, b"tls13 " + label) + _sized(1, context)
        return HKDFExpand(algorithm, length, info).derive(secret)

    early = hmac.digest(bytes(size), bytes(size), digest)
    secret = hmac.digest(expand(early, b"derived", digest(b"").digest(), size), shared, digest)
    traffic = expand(secret, b"s hs traffic", digest(transcript).digest(), size)
    aead, iv, number = cipher(expand(traffic, b"key", b"", key_size)), expand(traffic, b"iv", b"", 12), 0

    def decrypt(header: bytes, body: bytes) -> bytes:
        nonlocal number
        nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
        number += 1
        plain = bytes(aead.decrypt(nonce, body, header)).rstrip(b"\0")
        if plain[-1] != _HANDSHAKE:
            raise ProbeError("TLS: the server ends the handshake", fault=ProbeFault.NO_TLS)
        return plain[:-1]

    return decrypt


def _first_certificate(body: bytes) -> bytes:
    place = 1 + body[0] + 3
    size = int.from_bytes(body[place : place + 3], "big")
    return body[place + 3 : place + 3 + size]


def _prove(leaf: bytes, body: bytes, transcript_hash: bytes) -> None:
    """Check that the server has the key of its certificate. Raises InvalidSignature, ValueError, …"""
    algorithm, signature = int.from_bytes(body[:2], "big"), body[4:]
    signed = b" " * 64 + b"TLS 1.3, server CertificateVerify\0" + transcript_hash
    key = x509.load_der_x509_certificate(leaf).public_key()
    if isinstance(key, rsa.RSAPublicKey):
        chosen = _PSS[algorithm]
        key.verify(signature, signed, padding.PSS(padding.MGF1(chosen), chosen.digest_size), chosen)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, signed, ec.ECDSA(_ECDSA[algorithm]))
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(signature, signed)
    else:
        raise ValueError("unknown kind of key")
