"""Certificate signing requests for tests, good and bad."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

CsrKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


def general(name: str) -> x509.GeneralName:
    """Return a name as a certificate contains it."""
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def csr(
    names: Sequence[str | x509.GeneralName],
    *,
    key: CsrKey | None = None,
    common: str = "",
    extensions: Sequence[x509.ExtensionType] = (),
    digest: Any = None,
) -> bytes:
    """Return the DER of a request, signed by its key; no key: a new one of EC P-256."""
    signer = key or ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        sans = [general(name) if isinstance(name, str) else name for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    plain = isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    request = builder.sign(signer, None if plain else digest or hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def rsa_key(p: int, q: int, exponent: int = 65_537) -> rsa.RSAPrivateKey:
    """Return the RSA key of two primes."""
    d = pow(exponent, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q),
        rsa.RSAPublicNumbers(exponent, p * q),
    )  # fmt: skip
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)
