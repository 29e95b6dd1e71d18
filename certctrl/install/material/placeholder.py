"""Make the self-signed certificate that replaces a revoked one, so that its service still starts."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from certctrl.install.material.bundle import facts_of
from certctrl.model.certificate import Bundle

LIFE_SECONDS = 90 * 86_400.0


def placeholder_bundle(cert_id: int, name: str, domains: Sequence[str], *, not_before: float, now: float) -> Bundle:
    """Return a self-signed bundle for the same names with a new key.

    ``not_before`` is that of the certificate it replaces, so that any renewal counts as newer.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "certctrl placeholder: certificate revoked")])
    begins = datetime.fromtimestamp(int(min(not_before, now)), UTC)
    ends = datetime.fromtimestamp(int(now + LIFE_SECONDS), UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if domains:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(one) for one in domains]), critical=False)
    leaf = builder.sign(key, hashes.SHA256())
    return Bundle(
        facts=facts_of(leaf, cert_id, name, tuple(domains)),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate_pem=leaf.public_bytes(Encoding.PEM),
        chain_pem=b"",
    )


def _name(domain: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(domain))
    except ValueError:
        pass
    if "://" in domain or domain.startswith("urn:"):
        return x509.UniformResourceIdentifier(domain)
    return x509.RFC822Name(domain) if "@" in domain else x509.DNSName(domain)
