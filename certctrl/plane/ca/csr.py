"""Check a certificate signing request before anything is signed. Pure.

Only the public key is taken from a request. Names, key usage and everything else come from the record of the
certificate. A request that disagrees with the record is refused, so that its author never gets something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certctrl import lean
from certctrl.plane.ca.denied_keys import DeniedKeys
from certctrl.plane.ca.domains import is_address
from certctrl.plane.ca.weak_keys import rsa_misfit, rsa_weakness
from certctrl.plane.ca.x509 import PublicKey
from certctrl.plane.errors import ErrorResponse, csr_refused
from certctrl.text import one_line

MAX_CSR_BYTES = 64 * 1024
"""Twice the size of a request with a hundred names of maximum length and an RSA key of 4096 bits."""

_CURVES = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384"}
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_NEW_KEY = "make a new key"
NONE_DENIED = DeniedKeys()


@lean.frozen(kw_only=True)
class CheckedRequest:
    """A request that may be signed."""

    public_key: PublicKey
    key_type: str
    """``ecdsa-p256``, ``ecdsa-p384``, ``ed25519`` or ``rsa-`` with its bits."""
    public_key_sha256: str
    """Lower-case hex of the SubjectPublicKeyInfo's digest."""


def der_of_pem(pem: str) -> bytes:
    """Return the DER of the one request in a PEM text; ErrorResponse 400 if there is not exactly one."""
    if len(pem) > 2 * MAX_CSR_BYTES:
        raise _too_large(len(pem))
    if pem.count("-----BEGIN ") != 1:
        raise csr_refused("the text does not contain exactly one request in PEM", "malformed", "send one request")
    try:
        return x509.load_pem_x509_csr(pem.encode()).public_bytes(serialization.Encoding.DER)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _unreadable(error) from None


def check_csr(
    csr_der: bytes,
    names: Collection[str],
    *,
    key_type: str = "",
    must_staple: bool = False,
    denied: DeniedKeys = NONE_DENIED,
) -> CheckedRequest:
    """Check a request for canonical names; ErrorResponse 400 with ``reason`` if it must not be signed.

    ``key_type`` is the one that the key must have; empty: any that the CA signs. ``must_staple`` allows, but does not
    require, that the request asks for the extension. Keys in ``denied`` are refused. Bad keys are refused before their signature costs time.
    """
    if len(csr_der) > MAX_CSR_BYTES:
        raise _too_large(len(csr_der))
    try:
        request = x509.load_der_x509_csr(csr_der)
        public_key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _unreadable(error) from None
    if not isinstance(public_key, PublicKey):
        raise _bad_key("is neither an EC, an RSA nor an Ed25519 key", "key-type")
    found = _type_of(public_key)
    if key_type and found != key_type:
        fix = f"make a key of the type {key_type}"
        raise csr_refused(f"the key is of the type {found}, and the certificate's is {key_type}", "key-type", fix)
    if isinstance(public_key, rsa.RSAPublicKey):
        weakness = rsa_weakness(public_key.public_numbers().n)
        if weakness:
            raise _bad_key(weakness, "weak-key")
    digest = key_digest(public_key)
    if denied.has(public_key, digest):
        raise _bad_key("is in the operator's lists of keys that must not be used", "denied-key")
    _check_signature(request)
    try:
        _check_names(request, names)
        _check_extensions(request.extensions, must_staple)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _unreadable(error) from None
    return CheckedRequest(public_key=public_key, key_type=found, public_key_sha256=digest)


def key_digest(public_key: PublicKey) -> str:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo in lower-case hex."""
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _type_of(public_key: PublicKey) -> str:
    """Return the type of a key; ErrorResponse 400 if the CA signs no such keys."""
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        curve = _CURVES.get(public_key.curve.name)
        if curve is None:
            raise _bad_key(f"is on the curve {public_key.curve.name}, not P-256 or P-384", "key-type")
        return curve
    numbers = public_key.public_numbers()
    misfit = rsa_misfit(numbers.n, numbers.e)
    if misfit:
        raise _bad_key(misfit, "key-size")
    return f"rsa-{public_key.key_size}"


def _check_signature(request: x509.CertificateSigningRequest) -> None:
    """Refuse a request that is not signed with its own key."""
    fix = "make the request with the certificate's own key and SHA-256"
    try:
        digest = request.signature_hash_algorithm  # None for Ed25519
        strong = digest is None or isinstance(digest, _HASHES)
        valid = strong and request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        strong, valid = False, False
    if not strong:
        raise csr_refused("its signature is not one with SHA-256, SHA-384, SHA-512 or Ed25519", "signature", fix)
    if not valid:
        raise csr_refused("its signature is not by its own key", "signature", fix)


def _check_names(request: x509.CertificateSigningRequest, names: Collection[str]) -> None:
    """Refuse a request whose names differ from the record's."""
    common = [str(attribute.value).lower() for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        general = list(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        general = []
    other = [type(name).__name__ for name in general if not isinstance(name, x509.DNSName | x509.IPAddress)]
    if other:
        what = f"it contains a name that is neither a DNS name nor an address ({other[0]})"
        raise csr_refused(what, "names", "leave it out")
    asked = {str(name.value).lower() for name in general}
    extra, missing = sorted((asked | set(common)) - set(names)), sorted(set(names) - asked)
    if any(is_address(name) != isinstance(one, x509.IPAddress) for one in general for name in [str(one.value)]):
        raise csr_refused("it contains an address as a DNS name", "names", "write addresses as IP:…")
    if extra or missing:
        wrong = f"asks for {_quoted(extra)}, which is not" if extra else f"lacks {_quoted(missing)}, which is"
        fix = "make it for exactly the certificate's names, as subject alternative names"
        raise csr_refused(f"it {wrong} a name of the certificate", "names", fix)


def _check_extensions(extensions: x509.Extensions, must_staple: bool) -> None:
    """Refuse a request for extensions that a certificate for TLS servers and clients does not have."""
    for extension in extensions:
        value, allowed = extension.value, False
        match value:
            case x509.SubjectAlternativeName() | x509.SubjectKeyIdentifier():
                allowed = True
            case x509.BasicConstraints():
                allowed = not value.ca
            case x509.KeyUsage():
                allowed = not (value.key_cert_sign or value.crl_sign)
            case x509.ExtendedKeyUsage():
                allowed = set(value) <= {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
            case x509.TLSFeature():
                allowed = must_staple and list(value) == [x509.TLSFeatureType.status_request]
            case _:
                pass
        if not allowed:
            name = getattr(extension.oid, "_name", "")
            shown = name if name and name != "Unknown OID" else extension.oid.dotted_string
            what = f"it asks for the extension {shown} with a value that the certificate does not have"
            raise csr_refused(what, "extension", "leave the extension out")


def _quoted(names: list[str]) -> str:
    return repr(names[0][:100]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _bad_key(what: str, reason: str) -> ErrorResponse:
    return csr_refused(f"the key {what}", reason, _NEW_KEY)


def _too_large(size: int) -> ErrorResponse:
    return csr_refused(f"it has {size} bytes, more than {MAX_CSR_BYTES}", "malformed", "send a smaller request")


def _unreadable(error: Exception) -> ErrorResponse:
    return csr_refused(
        f"it cannot be read: {one_line(str(error))}", "malformed", "send PKCS#10, for example of openssl req -new"
    )
