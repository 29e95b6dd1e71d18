"""Certificates: issued ones verify, delivered ones decrypt, and each change is signalled to their devices."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store
from issued import CERTIFICATES, issue, materials, opened, signals
from plane_world import World

from certctrl.protocol.wire.certificates import certificate_from_wire, materials_from_wire


async def test_delivered_key_and_certificate_decrypt_and_match(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com", "www.example.com", device_ids=[device.id])
    data = await materials(device, row["id"])
    materials_from_wire(data)
    assert (data["wrap_alg"], data["enc_scheme"]) == ("x25519", "aes256gcm")
    expected = hashlib.blake2b(bytes(device.secret.public_key), digest_size=32).digest()
    assert base64.b64decode(data["device_keyfp_b64"]) == expected
    key = serialization.load_der_private_key(opened(device, data), None)
    leaf = x509.load_pem_x509_certificate(data["certificate_pem"].encode())
    assert key.public_key() == leaf.public_key()
    assert data["serial_number"] == row["serial_number"]
    assert int(row["serial_number"].replace(":", ""), 16) == leaf.serial_number
    der = leaf.public_bytes(serialization.Encoding.DER)
    assert hashlib.sha256(der).hexdigest() == row["fingerprint_sha256"]


async def test_each_delivery_is_sealed_again(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com", device_ids=[device.id])
    first, second = await materials(device, row["id"]), await materials(device, row["id"])
    assert first["enc_data_key_b64"] != second["enc_data_key_b64"]
    assert first["enc_privkey_b64"] != second["enc_privkey_b64"]
    assert opened(device, first) == opened(device, second)


async def test_the_chain_verifies_by_web_rules(world: World) -> None:
    row = await issue(world, "example.com", "*.example.com", "192.0.2.1")
    device = await world.device()
    await world.operator("POST", f"{device.home}/certificates", {"cert_id": row["id"]})
    data = await materials(device, row["id"])
    leaf = x509.load_pem_x509_certificate(data["certificate_pem"].encode())
    chain = x509.load_pem_x509_certificates(data["chain_pem"].encode())
    assert len(chain) == 1, "the intermediate only; clients have the root"
    root = x509.load_pem_x509_certificate(world.plane.ca.root_pem.encode())
    now = dt.datetime.fromtimestamp(world.clock.wall, dt.UTC)
    builder = PolicyBuilder().store(Store([root])).time(now)
    for name in (x509.DNSName("example.com"), x509.DNSName("www.example.com")):
        builder.build_server_verifier(name).verify(leaf, chain)
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("example.org")).verify(leaf, chain)
    sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in sans] == row["sans"] == ["example.com", "*.example.com", "192.0.2.1"]


@pytest.mark.parametrize(
    ("key_type", "kind", "size"),
    [
        ("ecdsa-p256", ec.EllipticCurvePublicKey, 256),
        ("ecdsa-p384", ec.EllipticCurvePublicKey, 384),
        ("rsa-2048", rsa.RSAPublicKey, 2048),
    ],
)
async def test_key_types(world: World, key_type: str, kind: type, size: int) -> None:
    device = await world.device()
    row = await issue(world, "example.com", key_type=key_type, device_ids=[device.id])
    assert row["key_type"] == key_type
    data = await materials(device, row["id"])
    leaf = x509.load_pem_x509_certificate(data["certificate_pem"].encode())
    public: Any = leaf.public_key()
    assert isinstance(public, kind)
    assert public.key_size == size
    key = serialization.load_der_private_key(opened(device, data), None)
    assert key.public_key() == public


async def test_validity_is_as_requested_with_an_earlier_start(world: World) -> None:
    row = await issue(world, "example.com", validity_seconds=30)
    assert (row["not_before"], row["not_after"]) == ("2026-09-21T14:13:17Z", "2026-09-21T14:13:50Z")
    assert row["status"] == "active"
    world.clock.advance(30)
    assert (await world.operator("GET", f"{CERTIFICATES}/{row['id']}")).data["status"] == "expired"


async def test_a_renewal_keeps_names_and_validity_and_replaces_the_rest(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com", "www.example.com", validity_seconds=3600, device_ids=[device.id])
    before = opened(device, await materials(device, row["id"]))
    world.clock.advance(10)
    reply = await world.operator("POST", f"{CERTIFICATES}/{row['id']}/issues", {"action": "renew", "reason": "drill"})
    assert reply.status == 202
    assert (reply.data["cert_id"], reply.data["status"]) == (row["id"], "done")
    now = (await world.operator("GET", f"{CERTIFICATES}/{row['id']}")).data
    assert now["serial_number"] == reply.data["serial_number"] != row["serial_number"]
    assert (now["sans"], now["not_after"]) == (row["sans"], "2026-09-21T15:13:30Z")
    assert opened(device, await materials(device, row["id"])) != before, "a renewal has a new key"
    assert await signals(device) == [
        ("cert.renewed", {"cert_id": row["id"], "serial": row["serial_number"]}),
        ("cert.renewed", {"cert_id": row["id"], "serial": now["serial_number"]}),
    ]


async def test_revoking_deletes_the_key_and_signals_the_devices(world: World) -> None:
    device, other = await world.device(), await world.device("device-number-2")
    row = await issue(world, "example.com", device_ids=[device.id, other.id])
    reply = await world.operator("POST", f"{CERTIFICATES}/{row['id']}/revoke", {"reason": "leaked"})
    assert (reply.data["status"], reply.data["revoke_reason"]) == ("revoked", "leaked")
    for holder in (device, other):
        assert (await signals(holder))[-1] == ("cert.revoked", {"cert_id": row["id"]})
    detail = await device("GET", f"/apiv1/devices/self/certificates/{row['id']}")
    assert detail.data["status"] == "revoked", "an agent can confirm it"
    refused = await device("GET", f"/apiv1/devices/self/certificates/{row['id']}/deploy-materials")
    assert (refused.status, refused.key) == (410, "CERT_REVOKED")
    stored = world.plane.database.one("SELECT private_key_enc FROM certificates")
    assert stored["private_key_enc"] == b""
    again = await world.operator("POST", f"{CERTIFICATES}/{row['id']}/revoke", {})
    assert again.data["revoke_reason"] == "leaked"
    assert len(await signals(device)) == 2, "revoking again sends no second signal"


async def test_an_operator_may_replace_a_revoked_certificate(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com", device_ids=[device.id])
    await world.operator("POST", f"{CERTIFICATES}/{row['id']}/revoke", {})
    ask = await device("POST", f"{CERTIFICATES}/{row['id']}/issues", {"action": "renew"})
    assert (ask.status, ask.key) == (409, "CERT_REVOKED"), "devices may not renew revoked certificates"
    await world.operator("POST", f"{CERTIFICATES}/{row['id']}/issues", {"action": "renew"})
    assert (await world.operator("GET", f"{CERTIFICATES}/{row['id']}")).data["status"] == "active"
    opened(device, await materials(device, row["id"]))


async def test_assigning_and_unassigning(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com")
    self_path = f"/apiv1/devices/self/certificates/{row['id']}"
    assert (await device("GET", self_path)).status == 404
    for _ in range(2):
        reply = await world.operator("POST", f"{device.home}/certificates", {"cert_id": row["id"]})
        assert reply.data["device_ids"] == [device.id]
    assert (await device("GET", self_path)).status == 200
    assert (await world.operator("DELETE", f"{device.home}/certificates/{row['id']}")).status == 204
    assert (await world.operator("DELETE", f"{device.home}/certificates/{row['id']}")).status == 404
    assert (await device("GET", self_path)).status == 404
    assert (await device("GET", f"{self_path}/deploy-materials")).status == 404
    assert await signals(device) == [
        ("cert.renewed", {"cert_id": row["id"], "serial": row["serial_number"]}),
        ("cert.unassigned", {"cert_id": row["id"]}),
    ]


async def test_a_revoked_certificate_cannot_be_assigned(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com")
    await world.operator("POST", f"{CERTIFICATES}/{row['id']}/revoke", {})
    assert (await world.operator("POST", f"{device.home}/certificates", {"cert_id": row["id"]})).status == 409


async def test_devices_list_their_certificates_in_pages(world: World) -> None:
    device, other = await world.device(), await world.device("device-number-2")
    ids = [(await issue(world, f"n{number}.example", device_ids=[device.id]))["id"] for number in range(5)]
    await issue(world, "other.example", device_ids=[other.id])

    async def page(query: str) -> list[int]:
        rows = (await device("GET", f"/apiv1/devices/self/certificates{query}")).data
        for row in rows:
            certificate_from_wire(row)
            assert set(row) == {
                "id", "domain_name", "sans", "serial_number", "fingerprint_sha256", "not_before", "not_after", "status",
                "updated_at",
            }  # fmt: skip
        return [row["id"] for row in rows]

    assert await page("") == ids
    assert await page("?limit=2") == ids[:2]
    assert await page(f"?limit=2&after_id={ids[1]}") == ids[2:4]
    assert await page(f"?after_id={ids[-1]}") == []
    for query in ("?limit=0", "?limit=501", "?after_id=-1", "?after_id=x"):
        assert (await device("GET", f"/apiv1/devices/self/certificates{query}")).status == 400


async def test_the_detail_adds_the_pem_texts(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com", device_ids=[device.id])
    detail = (await device("GET", f"/apiv1/devices/self/certificates/{row['id']}")).data
    assert detail["certificate_pem"].startswith("-----BEGIN CERTIFICATE-----\n")
    assert detail["chain_pem"].count("BEGIN CERTIFICATE") == 1
    assert "PRIVATE" not in str(detail)


@pytest.mark.parametrize(
    "domain",
    [
        "", "-x.example", "x-.example", "a..b", ".", "*", "*.", "*.*.example", "x.*.example", "ex ample.com", "x/y",
        "bü cher.example", "-ü.example", "ü..example", "a" * 64 + ".example", ("a" * 60 + ".") * 5, "1.2.3.4.5", "x_y.example", "\0", "http://x",
    ],
)  # fmt: skip
async def test_invalid_names_are_refused(world: World, domain: str) -> None:
    reply = await world.operator("POST", CERTIFICATES, {"domain_name": domain})
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")


async def test_names_are_made_canonical(world: World) -> None:
    row = await issue(world, "Example.COM.", "example.com", "2001:DB8::0001", "xn--bcher-kva.example", "localhost")
    assert row["domain_name"] == "example.com"
    assert row["sans"] == ["example.com", "2001:db8::1", "xn--bcher-kva.example", "localhost"]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Bücher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),  # IDNA 2003 would make strasse.example of it
        ("*.FAẞ.example.", "*.xn--fa-hia.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
    ],
)
async def test_international_names_are_accepted_as_typed(world: World, typed: str, name: str) -> None:
    row = await issue(world, typed, f"{typed}.")
    assert (row["domain_name"], row["sans"]) == (name, [name])


async def test_a_name_too_long_for_the_subject_is_still_issued(world: World) -> None:
    name = "a" * 60 + ".long.example"
    device = await world.device()
    row = await issue(world, name, device_ids=[device.id])
    leaf = x509.load_pem_x509_certificate((await materials(device, row["id"]))["certificate_pem"].encode())
    assert len(list(leaf.subject)) == 0
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


@pytest.mark.parametrize(
    "more",
    [
        {"key_type": "dsa"}, {"key_type": 7}, {"validity_seconds": 9}, {"validity_seconds": 10**9},
        {"validity_seconds": "60"}, {"validity_seconds": None}, {"sans": "x"}, {"sans": [1]},
        {"sans": [f"n{n}.example" for n in range(150)]}, {"device_ids": ["1"]}, {"device_ids": [True]},
        {"device_ids": [2**70]},
    ],
)  # fmt: skip
async def test_invalid_issue_requests_are_refused(world: World, more: dict[str, Any]) -> None:
    reply = await world.operator("POST", CERTIFICATES, {"domain_name": "example.com"} | more)
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert (await world.operator("GET", CERTIFICATES)).data == []


async def test_an_issue_for_an_unknown_device_issues_nothing(world: World) -> None:
    reply = await world.operator("POST", CERTIFICATES, {"domain_name": "example.com", "device_ids": [99]})
    assert reply.status == 404
    assert (await world.operator("GET", CERTIFICATES)).data == []
