"""Make keys with their CSRs, and check the chains that issuers return for them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from certctrl.errors import MaterialError
from certctrl.plane.ca.csr import key_digest
from certctrl.plane.ca.domains import is_address
from certctrl.plane.ca.issuer import Issued
from certctrl.plane.ca.x509 import PrivateKey, PublicKey, fingerprint, key_der, new_key, pem_of, serial_text
from certctrl.plane.certificates.chains import certificates_of, chain_of, key_bytes
from certctrl.plane.issuers.issuer import IssuedChain, IssuerError
from certctrl.plane.settings import DAY

MAX_ANSWER = 1024 * 1024
_MAX_COMMON_NAME = 64


def new_request(key_type: str, names: tuple[str, ...], must_staple: bool, old_key: bytes) -> tuple[bytes, bytes]:
    """Return a key (PKCS#8) and its CSR, both as DER. Making an RSA key is slow.

    ``old_key`` is reused if it is not empty and of a type that the plane makes; an imported key may be of another one.
    """
    key = serialization.load_der_private_key(old_key, None) if old_key else None
    if not isinstance(key, PrivateKey):
        key = new_key(key_type)
    return key_der(key), csr_of(key, names, must_staple=must_staple)


def csr_of(key: PrivateKey, names: tuple[str, ...], *, must_staple: bool = False) -> bytes:
    """Return the CSR of a key for canonical names, as DER."""
    common = [x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if len(names[0]) <= _MAX_COMMON_NAME else []
    sans = [x509.IPAddress(ip_address(name)) if is_address(name) else x509.DNSName(name) for name in names]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(common))
    builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    if must_staple:
        builder = builder.add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)


def checked_chain(
    chain: IssuedChain,
    csr_der: bytes,
    names: Collection[str],
    *,
    key: bytes,
    now: float,
    refuse: Callable[[Collection[str]], object],
) -> Issued:
    """Return the certificate that an issuer returned for a request; a permanent IssuerError if it must not be used.

    ``key`` is the private key, empty if a device has it; ``refuse`` raises for reserved names.
    """
    if len(chain.certificate_pem) + len(chain.chain_pem) > MAX_ANSWER:
        raise _unusable(f"the issued chain has more than {MAX_ANSWER} bytes")
    try:
        leaves, others = certificates_of(chain.certificate_pem), certificates_of(chain.chain_pem)
        if len(leaves) != 1:
            raise _unusable(f"{len(leaves)} certificates were issued instead of one")
        leaf = leaves[0]
        sorted_chain = chain_of(leaf, others, now=now).chain_pem if others else ""
    except MaterialError as error:
        raise _unusable(str(error), error.fix) from None
    public_key = x509.load_der_x509_csr(csr_der).public_key()
    if key_bytes(leaf.public_key()) != key_bytes(public_key):
        raise _unusable("the issued certificate is for another key")
    _check_names(leaf, names, refuse)
    start, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if end <= now or start > now + DAY:
        what = (
            f"the issued certificate is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}, not now"
        )
        raise _unusable(what, "compare the clocks of the CA and of this control plane")
    assert isinstance(public_key, PublicKey)  # made here, or checked when the device sent its CSR
    return Issued(
        private_key_der=key,
        certificate_pem=pem_of(leaf),
        chain_pem=sorted_chain,
        serial_number=serial_text(leaf),
        fingerprint_sha256=fingerprint(leaf),
        not_before=start,
        not_after=end,
        public_key_sha256=key_digest(public_key),
    )


def _check_names(leaf: x509.Certificate, names: Collection[str], refuse: Callable[[Collection[str]], object]) -> None:
    """Refuse a certificate that lacks a name, is a CA, or is valid for a name of the plane."""
    try:
        if leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise _unusable("the issued certificate is a CA certificate")
    except x509.ExtensionNotFound:
        pass
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise _unusable("the issued certificate has no subject alternative names") from None
    issued = [name.lower() for name in found.get_values_for_type(x509.DNSName)]
    issued += map(str, found.get_values_for_type(x509.IPAddress))
    missing = sorted(set(names) - set(issued))
    if missing:
        raise _unusable(
            f"the issued certificate lacks the name {missing[0]}", "check the template or profile at the CA"
        )
    refuse(issued)


def _unusable(what: str, fix: str | None = None) -> IssuerError:
    return IssuerError(what, fix=fix or "check the settings of the issuer, and what the CA issues", is_permanent=True)
