"""Revocation lists: who signs them, what they contain, and which list a certificate belongs to."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certctrl.plane.ca.crl import REASONS, Revoked, issuer_key_id, key_id, sign_crl
from certctrl.plane.ca.x509 import Authority, new_intermediate, new_root, pem_of, sign_leaf
from certctrl.plane.settings import DAY

NOW = 1_790_000_000.0


@cache
def authorities() -> tuple[Authority, Authority]:
    """Return a root and an intermediate."""
    root = new_root("root", not_before=NOW, not_after=NOW + 100 * DAY)
    return root, new_intermediate(root, "issuing", not_before=NOW, not_after=NOW + 50 * DAY)


def signed(*revoked: Revoked) -> x509.CertificateRevocationList:
    """Return a list of the intermediate."""
    der = sign_crl(authorities()[1], revoked, number=7, this_update=NOW + 0.9, next_update=NOW + DAY)
    return x509.load_der_x509_crl(der)


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_a_list_is_signed_by_its_issuer_with_number_and_times_in_whole_seconds() -> None:
    root, issuing = authorities()
    found = signed()
    assert found.issuer == issuing.certificate.subject
    assert found.is_signature_valid(issuing.key.public_key())
    assert not found.is_signature_valid(root.key.public_key())
    assert found.signature_hash_algorithm is not None and found.signature_hash_algorithm.name == "sha256"
    assert (found.last_update_utc, found.next_update_utc) == (moment(NOW), moment(NOW + DAY))
    number = found.extensions.get_extension_for_class(x509.CRLNumber)
    identifier = found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert (number.value.crl_number, number.critical, identifier.critical) == (7, False, False)
    assert identifier.value.key_identifier is not None
    assert identifier.value.key_identifier.hex() == key_id(issuing.certificate)
    assert len(list(found)) == 0


@pytest.mark.parametrize("reason", [*REASONS, "", "somethingElse"])
def test_an_entry_has_serial_time_and_reason(reason: str) -> None:
    found = signed(Revoked(0xABC, NOW - 5.5, reason), Revoked(0xDEF, NOW))
    entry = found.get_revoked_certificate_by_serial_number(0xABC)
    assert entry is not None and found.get_revoked_certificate_by_serial_number(0xABD) is None
    assert entry.revocation_date_utc == moment(NOW - 6)
    if reason in ("unspecified", "", "somethingElse"):  # RFC 5280 5.3.1: absent instead of unspecified
        assert len(entry.extensions) == 0
    else:
        extension = entry.extensions.get_extension_for_class(x509.CRLReason)
        assert (extension.value.reason.value, extension.critical) == (reason, False)
    other = found.get_revoked_certificate_by_serial_number(0xDEF)
    assert other is not None and len(other.extensions) == 0


def test_a_certificate_names_the_list_of_its_issuer() -> None:
    root, issuing = authorities()
    leaf = sign_leaf(
        issuing,
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        ["a.example"],
        not_before=NOW,
        not_after=NOW + DAY,
    )
    assert issuer_key_id(pem_of(leaf)) == key_id(issuing.certificate)
    assert issuer_key_id(issuing.pem) == key_id(root.certificate) != key_id(issuing.certificate)


def test_a_certificate_without_the_identifier_belongs_to_no_list() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, moment(NOW), moment(NOW + DAY))
    assert issuer_key_id(pem_of(builder.sign(key, hashes.SHA256()))) == ""
    only_names = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(name)], 1)
    assert issuer_key_id(pem_of(builder.add_extension(only_names, critical=False).sign(key, hashes.SHA256()))) == ""
