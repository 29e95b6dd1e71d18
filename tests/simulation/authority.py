"""A cheap and deterministic certificate authority: Ed25519 keys and serials from a counter."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from simulation.clock import START

from certctrl.install.probe.looked import Leaf
from certctrl.plane.ca.issuer import Issued
from certctrl.text import serial_text

POISON = "poison"
"""Prefix of names whose certificate comes with another key, while `SimulatedIssuer.bad` is set."""
BACKDATE = 300.0


def key_of(what: str) -> Ed25519PrivateKey:
    """Return the key derived from a text."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(what.encode()).digest())


def moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@cache
def ca() -> tuple[Ed25519PrivateKey, str]:
    """Return the CA's key and its certificate in PEM, valid for fifteen years before and after `START`."""
    key = key_of("authority")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name_of("simulated CA"))
        .issuer_name(name_of("root"))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(moment(START - 15 * 365 * 86_400))
        .not_valid_after(moment(START + 15 * 365 * 86_400))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key_of("root"), None)
    )
    return key, certificate.public_bytes(Encoding.PEM).decode()


class SimulatedIssuer:
    """The plane's ``Issuer``."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.count = 0
        self.bad = True
        """Issue names with the prefix `POISON` with a key that does not match."""

    async def issue(self, names: Sequence[str], *, key_type: str, validity_seconds: int) -> Issued:
        """Issue a certificate that differs from all earlier ones."""
        self.count += 1
        now, key = self.now(), key_of(f"leaf {self.count}")
        signer, chain = ca()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name_of(names[0]))
            .issuer_name(name_of("simulated CA"))
            .public_key(key.public_key())
            .serial_number(0x1000 + self.count)
            .not_valid_before(moment(now - BACKDATE))
            .not_valid_after(moment(now + validity_seconds))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
            .sign(signer, None)
        )
        handed_over = key_of("another") if self.bad and names[0].startswith(POISON) else key
        der = certificate.public_bytes(Encoding.DER)
        serial = f"{certificate.serial_number:x}"
        return Issued(
            private_key_der=handed_over.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            certificate_pem=certificate.public_bytes(Encoding.PEM).decode(),
            chain_pem=chain,
            serial_number=bytes.fromhex(serial.zfill(len(serial) + len(serial) % 2)).hex(":"),
            fingerprint_sha256=hashlib.sha256(der).hexdigest(),
            not_before=certificate.not_valid_before_utc.timestamp(),
            not_after=certificate.not_valid_after_utc.timestamp(),
        )


@lru_cache(maxsize=4096)
def leaf_facts(pem: bytes) -> tuple[str, bytes]:
    """Return fingerprint and raw public key of the first certificate. Raises ValueError if there is none."""
    leaf = x509.load_pem_x509_certificates(pem)[0]
    raw = leaf.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest(), raw


@lru_cache(maxsize=4096)
def leaf_of(pem: bytes) -> Leaf:
    """Return what a probe says of the first certificate. Raises ValueError if there is none."""
    leaf = x509.load_pem_x509_certificates(pem)[0]
    ends = leaf.not_valid_after_utc.timestamp()
    return Leaf(fingerprint=leaf_facts(pem)[0], serial=serial_text(leaf.serial_number), not_after=ends)


@lru_cache(maxsize=4096)
def public_half(pem: bytes) -> bytes:
    """Return the raw public key of a private key. Raises ValueError if it is not a key."""
    return load_pem_private_key(pem, None).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
