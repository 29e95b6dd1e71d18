"""Create keys and certificates: root, intermediate, leaf. Pure except for randomness; time is an argument."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certctrl import lean
from certctrl.plane.ca.constraints import Constraints, constraints_of
from certctrl.plane.ca.domains import is_address

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

KEY_TYPES = ("ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519")
"""Supported key types; the first is the default."""
_CURVES: dict[str, ec.EllipticCurve] = {"ecdsa-p256": ec.SECP256R1(), "ecdsa-p384": ec.SECP384R1()}
_CA_CURVE = ec.SECP256R1()
_MAX_COMMON_NAME = 64
NO_CONSTRAINTS = Constraints()


@lean.frozen
class Authority:
    """A CA certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = attrs.field(repr=False)

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return pem_of(self.certificate)

    @property
    def not_after(self) -> float:
        """The end of its validity in seconds since the epoch."""
        return self.certificate.not_valid_after_utc.timestamp()

    def sealed_form(self) -> bytes:
        """Return key and certificate as one PEM text."""
        return key_pem(self.key) + self.pem.encode()

    @classmethod
    def from_sealed_form(cls, data: bytes) -> Authority:
        """Return the authority of a PEM text of ``sealed_form``."""
        key = serialization.load_pem_private_key(data, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # written by sealed_form
        return cls(x509.load_pem_x509_certificate(data), key)


def new_key(key_type: str) -> PrivateKey:
    """Return a new private key of one of ``KEY_TYPES``; RSA keys are slow."""
    if key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curve = _CURVES.get(key_type)
    if curve is not None:
        return ec.generate_private_key(curve)
    return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type.removeprefix("rsa-")))


def new_root(name: str, *, not_before: float, not_after: float) -> Authority:
    """Return a self-signed root."""
    key = ec.generate_private_key(_CA_CURVE)
    return Authority(_ca(name, key, None, path_length=1, not_before=not_before, not_after=not_after), key)


def new_intermediate(
    root: Authority, name: str, *, not_before: float, not_after: float, constraints: Constraints = NO_CONSTRAINTS
) -> Authority:
    """Return an intermediate below a root; it may only sign leaves."""
    key = ec.generate_private_key(_CA_CURVE)
    more = [constraints.extension()] if constraints.domains else []
    return Authority(_ca(name, key, root, *more, path_length=0, not_before=not_before, not_after=not_after), key)


def sign_leaf(
    issuer: Authority,
    public_key: PublicKey,
    names: Sequence[str],
    *,
    not_before: float,
    not_after: float,
    must_staple: bool = False,
    crl_url: str = "",
) -> x509.Certificate:
    """Return a certificate for TLS servers and clients; ``names[0]`` is the primary name.

    ``must_staple`` makes clients require a stapled OCSP response; ``crl_url`` is the URL of the issuer's CRL.
    """
    # OpenSSL treats an address in the common name as a DNS name, and applies constraints of domains to it.
    is_plain = not (is_address(names[0]) and constraints_of(issuer.certificate).domains)
    is_named = is_plain and len(names[0]) <= _MAX_COMMON_NAME
    common = [x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if is_named else []
    sans = [x509.IPAddress(ip_address(name)) if is_address(name) else x509.DNSName(name) for name in names]
    encipher = isinstance(public_key, rsa.RSAPublicKey)
    builder = (
        _builder(x509.Name(common), public_key, issuer, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True, key_encipherment=encipher), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(sans), critical=not common)
    )
    if must_staple:
        builder = builder.add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    if crl_url:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def pem_of(certificate: x509.Certificate) -> str:
    """Return a certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def key_der(key: PrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS#8 DER."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_pem(key: PrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def serial_text(certificate: x509.Certificate) -> str:
    """Return the serial number as ``04:ab:…``."""
    digits = f"{certificate.serial_number:x}"
    return bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)).hex(":")


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the DER in lower-case hex."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _ca(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Authority | None,
    *extensions: x509.ExtensionType,
    path_length: int,
    not_before: float,
    not_after: float,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, key.public_key(), issuer, not_before, not_after)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key if issuer is None else issuer.key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, public_key: PublicKey, issuer: Authority | None, not_before: float, not_after: float
) -> x509.CertificateBuilder:
    own_id = x509.SubjectKeyIdentifier.from_public_key(public_key)
    if issuer is None:
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id)
    else:
        above = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above.value)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())  # 159 random bits in at most 20 bytes (RFC 5280 §4.1.2.2)
        .not_valid_before(datetime.fromtimestamp(int(not_before), UTC))
        .not_valid_after(datetime.fromtimestamp(int(not_after), UTC))
        .add_extension(own_id, critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _usage(**given: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})
