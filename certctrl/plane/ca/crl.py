"""Sign certificate revocation lists (RFC 5280 §5), and find the list of a certificate. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from certctrl import lean
from certctrl.plane.ca.x509 import Authority

REASONS = {
    "unspecified": x509.ReasonFlags.unspecified,
    "keyCompromise": x509.ReasonFlags.key_compromise,
    "affiliationChanged": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessationOfOperation": x509.ReasonFlags.cessation_of_operation,
}
"""The reasons for which a leaf can be revoked, by their names in RFC 5280 §5.3.1."""


@lean.frozen
class Revoked:
    """One entry of a list."""

    serial: int
    at: float
    """Seconds since the epoch."""
    reason: str = ""


def sign_crl(
    issuer: Authority, revoked: Iterable[Revoked], *, number: int, this_update: float, next_update: float
) -> bytes:
    """Return the DER of an issuer's list."""
    above = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    # All entries together: the builder copies its list for each entry that is added.
    builder = x509.CertificateRevocationListBuilder(revoked_certificates=[_entry(one) for one in revoked])
    crl = (
        builder.issuer_name(issuer.certificate.subject)
        .last_update(_time(this_update))
        .next_update(_time(next_update))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above.value), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    return crl.public_bytes(serialization.Encoding.DER)


def key_id(certificate: x509.Certificate) -> str:
    """Return the subject key identifier of a CA in lower-case hex; it names the CA's list."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def issuer_key_id(certificate_pem: str) -> str:
    """Return the key identifier of a certificate's issuer in lower-case hex; empty if it names none."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (ValueError, x509.ExtensionNotFound):
        return ""
    return "" if identifier is None else identifier.hex()


def _entry(revoked: Revoked) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(revoked.serial).revocation_date(_time(revoked.at))
    reason = REASONS.get(revoked.reason, x509.ReasonFlags.unspecified)
    if reason is not x509.ReasonFlags.unspecified:  # expressed by the absence of the extension
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
