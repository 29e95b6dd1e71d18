"""Keys of the host and their signing requests, as the control plane and OpenSSL's library read them."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from certctrl.errors import MaterialError
from certctrl.install.material.key_request import is_of_kind, new_key_pem, public_key_sha256, signing_request
from certctrl.model.policy import KeyType
from certctrl.plane.ca.csr import check_csr, der_of_pem

FAST = [kind for kind in KeyType if kind not in (KeyType.RSA_3072, KeyType.RSA_4096)]


@pytest.mark.parametrize("kind", FAST)
def test_the_plane_accepts_the_request_of_each_kind_of_key(kind: KeyType) -> None:
    pem = new_key_pem(kind)
    names = ["www.example", "2001:db8::1", "*.example"]
    checked = check_csr(
        der_of_pem(signing_request(pem, names, must_staple=True)), names, key_type=kind, must_staple=True
    )
    assert (checked.key_type, checked.public_key_sha256) == (kind, public_key_sha256(pem))
    assert [one for one in KeyType if is_of_kind(pem, one)] == [kind]


@pytest.mark.parametrize(
    ("names", "common"),
    [(["www.example"], "www.example"), (["192.0.2.7"], ""), ([f"{'a' * 60}.example"], "")],
)
def test_the_primary_name_is_the_common_name_if_it_can_be(names: list[str], common: str) -> None:
    request = x509.load_pem_x509_csr(signing_request(new_key_pem(KeyType.P256), names).encode())
    found = [str(one.value) for one in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    assert found == ([common] if common else [])
    assert request.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical is not bool(common)


@pytest.mark.parametrize("names", [["bücher.example"], ["a b\N{SNOWMAN}"]])
def test_names_that_no_certificate_can_have_are_refused(names: list[str]) -> None:
    with pytest.raises(MaterialError) as caught:
        signing_request(new_key_pem(KeyType.P256), names)
    assert caught.value.reason == "san"


def test_a_key_that_cannot_be_read_is_refused() -> None:
    for read in (
        public_key_sha256,
        lambda pem: is_of_kind(pem, KeyType.P256),
        lambda pem: signing_request(pem, ["a.b"]),
    ):
        with pytest.raises(MaterialError):
            read(b"-----BEGIN PRIVATE KEY-----\n")
