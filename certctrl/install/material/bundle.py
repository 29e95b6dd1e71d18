"""Open a certificate's material and check that its parts belong together, on the bytes that will be staged.

``open_bundle`` returns a complete, checked Bundle or raises. Every certificate is parsed once. Most certificates of
a fleet have the same few intermediates, so a verified chain is cached; what depends on the time or the leaf is checked
on each call. Order, duplicates, a leaf or root in the chain, and fields that overlap do not matter: the chain is sorted
by its signatures. The PEM on disk is encoded again from the parsed certificates: text between blocks, or blocks of
another kind, in the plane's response never reach a service.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from certctrl import lean
from certctrl.errors import MaterialError, NotYetValidError, WrongNamesError
from certctrl.install.material.domains import is_covered, plain_domain
from certctrl.install.material.formats import virtual_files as virtual_files
from certctrl.install.material.private_key import UNREADABLE, checked_key_pem, unsealed_key
from certctrl.model.certificate import Bundle, CertFacts, DeployMaterials
from certctrl.text import same_serial, serial_text

WEAK_HASHES = frozenset({"md5", "sha1"})
LONGEST_CHAIN = 10
LARGEST_PEM = 256 * 1024


def open_bundle(
    cert_id: int,
    name: str,
    materials: DeployMaterials,
    device_secret: bytes,
    *,
    allow_plaintext: bool,
    now: float,
    expected_domains: Iterable[str],
    brainpool: bool = False,
) -> Bundle:
    """Open and check the material of one certificate.

    ``device_secret``: the raw X25519 secret (32 bytes; empty if this host has none). ``now``: wall-clock seconds.
    ``expected_domains``: the assignment, primary domain first; the leaf's SAN must cover all of them.
    ``brainpool``: accept keys on brainpool curves.
    Raises NotYetValidError, or MaterialError with a stable ``reason``. No message quotes secret bytes.
    """
    leaf, path = _certificates(materials.certificate_pem or "", materials.chain_pem or "")
    chain = _chain(_without_expired_top(path, now))
    _check_hash(leaf)
    _check_serial(leaf, materials.serial_number)
    domains = _covered_domains(leaf, tuple(expected_domains))
    raw_key = unsealed_key(materials, device_secret, allow_plaintext=allow_plaintext)
    key_pem = checked_key_pem(raw_key, leaf, brainpool=brainpool)
    _check_time(leaf, chain, now)  # last, so that a certificate that is not valid yet has passed all other checks
    return Bundle(
        facts=facts_of(leaf, cert_id, name, domains, ends=chain.not_after),
        key_pem=key_pem,
        certificate_pem=leaf.public_bytes(Encoding.PEM),
        chain_pem=chain.pem,
    )


def facts_of(
    leaf: x509.Certificate, cert_id: int, name: str, domains: tuple[str, ...], *, ends: float = float("inf")
) -> CertFacts:
    """Return the facts of a parsed leaf; ``ends``: the earliest end of its chain's certificates."""
    return CertFacts(
        cert_id=cert_id,
        name=name,
        domains=domains,
        serial=serial_text(leaf.serial_number),
        fingerprint_sha256=leaf.fingerprint(hashes.SHA256()).hex(),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=min(leaf.not_valid_after_utc.timestamp(), ends),
    )


# --- the chain ----------------------------------------------------------------------------------------------------


@lean.frozen
class _Chain:
    """Certificates from the leaf's issuer upwards, each issued by the next, as clients need them."""

    pem: bytes
    """Without a root above an intermediate, since clients have their own."""
    not_before: float
    not_after: float
    """The earliest end of the chain, including that of an omitted root."""


def _certificates(leaf_pem: str, chain_pem: str) -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    """Return the leaf and the path above it, in any order and from either field. Raises MaterialError."""
    own = _parsed(leaf_pem, "leaf")
    if not own:
        raise MaterialError("the bundle has no certificate", reason="leaf-unreadable")
    chain = _parsed(chain_pem, "chain")
    found = (
        (own[0], *(one for one in chain if one != own[0])) if len(own) == 1 else tuple(dict.fromkeys((*own, *chain)))
    )
    if len(found) > LONGEST_CHAIN + 1:
        raise MaterialError(f"the chain is longer than {LONGEST_CHAIN} certificates", reason="chain-order")
    leaf = next((one for one in own if not any(_is_issued(other, one) for other in own if other != one)), own[0])
    others = tuple(one for one in found if one != leaf)
    issuers = tuple(one for one in others if _is_issued(leaf, one))
    if others and not issuers:
        raise MaterialError("the chain does not contain the issuer of the certificate", reason="chain-order")
    return leaf, _path(issuers, others)


@lru_cache(maxsize=32)
def _parsed(pem: str, which: str) -> tuple[x509.Certificate, ...]:
    if not pem.strip():
        return ()
    if len(pem) > LARGEST_PEM:
        raise MaterialError(f"the {which} is larger than {LARGEST_PEM // 1024} KiB", reason="too-large")
    try:
        return tuple(dict.fromkeys(x509.load_pem_x509_certificates(pem.encode())))
    except UNREADABLE:
        raise MaterialError(f"the {which} is not PEM of certificates", reason=f"{which}-unreadable") from None


@lru_cache(maxsize=32)
def _path(issuers: tuple[x509.Certificate, ...], others: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...]:
    """Sort the certificates above a leaf by their signatures, up to a root if there is one. Raises MaterialError.

    ``issuers``: those of ``others`` that signed the leaf. Where a CA has several certificates (cross-signatures), the
    one that is valid longest is used.
    """
    links: list[x509.Certificate] = []
    reached, above = set(issuers), issuers
    while above:
        links.append(max(above, key=_ends))
        candidates = () if _is_root(links[-1]) else others
        above = tuple(one for one in candidates if one not in links and _is_issued(links[-1], one))
    todo = [*issuers]
    while todo:
        lower = todo.pop()
        new = [one for one in others if one not in reached and _is_issued(lower, one)]
        reached.update(new)
        todo += new
    if len(reached) < len(others):
        raise MaterialError(
            "the chain contains an unrelated certificate, or a link is missing",
            reason="chain-order",
        )
    return tuple(links)


def _without_expired_top(path: tuple[x509.Certificate, ...], now: float) -> tuple[x509.Certificate, ...]:
    """Return a path without its expired part above the leaf's issuer.

    No client accepts a path through an expired certificate, such as the signature of an old root for a newer one;
    clients that know the newer root need none. An expired issuer of the leaf stays, and is refused.
    """
    return path[:1] + tuple(takewhile(lambda link: _ends(link) > now, path[1:]))


@lru_cache(maxsize=32)
def _chain(path: tuple[x509.Certificate, ...]) -> _Chain:
    """Check CA flags and strength of a path. Raises MaterialError."""
    links = path[:-1] if len(path) > 1 and _is_root(path[-1]) else path
    for link in links:
        _check_ca(link)
        if link.issuer != link.subject:  # a root's own signature does not matter
            _check_hash(link)
    try:
        begins = max((link.not_valid_before_utc.timestamp() for link in links), default=float("-inf"))
    except UNREADABLE:
        raise MaterialError("a date in the chain cannot be read", reason="chain-unreadable") from None
    ends = min(map(_ends, path), default=float("inf"))
    return _Chain(b"".join(link.public_bytes(Encoding.PEM) for link in links), begins, ends)


@lru_cache(maxsize=32)
def chain_end(pem: bytes) -> float:
    """Return the earliest end of the certificates of a chain on disk; infinity for an empty or unreadable one."""
    try:
        return min(map(_ends, _parsed(pem.decode(), "chain")), default=float("inf"))
    except (MaterialError, UnicodeError):
        return float("inf")


def _ends(link: x509.Certificate) -> float:
    try:
        return link.not_valid_after_utc.timestamp()
    except UNREADABLE:
        raise MaterialError("a date in the chain cannot be read", reason="chain-unreadable") from None


def _is_issued(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    """Return whether the upper certificate signed the lower one."""
    try:
        lower.verify_directly_issued_by(upper)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def _is_root(link: x509.Certificate) -> bool:
    return _is_issued(link, link)


def _check_ca(link: x509.Certificate) -> None:
    try:
        marked = link.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        marked = False
    except (*UNREADABLE, x509.DuplicateExtension):
        raise MaterialError("extensions in the chain cannot be read", reason="chain-unreadable") from None
    if not marked:
        raise MaterialError("the chain contains a certificate that is not a CA", reason="chain-order")


def _check_hash(certificate: x509.Certificate) -> None:
    try:
        used = certificate.signature_hash_algorithm
    except UNREADABLE:
        raise MaterialError("the signature algorithm of a certificate is unknown", reason="signature-weak") from None
    if used is not None and used.name in WEAK_HASHES:
        raise MaterialError(f"a certificate is signed with {used.name}", reason="signature-weak")


# --- the leaf -----------------------------------------------------------------------------------------------------


def _check_time(leaf: x509.Certificate, chain: _Chain, now: float) -> None:
    try:  # Python has no year 0
        begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    except UNREADABLE:
        raise MaterialError("the dates of the certificate cannot be read", reason="leaf-unreadable") from None
    if ends.timestamp() <= now:
        raise MaterialError(
            f"the certificate expired at {ends:%Y-%m-%d %H:%M}Z",
            reason="expired",
            fix="renew it at the plane, or check this host's clock",
        )
    if chain.not_after <= now:
        raise MaterialError(
            "the certificate of its issuer has expired", reason="chain-expired", fix="renew it at the plane or its CA"
        )
    valid_from = max(begins.timestamp(), chain.not_before)
    if valid_from > now:
        raise NotYetValidError(
            f"the certificate is valid only in {valid_from - now:.0f} s (from {begins:%Y-%m-%d %H:%M:%S}Z)",
            valid_from=valid_from,
        )


def _check_serial(leaf: x509.Certificate, reported: str) -> None:
    """Reject a leaf whose serial is not the reported one; colons, case and decimal notation do not matter."""
    if reported.strip(" 0:") and not same_serial(reported, leaf.serial_number):
        raise MaterialError(
            "the serial number of the certificate is not the one that the plane reports", reason="serial-mismatch"
        )


def _covered_domains(leaf: x509.Certificate, expected: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the SAN, the assigned primary domain first; all expected names must be covered.

    These are the DNS names and addresses; without any, the URIs and e-mail addresses, as in certificates of workloads.
    """
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        values: dict[type, list[str]] = {}
        for name in san:  # the library's own selection by type takes as long as the signature
            values.setdefault(type(name), []).append(str(name.value))
        hosts = [*map(str.lower, values.get(x509.DNSName, ())), *values.get(x509.IPAddress, ())]
        others = [*values.get(x509.UniformResourceIdentifier, ()), *values.get(x509.RFC822Name, ())]
    except x509.ExtensionNotFound:
        raise WrongNamesError(
            "the certificate has no subject alternative name; clients ignore its common name"
        ) from None
    except (*UNREADABLE, x509.DuplicateExtension):
        raise MaterialError("the certificate's names cannot be read", reason="leaf-unreadable") from None
    covering, workloads = frozenset(hosts), frozenset(others)  # there may be thousands of names
    wanted = [plain for domain in expected if (plain := domain if domain in workloads else plain_domain(domain))]
    missing = [one for one in wanted if one not in workloads and not is_covered(one, covering)]
    names = hosts or others
    if missing or not names:
        what = f"is not for {', '.join(missing[:5])}" if missing else "has no DNS name, address, URI or e-mail address"
        raise WrongNamesError(f"the certificate {what}")
    primary = [name for name in wanted[:1] if name in names]
    return tuple(dict.fromkeys((*primary, *names)))
