"""Parse, sort, complete and check certificate chains. Pure; time is an argument."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from certctrl import lean
from certctrl.errors import MaterialError
from certctrl.plane.ca.x509 import pem_of
from certctrl.plane.clock import rfc3339
from certctrl.text import one_line

MAX_CHAIN = 10
"""Certificates of a chain, without the leaf."""
MAX_GIVEN = 100
MIN_RSA_BITS = 2048
GOOD_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
GOOD_HASHES = frozenset({"sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"})
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, OverflowError, x509.InvalidVersion)
"""What `cryptography` raises for malformed bytes."""


@lean.frozen(kw_only=True)
class Chain:
    """A certificate with the certificates that lead from it to a root."""

    leaf: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    """The issuer of the leaf first, without the root."""
    notes: tuple[str, ...] = ()
    """Given certificates that are not part of the chain, and checks that were not possible."""

    @property
    def certificate_pem(self) -> str:
        """The leaf in PEM."""
        return pem_of(self.leaf)

    @property
    def chain_pem(self) -> str:
        """The intermediates in PEM."""
        return "".join(map(pem_of, self.intermediates))


def certificates_of(text: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM text, each once; other PEM blocks are ignored. Raises MaterialError."""
    blocks = [part for part in text.split("-----BEGIN CERTIFICATE-----")[1:] if "-----END CERTIFICATE-----" in part]
    if len(blocks) > MAX_GIVEN:
        raise MaterialError(f"there are more than {MAX_GIVEN} certificates", reason="too-many")
    found: dict[bytes, x509.Certificate] = {}
    for number, block in enumerate(blocks, start=1):
        body = block.partition("-----END CERTIFICATE-----")[0]
        pem = f"-----BEGIN CERTIFICATE-----{body}-----END CERTIFICATE-----\n"
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
            certificate.public_key(), certificate.extensions
        except UNREADABLE:
            what = f"certificate {number} cannot be read"
            raise MaterialError(what, reason="certificate", fix="export it again as PEM") from None
        found.setdefault(certificate.public_bytes(Encoding.DER), certificate)
    return list(found.values())


def chain_of(
    leaf: x509.Certificate, given: Sequence[x509.Certificate], *, known: Collection[x509.Certificate] = (), now: float
) -> Chain:
    """Return the chain of a leaf, from the given certificates and then from those that are ``known``.

    Raises MaterialError if a certificate is missing, expired, weak or not a CA, or if all given ones are of another CA.
    """
    others = [certificate for certificate in given if certificate != leaf]
    path, top = _walk(leaf, [*others, *(one for one in known if one not in others)])
    if top is None and not path:
        raise _missing(leaf, others)
    if len(path) > MAX_CHAIN:
        raise MaterialError(f"the chain has more than {MAX_CHAIN} certificates", reason="too-many")
    for certificate in path:
        _require_ca(certificate, now)
    used = {*path, *((top,) if top is not None else ())}
    notes = [f"not part of the chain: {subject(one)}" for one in others if one not in used]
    if top is None:
        notes.append(f"the root {_name(path[-1].issuer)} is not known here: the end of the chain is not checked")
    return Chain(leaf=leaf, intermediates=path, notes=tuple(notes))


def _walk(
    leaf: x509.Certificate, pool: Sequence[x509.Certificate]
) -> tuple[tuple[x509.Certificate, ...], x509.Certificate | None]:
    """Return the certificates between leaf and root, and the root if the walk ends at one."""
    path: list[x509.Certificate] = []
    at = leaf
    while not _signed_by(at, at):
        above = [one for one in pool if one not in path and one != leaf and _signed_by(at, one)]
        if not above:
            return tuple(path), None
        at = min(above, key=lambda one: (not _signed_by(one, one), -one.not_valid_after_utc.timestamp()))
        path.append(at)
    return tuple(one for one in path if one != at), at


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _missing(leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> MaterialError:
    issuer = _name(leaf.issuer)
    if any(one.subject == leaf.issuer for one in others):
        what = f"the certificate is not signed by the given {issuer}: the names agree, the keys do not"
        return MaterialError(what, reason="other-ca", fix="give the CA certificate that issued it")
    where = f" from {place}" if (place := _published(leaf)) else ""
    fix = f"get the certificate of {issuer}{where} and add it with --chain"
    if others:
        what = f"the given chain is of another CA: it has {subject(others[0])}, the certificate is from {issuer}"
        return MaterialError(what, reason="other-ca", fix=fix)
    return MaterialError(f"the chain lacks the certificate of {issuer}", reason="incomplete", fix=fix)


def _published(leaf: x509.Certificate) -> str:
    """Return where the CA publishes the missing certificate; empty if the certificate does not say."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return ""
    places = [
        str(one.access_location.value) for one in found if one.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    ]
    return one_line(places[0]) if places else ""


def _require_ca(certificate: x509.Certificate, now: float) -> None:
    name = subject(certificate)
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise MaterialError(f"{name} in the chain is not a CA", reason="not-a-ca", fix="give the chain of the CA")
    require_valid(certificate, now, f"{name} in the chain")
    require_strong(certificate, f"{name} in the chain")


def require_valid(certificate: x509.Certificate, now: float, what: str) -> None:
    """Raise MaterialError if a certificate has expired."""
    end = certificate.not_valid_after_utc.timestamp()
    if end <= now:
        raise MaterialError(f"{what} expired at {rfc3339(end)}", reason="expired", fix="get a current one from its CA")


def require_strong(certificate: x509.Certificate, what: str) -> None:
    """Raise MaterialError for a key or a signature that TLS clients refuse."""
    weakness = weakness_of(certificate.public_key())
    if not weakness and not _signed_by(certificate, certificate):
        weakness = _weak_hash(certificate)
    if weakness:
        fix = "get a certificate with an EC P-256 or RSA 2048 key, signed with SHA-256"
        raise MaterialError(f"{what} is too weak: {weakness}", reason="weak", fix=fix)


def _weak_hash(certificate: x509.Certificate) -> str:
    try:
        used = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "it has an unknown signature"
    return f"it is signed with {used.name.upper()}" if used is not None and used.name not in GOOD_HASHES else ""


def weakness_of(key: PublicKeyTypes) -> str:
    """Return why a key must not be used; empty if it is good."""
    match key:
        case rsa.RSAPublicKey():
            return f"an RSA key of {key.key_size} bits" if key.key_size < MIN_RSA_BITS else ""
        case ec.EllipticCurvePublicKey():
            return "" if key.curve.name in GOOD_CURVES else f"a key on the curve {key.curve.name}"
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return ""
        case _:
            return "a key of a kind that TLS does not use"


def key_bytes(key: PublicKeyTypes) -> bytes:
    """Return a public key as SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def subject(certificate: x509.Certificate) -> str:
    """Return the name of a certificate for messages."""
    return _name(certificate.subject)


def _name(name: x509.Name) -> str:
    return one_line(name.rfc4514_string() or "without a name")
