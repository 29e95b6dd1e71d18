"""Signing: what a request costs the built-in CA, with all its checks, beside the bare signature of a certificate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from measure import row

from certctrl.plane.core import Plane

MOST = 5.0
"""Milliseconds of CPU that a request may cost."""
NAMES = tuple(f"www{number}.example.com" for number in range(10))
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def measure(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    keys: dict[str, Key] = {
        "EC P-256": ec.generate_private_key(ec.SECP256R1()),
        "EC P-384": ec.generate_private_key(ec.SECP384R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "RSA 2048": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "RSA 4096": rsa.generate_private_key(public_exponent=65537, key_size=4096),
    }
    for name, key in keys.items():
        ours, floor = trio.run(_signed, _request(key), rounds), _bare(key, rounds)
        yield row(f"a request with {len(NAMES)} names, {name}", ours, floor, unit="ms", value=ours, must=MOST, aim=2)


async def _signed(csr_der: bytes, rounds: int) -> float:
    with Plane.open() as plane:
        await plane.ca.sign_csr(csr_der, NAMES, validity_seconds=3600)  # makes the intermediate
        began = time.process_time()
        for _ in range(rounds):
            await plane.ca.sign_csr(csr_der, NAMES, validity_seconds=3600)
        return (time.process_time() - began) / rounds * 1000


def _bare(key: Key, rounds: int) -> float:
    """Return the time of cryptography's builder alone, with the same names."""
    issuer, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAMES[0])])
    began = time.process_time()
    for _ in range(rounds):
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(hours=1))
        sans = x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES])
        builder.add_extension(sans, critical=False).sign(issuer, hashes.SHA256())
    return (time.process_time() - began) / rounds * 1000


def _request(key: Key) -> bytes:
    sans = x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(sans, critical=False)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)
