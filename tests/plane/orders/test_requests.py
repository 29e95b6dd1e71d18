"""Requests of the plane: keys of every type, their CSRs, and keys that are used again."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certctrl.plane.ca.csr import check_csr
from certctrl.plane.ca.x509 import KEY_TYPES
from certctrl.plane.orders.requests import new_request

NAMES = ("www.example.com", "*.example.com", "192.0.2.1", "2001:db8::1")


@pytest.mark.parametrize("key_type", KEY_TYPES)
@pytest.mark.parametrize("must_staple", [False, True])
def test_a_request_of_the_plane_passes_its_own_check(key_type: str, must_staple: bool) -> None:
    key, csr = new_request(key_type, NAMES, must_staple, b"")
    checked = check_csr(csr, NAMES, key_type=key_type, must_staple=must_staple)
    private = serialization.load_der_private_key(key, None)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    assert private.public_key().public_bytes(serialization.Encoding.DER, spki) == checked.public_key.public_bytes(
        serialization.Encoding.DER, spki
    )
    extensions = x509.load_der_x509_csr(csr).extensions
    assert any(isinstance(one.value, x509.TLSFeature) for one in extensions) is must_staple


def test_a_key_is_used_again_if_it_is_given() -> None:
    key, first = new_request("ecdsa-p256", NAMES, False, b"")
    again, second = new_request("ecdsa-p256", ("a.example",), False, key)
    assert again == key
    one, other = (x509.load_der_x509_csr(csr).public_key() for csr in (first, second))
    assert one == other
    assert new_request("ecdsa-p256", NAMES, False, b"")[0] != key


def test_a_long_name_is_no_common_name() -> None:
    name = f"{'a' * 60}.example.com"
    _, csr = new_request("ecdsa-p256", (name,), False, b"")
    assert x509.load_der_x509_csr(csr).subject.rfc4514_string() == ""
    check_csr(csr, (name,))
