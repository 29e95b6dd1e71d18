"""Certificates by the dozen: a small CA whose bundles are sealed as the plane seals them."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import os
from functools import lru_cache
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from nacl.public import PrivateKey as BoxKey
from nacl.public import SealedBox

from certctrl.errors import MaterialError
from certctrl.install.material.bundle import open_bundle
from certctrl.model.certificate import Bundle, DeployMaterials

NOW = 1_800_000_000.0
DAY = 86_400.0


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@lru_cache(maxsize=1)
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@attrs.define
class Issuer:
    """One CA certificate with its key, and the chain above it."""

    name: str
    above: Issuer | None = None
    key: Any = attrs.field(factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    certificate: x509.Certificate = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        signer = self.above or self
        self.certificate = build(self.name, signer.name, self.key.public_key(), signer.key, ca=True, life=(-400, 3000))

    @property
    def chain(self) -> list[x509.Certificate]:
        """Return this certificate and those above it, the root left out."""
        return [self.certificate, *(self.above.chain if self.above is not None and self.above.above else [])]

    @property
    def chain_pem(self) -> str:
        return "".join(pem(certificate) for certificate in self.chain)

    def leaf(self, key: Any, domains: tuple[str, ...], *, life: tuple[float, float] = (-1, 89), **how: Any) -> Any:
        return build(domains[0], self.name, key.public_key(), self.key, domains=domains, life=life, **how)


def build(
    subject: str,
    issuer: str,
    public: Any,
    signer: Any,
    *,
    ca: bool | None = False,
    domains: tuple[str, ...] = (),
    life: tuple[float, float] = (-1, 89),
    digest: Any = None,
    serial: int | None = None,
) -> x509.Certificate:
    """Return a certificate; ``ca`` None: it does not say whether it is one; ``life``: days from NOW."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    begins, ends = (dt.datetime.fromtimestamp(NOW + DAY * days, dt.UTC) for days in life)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if domains:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([san(domain) for domain in domains]), critical=False
        )
    return builder.sign(signer, digest or hashes.SHA256())


def san(domain: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(domain))
    except ValueError:
        return x509.DNSName(domain)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def seal(raw_key: bytes, device_public: bytes) -> dict[str, Any]:
    """Return the five key fields of ``deploy-materials`` around some private key bytes."""
    data_key, nonce = os.urandom(32), os.urandom(12)
    sealed = AESGCM(data_key).encrypt(nonce, raw_key, None)
    from nacl.public import PublicKey

    return {
        "enc_data_key_b64": b64(SealedBox(PublicKey(device_public)).encrypt(data_key)),
        "enc_privkey_b64": b64(sealed[:-16]),
        "privkey_nonce_b64": b64(nonce),
        "privkey_tag_b64": b64(sealed[-16:]),
    }


def der(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


@attrs.define
class Maker:
    """Makes materials as the plane answers them, sealed to one device."""

    issuer: Issuer = attrs.field(factory=lambda: Issuer("inter", Issuer("root")))
    device: BoxKey = attrs.field(factory=BoxKey.generate)

    @property
    def secret(self) -> bytes:
        return bytes(self.device)

    def materials(
        self,
        *domains: str,
        key: Any = None,
        raw_key: bytes | None = None,
        leaf: x509.Certificate | None = None,
        chain_pem: str | None = None,
        **leaf_options: Any,
    ) -> DeployMaterials:
        key = key or ec.generate_private_key(ec.SECP256R1())
        leaf = leaf or self.issuer.leaf(key, domains or ("example.com",), **leaf_options)
        return DeployMaterials(
            enc_scheme="aes256gcm",
            certificate_pem=pem(leaf),
            chain_pem=self.issuer.chain_pem if chain_pem is None else chain_pem,
            serial_number=f"{leaf.serial_number:x}",
            **seal(raw_key or der(key), bytes(self.device.public_key)),
        )


def opened(maker: Maker, materials: DeployMaterials, now: float, *expected: str, **options: Any) -> Bundle:
    return open_bundle(
        7, "example.com", materials, options.pop("secret", maker.secret),
        allow_plaintext=options.pop("allow_plaintext", False), now=now,
        expected_domains=expected or ("example.com",), **options,
    )  # fmt: skip


def reason(maker: Maker, materials: DeployMaterials, now: float, *expected: str, **options: object) -> str:
    with pytest.raises(MaterialError) as caught:
        opened(maker, materials, now, *expected, **options)
    return caught.value.reason


def builder_of(leaf: x509.Certificate) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        leaf.issuer,
        leaf.subject,
        leaf.public_key(),
        leaf.serial_number,
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    )
    for extension in leaf.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder
