"""Certificates of the built-in CA: every field of root, intermediate and leaf, and the forms in which they are stored."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certctrl.plane.ca.x509 import (
    KEY_TYPES,
    Authority,
    PrivateKey,
    fingerprint,
    key_der,
    key_pem,
    new_intermediate,
    new_key,
    new_root,
    serial_text,
    sign_leaf,
)
from certctrl.plane.settings import DAY

NOW = 1_790_000_000.0
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign",
)  # fmt: skip


@cache
def key_of(kind: str) -> PrivateKey:
    return new_key(kind)


@cache
def authorities() -> tuple[Authority, Authority]:
    """Return a root and an intermediate."""
    root = new_root("the root", not_before=NOW + 0.9, not_after=NOW + 100 * DAY)
    return root, new_intermediate(root, "the issuer", not_before=NOW, not_after=NOW + 50 * DAY)


def leaf(*names: str, kind: str = "ecdsa-p256", must_staple: bool = False, crl_url: str = "") -> x509.Certificate:
    return sign_leaf(
        authorities()[1], key_of(kind).public_key(), names, not_before=NOW, not_after=NOW + DAY,
        must_staple=must_staple, crl_url=crl_url,
    )  # fmt: skip


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


def usages(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert found.critical
    return {name for name in USAGES if getattr(found.value, name)}


def test_a_root_signs_itself_and_may_have_one_ca_below() -> None:
    root, _ = authorities()
    certificate = root.certificate
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == "CN=the root"
    assert certificate.not_valid_before_utc == datetime.fromtimestamp(NOW, UTC)
    assert root.not_after == NOW + 100 * DAY
    basic = extension(certificate, x509.BasicConstraints)
    assert (basic.value, basic.critical) == (x509.BasicConstraints(ca=True, path_length=1), True)
    assert usages(certificate) == {"key_cert_sign", "crl_sign"}


def test_an_intermediate_is_issued_by_the_root_and_may_have_no_ca_below() -> None:
    root, issuing = authorities()
    issuing.certificate.verify_directly_issued_by(root.certificate)
    basic = extension(issuing.certificate, x509.BasicConstraints)
    assert (basic.value, basic.critical) == (x509.BasicConstraints(ca=True, path_length=0), True)
    assert usages(issuing.certificate) == {"key_cert_sign", "crl_sign"}
    above = root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    below = issuing.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert below.value.key_identifier == above.value.digest
    assert not above.critical and not below.critical
    assert key_of("ecdsa-p256") is not issuing.key and isinstance(issuing.key.curve, ec.SECP256R1)


def test_a_leaf_is_for_servers_and_clients_and_no_ca() -> None:
    certificate = leaf("www.example.com", "*.example.com", "192.0.2.1", "2001:db8::1")
    certificate.verify_directly_issued_by(authorities()[1].certificate)
    basic = extension(certificate, x509.BasicConstraints)
    assert (basic.value, basic.critical) == (x509.BasicConstraints(ca=False, path_length=None), True)
    purposes = extension(certificate, x509.ExtendedKeyUsage)
    wanted = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    assert (purposes.value, purposes.critical) == (wanted, False)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["www.example.com", "*.example.com"]
    assert names.value.get_values_for_type(x509.IPAddress) == [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    assert not names.critical
    assert certificate.subject.rfc4514_string() == "CN=www.example.com"
    assert certificate.version is x509.Version.v3


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_only_rsa_keys_encipher(kind: str) -> None:
    wanted = {"digital_signature"} | ({"key_encipherment"} if kind.startswith("rsa") else set())
    assert usages(leaf("a.example", kind=kind)) == wanted


@pytest.mark.parametrize(("length", "is_named"), [(64, True), (65, False)])
def test_a_name_too_long_for_a_common_name_makes_the_alternative_names_critical(length: int, is_named: bool) -> None:
    name = ("a" * 40 + "." + "b" * 40)[: length - 2] + ".c"
    certificate = leaf(name)
    assert [part.value for part in certificate.subject] == ([name] if is_named else [])
    assert extension(certificate, x509.SubjectAlternativeName).critical is not is_named


def test_an_address_may_be_the_common_name_without_constraints() -> None:
    common = leaf("192.0.2.1").subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [part.value for part in common] == ["192.0.2.1"]


def test_must_staple_and_list_are_extensions_of_those_that_ask() -> None:
    plain = {one.oid for one in leaf("a.example").extensions}
    certificate = leaf("a.example", must_staple=True, crl_url="http://plane.example/crl/ab.crl")
    assert {one.oid for one in certificate.extensions} - plain == {x509.TLSFeature.oid, x509.CRLDistributionPoints.oid}
    feature = extension(certificate, x509.TLSFeature)
    assert (feature.value, feature.critical) == (x509.TLSFeature([x509.TLSFeatureType.status_request]), False)
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    (point,) = points.value
    assert (
        point.full_name == [x509.UniformResourceIdentifier("http://plane.example/crl/ab.crl")] and not points.critical
    )
    assert (point.relative_name, point.reasons, point.crl_issuer) == (None, None, None)


def test_the_sealed_form_of_an_authority_is_read_back() -> None:
    root, _ = authorities()
    form = root.sealed_form()
    again = Authority.from_sealed_form(form)
    assert (again.certificate, again.key.private_numbers()) == (root.certificate, root.key.private_numbers())
    assert form.startswith(b"-----BEGIN PRIVATE KEY-----") and form.endswith(root.pem.encode())
    assert "PRIVATE" not in repr(root) and str(root.key.private_numbers().private_value) not in repr(root)


@pytest.mark.parametrize(
    ("kind", "made", "size"),
    [
        ("ecdsa-p256", ec.EllipticCurvePrivateKey, 256), ("ecdsa-p384", ec.EllipticCurvePrivateKey, 384),
        ("rsa-2048", rsa.RSAPrivateKey, 2048), ("ed25519", ed25519.Ed25519PrivateKey, None),
    ],
)  # fmt: skip
def test_keys_are_of_the_type_that_was_asked_for(kind: str, made: type, size: int | None) -> None:
    key = key_of(kind)
    assert isinstance(key, made) and getattr(key, "key_size", None) == size
    if isinstance(key, rsa.RSAPrivateKey):
        assert key.private_numbers().public_numbers.e == 65_537
    for data, load in (
        (key_der(key), serialization.load_der_private_key),
        (key_pem(key), serialization.load_pem_private_key),
    ):
        assert key_der(load(data, None)) == key_der(key)  # type: ignore[arg-type]


def test_serials_and_fingerprints_as_text() -> None:
    certificate = leaf("a.example")
    assert int(serial_text(certificate).replace(":", ""), 16) == certificate.serial_number > 0
    assert all(len(part) == 2 for part in serial_text(certificate).split(":"))
    assert fingerprint(certificate) == hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    assert leaf("a.example").serial_number != certificate.serial_number
