"""Chains of certificates for tests: root, intermediates, leaf, each with its key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from certctrl.plane.ca.domains import is_address
from certctrl.plane.ca.x509 import key_pem, pem_of

NOW = 1_790_000_000.0
DAY = 86_400


@attrs.frozen
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any = attrs.field(repr=False)

    @property
    def pem(self) -> str:
        return pem_of(self.certificate)

    @property
    def key_pem(self) -> str:
        return key_pem(self.key).decode()


def _name(text: str) -> x509.GeneralName:
    """Return an address, a URI, an e-mail address or a DNS name."""
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    if "@" in text:
        return x509.RFC822Name(text)
    return x509.IPAddress(ip_address(text)) if is_address(text) else x509.DNSName(text)


def made(
    name: str,
    issuer: Made | None = None,
    *,
    names: Sequence[str] = (),
    ca: bool = False,
    key: Any = None,
    start: float = NOW - DAY,
    end: float = NOW + 90 * DAY,
    published: str = "",
    hash_: Any = None,
    serial: int = 0,
    constraints: bool = True,
) -> Made:
    """Return a certificate; without an issuer, a self-signed one; without ``constraints``, it does not say whether it is a CA."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(start), UTC))
        .not_valid_after(datetime.fromtimestamp(int(end), UTC))
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if names:
        sans = [_name(one) for one in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    if published:
        place = x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(published)
        )
        builder = builder.add_extension(x509.AuthorityInformationAccess([place]), critical=False)
    return Made(builder.sign(issuer.key if issuer else key, hash_ or hashes.SHA256()), key)


def pki(depth: int = 1, prefix: str = "") -> list[Made]:
    """Return a root and ``depth`` intermediates, the root first."""
    line = [made(f"{prefix}Root", ca=True, end=NOW + 3650 * DAY)]
    for number in range(1, depth + 1):
        line.append(made(f"{prefix}Intermediate {number}", line[-1], ca=True, end=NOW + 1825 * DAY))
    return line


def csr_of(names: Sequence[str], key: Any = None) -> tuple[bytes, Any]:
    """Return a signing request in DER, and its key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    sans = [x509.IPAddress(ip_address(one)) if is_address(one) else x509.DNSName(one) for one in names]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER), key
