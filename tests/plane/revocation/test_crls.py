"""Revocation lists of the built-in CA."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from csrs import csr
from earlier import earlier_data_dir
from plane_world import WALL, Client, World

from certctrl.plane.ca.constraints import Constraints
from certctrl.plane.ca.crl import REASONS, Revoked, issuer_key_id, key_id, sign_crl
from certctrl.plane.ca.x509 import new_intermediate, new_root, pem_of, serial_text
from certctrl.plane.core import Plane
from certctrl.plane.http.plain_app import make_plain_app
from certctrl.plane.revocation.crls import VALIDITY, Crls
from certctrl.plane.settings import DAY, PlaneSettings

URL = "http://plane.example.com/crl"
NAMES = ("www.example.com",)


@pytest.fixture
def world(build: Callable[..., World]) -> World:
    return build(crl_url=URL)


async def leaf(world: World, validity: int = 30 * DAY) -> x509.Certificate:
    issued = await world.plane.ca.sign_csr(csr(NAMES), NAMES, validity_seconds=validity)
    return x509.load_pem_x509_certificate(issued.certificate_pem.encode())


def path_of(certificate: x509.Certificate) -> str:
    """Return the path of a certificate's list at the plane."""
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (point,) = points
    assert point.full_name is not None
    (name,) = point.full_name
    assert str(name.value).startswith(f"{URL}/")
    return str(name.value).removeprefix("http://plane.example.com")


async def crl(client: Client, path: str) -> x509.CertificateRevocationList:
    reply = await client("GET", path)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/pkix-crl"
    return x509.load_der_x509_crl(reply.body)


async def revoke(world: World, certificate: x509.Certificate) -> bool:
    return await world.plane.work(
        world.plane.crls.add,
        serial_text(certificate),
        issuer_key_id_of(certificate),
        cert_id=1,
        reason="keyCompromise",
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def issuer_key_id_of(certificate: x509.Certificate) -> str:
    return issuer_key_id(pem_of(certificate))


def number(found: x509.CertificateRevocationList) -> int:
    return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


async def test_a_certificate_names_its_list_which_everyone_can_fetch(world: World) -> None:
    certificate = await leaf(world)
    found = await crl(world.stranger, path_of(certificate))
    issuer = await world.plane.work(world.plane.ca.intermediates.stored)
    assert issuer is not None
    assert found.is_signature_valid(issuer.key.public_key())
    assert found.issuer == issuer.certificate.subject
    assert len(found) == 0
    assert found.next_update_utc is not None
    assert (found.next_update_utc - found.last_update_utc).total_seconds() >= VALIDITY
    authority = found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert authority is not None
    assert authority.hex() == key_id(issuer.certificate)


async def test_without_a_url_certificates_name_no_list(build: Callable[..., World]) -> None:
    certificate = await leaf(build())
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)


async def test_a_revocation_is_in_the_next_answer_with_a_greater_number(world: World) -> None:
    certificate, other = await leaf(world), await leaf(world)
    path = path_of(certificate)
    before = await crl(world.stranger, path)
    assert await revoke(world, certificate)
    after = await crl(world.stranger, path)
    assert number(after) > number(before)
    entry = after.get_revoked_certificate_by_serial_number(certificate.serial_number)
    assert entry is not None
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise
    assert after.get_revoked_certificate_by_serial_number(other.serial_number) is None
    assert not await revoke(world, certificate)
    assert number(await crl(world.stranger, path)) == number(after)


async def test_a_list_is_signed_once_however_many_ask(world: World) -> None:
    path = path_of(await leaf(world))
    for _ in range(20):
        await crl(world.stranger, path)
        world.clock.advance(10)
    assert world.plane.crls.signed == 1
    world.units.of.clear()
    for _ in range(20):
        await crl(world.stranger, path)
    assert world.units.of[f"GET {path}"] <= 1


async def test_caches_ask_with_the_tag_and_get_304(world: World) -> None:
    certificate = await leaf(world)
    path = path_of(certificate)
    reply = await world.stranger("GET", path)
    assert "max-age=300" in reply.headers["cache-control"]
    for tags in (reply.headers["etag"], f'"x", W/{reply.headers["etag"]}', "*"):
        again = await world.stranger("GET", path, headers={"if-none-match": tags})
        assert (again.status, again.body) == (304, b"")
    assert (await world.stranger("HEAD", path)).status == 200
    await revoke(world, certificate)
    assert (await world.stranger("GET", path, headers={"if-none-match": reply.headers["etag"]})).status == 200


async def test_a_list_is_renewed_long_before_it_ends(world: World) -> None:
    path = path_of(await leaf(world))
    found = first = await crl(world.stranger, path)
    for _ in range(10):
        world.clock.advance(DAY)
        found = await crl(world.stranger, path)
        assert found.next_update_utc is not None
        left = found.next_update_utc.timestamp() - world.clock.wall
        assert left > VALIDITY / 2
    assert number(found) > number(first)


async def test_a_clock_that_was_set_back_makes_a_new_list_with_a_greater_number(world: World) -> None:
    path = path_of(await leaf(world))
    first = await crl(world.stranger, path)
    world.clock.wall -= DAY
    world.clock.steady += 10
    second = await crl(world.stranger, path)
    assert number(second) > number(first)
    assert second.last_update_utc < first.last_update_utc


async def test_a_former_intermediate_still_signs_the_list_of_its_certificates(world: World) -> None:
    old = await leaf(world)
    ca = world.plane.ca.intermediates
    await world.plane.work(ca.constrain, Constraints(("example.com",)), world.clock.wall)
    new = await leaf(world)
    assert path_of(old) != path_of(new)
    await revoke(world, old)
    listed = await crl(world.stranger, path_of(old))
    assert listed.get_revoked_certificate_by_serial_number(old.serial_number) is not None
    former = await world.plane.work(ca.by_key_id, issuer_key_id_of(old))
    assert former is not None
    assert listed.is_signature_valid(former.key.public_key())
    assert len(await crl(world.stranger, path_of(new))) == 0


async def test_a_serial_of_an_unknown_intermediate_is_in_all_lists(world: World) -> None:
    old = await leaf(world)
    await world.plane.work(world.plane.ca.intermediates.constrain, Constraints(("example.com",)), world.clock.wall)
    new = await leaf(world)
    await world.plane.work(world.plane.crls.add, "0a:0b", "", cert_id=1, reason="", not_after=0)
    for certificate in (old, new):
        found = (await crl(world.stranger, path_of(certificate))).get_revoked_certificate_by_serial_number(0x0A0B)
        assert found is not None
        assert len(found.extensions) == 0


async def test_an_expired_certificate_leaves_the_list_after_one_more(world: World) -> None:
    certificate = await leaf(world, validity=DAY)
    path = path_of(certificate)
    await revoke(world, certificate)
    seen_after_expiry, listed = 0, True
    for _ in range(8):
        world.clock.advance(DAY / 2)
        await world.plane.work(world.plane.crls.delete_expired)
        found = await crl(world.stranger, path)
        listed = found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
        seen_after_expiry += listed and found.last_update_utc > certificate.not_valid_after_utc
    assert seen_after_expiry >= 1
    assert not listed


@pytest.mark.parametrize("name", ["x", f"{'0' * 40}.crl", f"{'0' * 39}g.crl", f"{'0' * 40}.pem", "%2e%2e"])
async def test_other_names_are_not_found(world: World, name: str) -> None:
    await leaf(world)
    assert (await world.stranger("GET", f"/crl/{name}")).status == 404


async def test_the_listener_without_tls_answers_nothing_else(world: World) -> None:
    plain = Client(make_plain_app(world.plane), world.plane.operator_key)
    certificate = await leaf(world)
    assert len(await crl(plain, path_of(certificate))) == 0
    for path in ("/", "/health", "/apiv1/users", "/device", "/apiv1/devices/self/updates"):
        assert (await plain("GET", path)).status == 404


async def test_a_revocation_during_a_read_is_in_the_next_answer(world: World) -> None:
    certificate = await leaf(world)
    name, crls = issuer_key_id_of(certificate), world.plane.crls
    await crls.get(name)
    world.clock.advance(3)
    work, pending = world.plane.database.work_long, [certificate]

    async def interrupted(function: Any, *args: Any) -> Any:
        found = await work(function, *args)
        while pending:  # committed after the read, before its result is kept
            await revoke(world, pending.pop())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.plane.database, "work_long", interrupted)
        await crls.get(name)
    found = await crl(world.stranger, path_of(certificate))
    assert found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


async def test_two_planes_of_a_database_serve_the_same_list(world: World) -> None:
    other = Crls(
        world.plane.database, world.plane.ca.intermediates, lambda: world.clock.wall, lambda: world.clock.steady
    )
    certificate = await leaf(world)
    name = issuer_key_id_of(certificate)
    mine, theirs = await world.plane.crls.get(name), await other.get(name)
    assert mine == theirs
    await revoke(world, certificate)
    world.clock.advance(3)
    assert await other.get(name) == await world.plane.crls.get(name) != mine
    assert (world.plane.crls.signed, other.signed) == (1, 1)


def test_many_entries_are_signed_in_linear_time() -> None:
    root = new_root("root", not_before=0, not_after=10**10)
    issuer = new_intermediate(root, "issuer", not_before=0, not_after=10**10)
    entries = [Revoked(serial, 1e9, reason) for serial, reason in zip(range(1, 20_001), [*REASONS] * 4000, strict=True)]
    found = x509.load_der_x509_crl(sign_crl(issuer, entries, number=7, this_update=1e9, next_update=2e9))
    assert (len(found), number(found)) == (20_000, 7)
    assert found.last_update_utc == dt.datetime.fromtimestamp(1e9, dt.UTC)


# --- data of earlier releases -----------------------------------------------------------------------------------------


async def test_what_an_earlier_release_revoked_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "plane"
    earlier_data_dir(root, monkeypatch)
    with closing(sqlite3.connect(root / "plane.db")) as database:
        for number, status in enumerate(("revoked", "active"), 1):
            database.execute(
                "INSERT INTO certificates (user_id, domain_name, sans, key_type, validity_seconds, status, serial_number,"
                " fingerprint_sha256, not_before, not_after, certificate_pem, chain_pem, private_key_enc, created_at,"
                " updated_at, revoked_at) VALUES (1, 'a', '[]', 'ecdsa-p256', 60, ?, ?, '', 0, ?, '', '', x'', 0, 0, ?)",
                (status, f"0a:0{number}", WALL + DAY, WALL - DAY if status == "revoked" else None),
            )
        database.commit()
    with Plane.open(root, settings=PlaneSettings(crl_url=URL), wall_now=lambda: WALL) as plane:
        issued = await plane.ca.sign_csr(csr(NAMES), NAMES, validity_seconds=3600)
        crl = await plane.crls.get(issuer_key_id(issued.certificate_pem))
    assert crl is not None
    assert [one.serial_number for one in x509.load_der_x509_crl(crl.der)] == [0x0A01]


async def test_an_intermediate_of_an_earlier_release_signs_lists_and_is_kept(world: World) -> None:
    old = await leaf(world)
    await world.plane.work(world.plane.database.run, "DELETE FROM settings WHERE name = 'ca_intermediate'")
    again = await leaf(world)
    assert path_of(again) == path_of(old)
    assert len(await crl(world.stranger, path_of(old))) == 0
    await world.plane.work(world.plane.ca.intermediates.constrain, Constraints(("example.com",)), world.clock.wall)
    await revoke(world, old)
    world.clock.advance(3)
    assert len(await crl(world.stranger, path_of(old))) == 1
