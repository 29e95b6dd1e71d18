"""Parse the chains that a CA sends, choose the preferred one, and check its leaf against the request."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from certctrl import lean
from certctrl.plane.acme.answers import invalid_answer
from certctrl.plane.issuers.issuer import IssuedChain
from certctrl.text import one_line

MAX_CHAIN = 10
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


@lean.frozen
class Chain:
    """A leaf with the certificates above it."""

    certificates: tuple[x509.Certificate, ...]

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that was ordered."""
        return self.certificates[0]

    @property
    def root_name(self) -> str:
        """Common name of the root that it leads to."""
        return _common_name(self.certificates[-1].issuer)

    def issued(self) -> IssuedChain:
        """Return the certificate and its chain without the root."""
        above = [one for one in self.certificates[1:] if one.issuer != one.subject]
        return IssuedChain(certificate_pem=_pem(self.leaf), chain_pem="".join(map(_pem, above)))


def read_chain(body: bytes) -> Chain:
    """Return the chain of an answer of type ``application/pem-certificate-chain``; raises IssuerError."""
    parts = body.split(_BEGIN)[1:]
    if not parts or len(parts) > MAX_CHAIN + 1:
        raise invalid_answer("certificate", f"it has {len(parts)} certificates; 1 to {MAX_CHAIN + 1} are read")
    try:
        found = [x509.load_pem_x509_certificate(_BEGIN + part.partition(_END)[0] + _END + b"\n") for part in parts]
    except (ValueError, x509.InvalidVersion):
        raise invalid_answer("certificate", "it is not PEM") from None
    chain, rest = [found[0]], found[1:]
    while (above := next((one for one in rest if _issued(chain[-1], one)), None)) is not None:
        chain.append(above)
        rest.remove(above)
    if rest:
        raise invalid_answer("certificate", f"{len(rest)} of the certificates after it are not its issuers")
    return Chain(tuple(chain))


def preferred(chains: Sequence[Chain], root_name: str) -> Chain:
    """Return the chain whose root has the preferred common name; otherwise the first, the CA's default."""
    return next((chain for chain in chains if root_name and chain.root_name == root_name), chains[0])


def check_leaf(leaf: x509.Certificate, csr_der: bytes, names: Sequence[str]) -> None:
    """Raise IssuerError unless a certificate is for the key of the request and for exactly the ordered names."""
    if _public_key(leaf) != _public_key(x509.load_der_x509_csr(csr_der)):
        raise invalid_answer("certificate", "it is for another key than the request")
    wanted, got = {_canonical(name) for name in names}, _names(leaf)
    if wanted != got:
        wrong = ", ".join(one_line(name, 80) for name in sorted(wanted ^ got)[:5])
        raise invalid_answer("certificate", f"its names differ from those ordered: {wrong}")


def _issued(below: x509.Certificate, above: x509.Certificate) -> bool:
    """Return whether a certificate is signed by another one."""
    try:
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return below != above


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return set()
    names = {name.lower() for name in found.get_values_for_type(x509.DNSName)}
    return names | {str(address) for address in found.get_values_for_type(x509.IPAddress)}


def _canonical(name: str) -> str:
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower()


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _public_key(holder: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
