"""The built-in CA signs requests."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID
from cryptography.x509.verification import PolicyBuilder, Store
from csrs import csr
from plane_world import WALL, World

from certctrl.plane.ca.issuer import Issued
from certctrl.plane.errors import ErrorResponse

NAMES = ("www.example.com", "192.0.2.1")


async def signed(world: World, der: bytes | None = None, **options: Any) -> tuple[Issued, x509.Certificate]:
    issued = await world.plane.ca.sign_csr(der or csr(NAMES), NAMES, validity_seconds=3600, **options)
    return issued, x509.load_pem_x509_certificate(issued.certificate_pem.encode())


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65_537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
async def test_the_certificate_is_for_the_key_of_the_request_and_verifies(
    world: World, key: ec.EllipticCurvePrivateKey
) -> None:
    issued, leaf = await signed(world, csr(NAMES, key=key))
    assert leaf.public_key() == key.public_key()
    assert issued.private_key_der == b""
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_encipherment == isinstance(key, rsa.RSAPrivateKey)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(issued.chain_pem.encode()))
        return  # the verifier follows the rules of public web sites, which know no Ed25519
    root = x509.load_pem_x509_certificate(world.plane.ca.root_pem.encode())
    verifier = PolicyBuilder().store(Store([root])).time(dt.datetime.fromtimestamp(WALL + 1, dt.UTC))
    chain = x509.load_pem_x509_certificates(issued.chain_pem.encode())
    verifier.build_server_verifier(x509.DNSName(NAMES[0])).verify(leaf, chain)


async def test_only_the_key_is_taken_from_a_request(world: World) -> None:
    _, plain = await signed(world)
    _, leaf = await signed(world, csr(NAMES, common="www.example.com", extensions=[x509.BasicConstraints(False, None)]))
    assert [one.oid for one in leaf.extensions] == [one.oid for one in plain.extensions]
    assert leaf.subject == plain.subject


async def test_must_staple_is_an_extension_of_those_that_want_it(world: World) -> None:
    _, plain = await signed(world)
    _, stapled = await signed(world, must_staple=True)
    with pytest.raises(x509.ExtensionNotFound):
        plain.extensions.get_extension_for_oid(ExtensionOID.TLS_FEATURE)
    feature = stapled.extensions.get_extension_for_class(x509.TLSFeature)
    assert (list(feature.value), feature.critical) == ([x509.TLSFeatureType.status_request], False)


async def test_serial_numbers_are_positive_random_and_of_at_most_20_bytes(world: World) -> None:
    serials = [(await signed(world))[1].serial_number for _ in range(64)]
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert len({serial >> 119 for serial in serials}) == len(serials)  # the first five bytes alone differ
    assert any(serial >> 151 for serial in serials)


async def test_a_request_for_other_names_gets_no_certificate(world: World) -> None:
    with pytest.raises(ErrorResponse) as caught:
        await signed(world, csr(["www.example.com"]))
    assert caught.value.key == "CSR_REFUSED"
