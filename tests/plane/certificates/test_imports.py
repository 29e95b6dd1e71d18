"""Imports on both engines: what is accepted, what is refused and why, and renewals of the same certificate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from engine_plane import WALL, plane_on, registered
from made_chains import DAY, Made, made, pki

from certctrl.errors import MaterialError
from certctrl.plane.certificates.imports import (
    ImportRequest,
    _require_usable,
    check_import,
    from_pkcs12,
    private_key,
    system_roots,
)
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage.database import Database

ROOT, MIDDLE = pki()
NAMES = ["www.example.com", "*.example.com", "192.0.2.7"]
NOW = WALL


def leaf(**options: Any) -> Made:
    return made("www.example.com", MIDDLE, **{"names": NAMES, **options})


def given(one: Made, *chain: Made, key: Made | None = None) -> ImportRequest:
    return ImportRequest(
        certificate_pem=one.pem, private_key_pem=(key or one).key_pem, chain_pem="".join(c.pem for c in chain)
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def test_certificates_in_any_order_and_place() -> None:
    one = leaf()
    for text in (one.pem + MIDDLE.pem + ROOT.pem, ROOT.pem + MIDDLE.pem + one.pem + one.pem):
        found = check_import(ImportRequest(certificate_pem=text, private_key_pem=one.key_pem), now=NOW)
        assert found.names == ("www.example.com", "*.example.com", "192.0.2.7")
        assert found.chain.chain_pem == MIDDLE.pem
        assert found.key_type == "ecdsa-p256"


@pytest.mark.parametrize(
    ("bad", "reason", "says"),
    [
        (lambda: given(leaf(), key=leaf()), "key-mismatch", "does not belong to CN=www.example.com"),
        (lambda: given(leaf(end=NOW - 1), MIDDLE), "expired", "the certificate expired at"),
        (lambda: given(leaf(key=rsa.generate_private_key(65537, 1024)), MIDDLE), "weak", "RSA key of 1024 bits"),
        (lambda: given(leaf(key=ec.generate_private_key(ec.SECP192R1())), MIDDLE), "weak", "curve secp192r1"),
        (lambda: given(leaf(), pki(1, "Other ")[1]), "other-ca", "of another CA"),
        (lambda: given(leaf()), "incomplete", "lacks the certificate of CN=Intermediate 1"),
        (lambda: given(leaf(names=[]), MIDDLE), "names", "no subject alternative names"),
        (lambda: given(leaf(names=["spiffe://a.example/web"]), MIDDLE), "names",
         "no DNS name and no IP address, only others such as spiffe://a.example/web"),
        (lambda: given(leaf(names=["ann@example.com"]), MIDDLE), "names", "only others such as ann@example.com"),
        (lambda: given(MIDDLE, ROOT), "ca", "is the certificate of a CA"),
        (lambda: ImportRequest(certificate_pem="hello", private_key_pem=leaf().key_pem), "certificate", "no certificate"),
        (lambda: ImportRequest(certificate_pem=leaf().pem, private_key_pem="hello"), "key", "cannot be read"),
    ],
)  # fmt: skip
def test_refusals(bad: Callable[[], ImportRequest], reason: str, says: str) -> None:
    with pytest.raises(MaterialError, match=says) as caught:
        check_import(bad(), now=NOW)
    assert caught.value.reason == reason
    assert caught.value.fix


def test_pkcs12() -> None:
    one = leaf()
    for encryption, password in ((BestAvailableEncryption(b"hunter"), b"hunter"), (NoEncryption(), b"")):
        data = pkcs12.serialize_key_and_certificates(
            b"www", one.key, one.certificate, [ROOT.certificate, MIDDLE.certificate], encryption
        )
        found = check_import(from_pkcs12(data, password), now=NOW)
        assert found.chain.chain_pem == MIDDLE.pem
    secret = pkcs12.serialize_key_and_certificates(
        b"www", one.key, one.certificate, None, BestAvailableEncryption(b"hunter")
    )
    for wrong in (b"", b"other"):
        with pytest.raises(MaterialError, match="the password is wrong"):
            from_pkcs12(secret, wrong)
    without = pkcs12.serialize_key_and_certificates(b"www", None, None, [ROOT.certificate], NoEncryption())
    with pytest.raises(MaterialError, match="has not a private key"):
        from_pkcs12(without, b"")


def test_encrypted_keys() -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter"))
    assert private_key(data, b"hunter").private_numbers() == key.private_numbers()
    with pytest.raises(MaterialError, match="is encrypted"):
        private_key(data)
    with pytest.raises(MaterialError, match="the password is wrong"):
        private_key(data, b"other")
    plain = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert private_key(plain, b"needless").private_numbers() == key.private_numbers()


def test_the_private_key_is_not_shown() -> None:
    one = leaf()
    assert "PRIVATE" not in repr(given(one, MIDDLE))
    assert repr(check_import(given(one, MIDDLE), now=NOW).key_der) not in repr(
        check_import(given(one, MIDDLE), now=NOW)
    )


def test_the_host_trusts_some_roots() -> None:
    assert isinstance(system_roots(), tuple)


# --- what is stored -------------------------------------------------------------------------------------------------


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def test_an_import_reaches_its_devices(plane: Plane) -> None:
    device, _ = await registered(plane)
    one = leaf()
    row = await plane.imports.add(1, given(one, ROOT, MIDDLE), device_ids=[device])
    assert (row["issuer"], row["status"], row["notes"]) == ("import", "active", [])
    assert row["device_ids"] == [device]
    materials = await plane.work(plane.certificates.materials, device, row["id"])
    assert (materials["certificate_pem"], materials["chain_pem"]) == (one.pem, MIDDLE.pem)
    page = await plane.work(plane.stream.read, device, None, 10)
    assert [signal["ref"]["serial"] for signal in page.signals] == [row["serial_number"]]


async def test_importing_again_renews_the_same_certificate(plane: Plane) -> None:
    device, _ = await registered(plane)
    first = await plane.imports.add(1, given(leaf(), MIDDLE), device_ids=[device])
    newer = leaf(names=NAMES[::-1], start=NOW - 60)
    again = await plane.imports.add(1, given(newer, MIDDLE))
    assert again["id"] == first["id"]
    assert again["device_ids"] == [device]
    assert again["serial_number"] != first["serial_number"]
    same = await plane.imports.add(1, given(newer, MIDDLE))
    assert "this certificate was imported already" in same["notes"]
    page = await plane.work(plane.stream.read, device, None, 10)
    assert len(page.signals) == 2
    other = await plane.imports.add(1, given(leaf(names=NAMES[:1]), MIDDLE))
    assert other["id"] != first["id"]


async def test_an_older_certificate_is_refused(plane: Plane) -> None:
    await plane.imports.add(1, given(leaf(start=NOW - 60), MIDDLE))
    with pytest.raises(ErrorResponse, match="older than the certificate in use") as caught:
        await plane.imports.add(1, given(leaf(start=NOW - 20 * DAY), MIDDLE))
    assert (caught.value.status, caught.value.key) == (409, "OLDER")


async def test_an_import_replaces_a_certificate_of_another_issuer(plane: Plane) -> None:
    issued = await plane.certificates.issue(1, NAMES)
    row = await plane.imports.add(1, given(leaf(start=NOW), MIDDLE), cert_id=issued["id"])
    assert (row["id"], row["issuer"]) == (issued["id"], "import")
    with pytest.raises(ErrorResponse, match="this one is for other names"):
        await plane.imports.add(1, given(leaf(names=["a.example"]), MIDDLE), cert_id=issued["id"])
    changed = await plane.certificates.change(1, row["id"], issuer="builtin")
    assert changed["issuer"] == "builtin"
    renewed = await plane.certificates.renew(1, row["id"])
    assert renewed["status"] == "done"


async def test_names_of_the_plane_are_refused(plane: Plane) -> None:
    await plane.work(plane.certificates.reserve, ["plane.example.com"])
    with pytest.raises(ErrorResponse, match="is, or covers, a name of this control plane") as caught:
        await plane.imports.add(1, given(leaf(), MIDDLE))
    assert caught.value.key == "NAME_RESERVED"


async def test_unusable_material_stores_nothing(plane: Plane) -> None:
    with pytest.raises(ErrorResponse, match=r"^The certificate expired at .*; get a current one") as caught:
        await plane.imports.add(1, given(leaf(end=NOW - 1), MIDDLE))
    assert (caught.value.status, caught.value.params) == (400, {"reason": "expired"})
    assert await plane.work(plane.certificates.page_of_user, 1, 0, 10) == []


async def test_stored_cas_complete_a_chain(plane: Plane) -> None:
    await plane.work(plane.authorities.add, 1, "house", ROOT.pem)
    direct = made("direct.example", ROOT, names=["direct.example"])
    row = await plane.imports.add(1, given(direct))
    assert row["notes"] == []


async def test_a_revoked_certificate_is_not_imported_again(plane: Plane) -> None:
    one = leaf()
    row = await plane.imports.add(1, given(one, MIDDLE))
    await plane.certificates.revoke(1, row["id"], reason_code="keyCompromise")
    for target in (None, row["id"], (await plane.certificates.issue(1, NAMES))["id"]):
        with pytest.raises(ErrorResponse, match="was revoked as certificate") as caught:
            await plane.imports.add(1, given(one, MIDDLE), cert_id=target)
        assert (caught.value.status, caught.value.key) == (409, "CERT_REVOKED")
    shown = await plane.work(plane.certificates.show, 1, row["id"])
    assert shown["status"] == "revoked"
    again = await plane.imports.add(1, given(leaf(start=NOW), MIDDLE))
    assert (again["id"], again["status"]) == (row["id"], "active")


def test_a_long_rsa_key_is_read_in_a_moment() -> None:
    """Validation of an RSA key of 8192 bits takes seconds of processor time, in which the plane answers nothing."""
    key = rsa.RSAPrivateNumbers(
        p=(1 << 8191) + 1, q=(1 << 8191) + 3, d=5, dmp1=5, dmq1=5, iqmp=5,
        public_numbers=rsa.RSAPublicNumbers(65537, ((1 << 8191) + 1) * ((1 << 8191) + 3)),
    ).private_key(unsafe_skip_rsa_key_validation=True)  # fmt: skip
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    before = time.thread_time()
    assert private_key(data).key_size == key.key_size
    assert time.thread_time() - before < 1
    with pytest.raises(MaterialError, match="more than 8192"):
        _require_usable(key)


def test_an_rsa_key_that_does_not_fit_its_public_half_is_refused() -> None:
    good = rsa.generate_private_key(65537, 2048).private_numbers()
    numbers = rsa.RSAPrivateNumbers(
        p=good.p, q=good.q, d=good.d + 2, dmp1=good.dmp1 + 2, dmq1=good.dmq1 + 2, iqmp=good.iqmp,
        public_numbers=good.public_numbers,
    )  # fmt: skip
    bad = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    one = leaf(key=rsa.generate_private_key(65537, 2048))
    assert check_import(given(one, MIDDLE), now=NOW).key_type == "rsa-2048"
    with pytest.raises(MaterialError, match="its signatures are not valid"):
        _require_usable(bad)
