"""Orders: pending certificates, one open order each, cancellation, changes of the issuer, and their deletion."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448
from engine_plane import new_device
from issuer_scene import Scene

from certctrl.errors import PlaneError
from certctrl.plane.ca.csr import key_digest
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.orders import requests
from certctrl.plane.settings import DAY


async def test_a_certificate_is_pending_until_its_order_is_done(scene: Scene) -> None:
    device = await new_device(scene.plane)
    row = await scene.issue("www.example.com", "*.example.com", "192.0.2.1", device_ids=[device])
    assert (row["status"], row["serial_number"], row["not_after"], row["issuer"]) == ("pending", "", None, "le")
    assert await scene.signals(device) == []
    with pytest.raises(PlaneError) as refused:
        await scene.plane.work(scene.plane.certificates.materials, device, row["id"])
    assert (refused.value.status, refused.value.key) == (409, "WRAP_PENDING")
    assert await scene.plane.work(scene.plane.certificates.page, device, 0, 10) == []

    assert await scene.plane.order_runner.run_once() == 1
    done = await scene.certificate(row["id"])
    assert (done["status"], done["order_id"]) == ("active", None)
    assert await scene.signals(device) == [("cert.renewed", {"cert_id": row["id"], "serial": done["serial_number"]})]
    order = await scene.order(row["order_id"])
    assert (order["state"], order["attempts"], order["problem"]) == ("done", 1, "")
    (request,) = scene.ca.requests
    assert request.names == ("www.example.com", "*.example.com", "192.0.2.1")
    assert (request.device_ids, request.order_id, request.user_id) == ((device,), row["order_id"], 1)
    assert x509.load_der_x509_csr(request.csr_der).is_signature_valid


async def test_key_and_certificate_belong_together_and_the_order_keeps_no_key(scene: Scene) -> None:
    row = await scene.issued()
    plane = scene.plane
    stored = await plane.work(plane.database.one, "SELECT * FROM certificates WHERE id = ?", row["id"])
    assert stored is not None
    key = serialization.load_der_private_key(
        plane.keyring.unseal(f"certificate {row['id']}", bytes(stored["private_key_enc"])), None
    )
    leaf = x509.load_pem_x509_certificate(stored["certificate_pem"].encode())
    assert key_digest(leaf.public_key()) == key_digest(key.public_key()) == stored["public_key_sha256"]  # type: ignore[arg-type]
    order = await plane.work(plane.database.one, "SELECT * FROM orders")
    assert order is not None
    assert (order["key_enc"], order["memo_enc"]) == (None, None)
    assert await plane.work(plane.database.all, "SELECT * FROM jobs WHERE kind = 'order'") == []


async def test_there_is_one_open_order_per_certificate(scene: Scene) -> None:
    row = await scene.issued()
    first = await scene.plane.certificates.renew(1, row["id"])
    assert first == {
        "id": first["id"], "cert_id": row["id"], "action": "renew", "status": "pending", "serial_number": "",
        "order_id": first["id"], "state": "ready",
    }  # fmt: skip
    assert (await scene.plane.certificates.renew(1, row["id"]))["order_id"] == first["order_id"]
    assert await scene.plane.order_runner.run_once() == 1


async def test_a_device_gets_the_order_of_its_request(scene: Scene) -> None:
    device = await new_device(scene.plane)
    row = await scene.issued(device_ids=[device])
    answer = await scene.plane.certificates.renew(1, row["id"], device_id=device)
    assert (answer["status"], (await scene.order(answer["order_id"]))["device_id"]) == ("pending", device)
    scene.ca.script = [IssuerError("down")]
    await scene.plane.order_runner.run_once()
    due = (await scene.order(answer["order_id"]))["next_at"]
    await scene.plane.certificates.renew(1, row["id"], device_id=device)
    assert (await scene.order(answer["order_id"]))["next_at"] == due, "devices do not shorten the pause"
    await scene.plane.certificates.renew(1, row["id"])
    assert (await scene.order(answer["order_id"]))["next_at"] != due, "operators do"


async def test_a_cancelled_order_stops_and_keeps_the_certificate(scene: Scene) -> None:
    row = await scene.issued()
    order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    cancelled = await scene.plane.work(scene.plane.orders.cancel, 1, order_id)
    assert (cancelled["state"], cancelled["problem"]) == ("failed", "cancelled by an operator")
    assert await scene.plane.order_runner.run_once() == 0
    assert (await scene.certificate(row["id"]))["serial_number"] == row["serial_number"]
    with pytest.raises(PlaneError, match="has ended"):
        await scene.plane.work(scene.plane.orders.cancel, 1, order_id)


async def test_a_revocation_ends_the_order(scene: Scene) -> None:
    row = await scene.issued()
    order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    await scene.plane.certificates.revoke(1, row["id"])
    assert (await scene.order(order_id))["state"] == "failed"


async def test_a_certificate_keeps_its_id_with_another_issuer(scene: Scene) -> None:
    row = await scene.issued()
    changed = await scene.plane.certificates.change(1, row["id"], issuer="builtin")
    assert (changed["id"], changed["issuer"], changed["serial_number"]) == (row["id"], "builtin", row["serial_number"])
    renewed = await scene.plane.certificates.renew(1, row["id"])
    assert (renewed["status"], renewed["serial_number"] != row["serial_number"]) == ("done", True)
    await scene.plane.certificates.change(1, row["id"], issuer="le")
    assert (await scene.plane.certificates.renew(1, row["id"]))["status"] == "pending"
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["serial_number"] != renewed["serial_number"]


@pytest.mark.parametrize("reuse", [False, True])
async def test_keys_are_used_again_by_choice_only(scene: Scene, reuse: bool) -> None:
    row = await scene.issued(reuse_key=reuse)
    await scene.plane.certificates.renew(1, row["id"])
    await scene.plane.order_runner.run_once()
    first, second = (x509.load_der_x509_csr(request.csr_der).public_key() for request in scene.ca.requests)
    assert (first == second) is reuse
    assert scene.ca.requests[1].replaces_pem.startswith("-----BEGIN CERTIFICATE-----")


async def test_the_builtin_ca_takes_orders_too(scene: Scene) -> None:
    row = await scene.plane.certificates.issue(1, ["a.example"], reuse_key=True)
    assert row["status"] == "pending"
    await scene.plane.order_runner.run_once()
    done = await scene.certificate(row["id"])
    assert (done["status"], done["issuer"]) == ("active", "builtin")


async def test_names_of_the_plane_are_refused_for_every_issuer(scene: Scene) -> None:
    row = await scene.issue("x.plane.example.com")
    await scene.plane.work(scene.plane.certificates.reserve, ["x.plane.example.com"])
    with pytest.raises(PlaneError) as refused:
        await scene.issue("*.plane.example.com")
    assert refused.value.key == "NAME_RESERVED"
    with pytest.raises(PlaneError):
        await scene.plane.certificates.change(1, row["id"], issuer="builtin")
    await scene.plane.order_runner.run_once()
    assert (await scene.order(row["order_id"]))["state"] == "failed", "also if it was ordered before"
    assert scene.ca.requests == []


async def test_ended_orders_are_deleted_after_three_months(scene: Scene) -> None:
    row = await scene.issued()
    await scene.plane.work(scene.plane.orders.delete_expired)
    assert len(await scene.plane.work(scene.plane.orders.page_of_user, 1, 0, 10)) == 1
    scene.now += 91 * DAY
    await scene.plane.work(scene.plane.orders.delete_expired)
    assert await scene.plane.work(scene.plane.orders.page_of_user, 1, 0, 10) == []
    assert (await scene.certificate(row["id"]))["order_id"] is None


async def test_a_pending_certificate_is_ordered_from_its_new_issuer(scene: Scene) -> None:
    scene.ca.script = [IssuerError("no", is_permanent=True)]
    refused = await scene.issue("a.example")
    await scene.plane.order_runner.run_once()
    waiting = await scene.issue("b.example")
    for row in (refused, waiting):
        changed = await scene.plane.certificates.change(1, row["id"], issuer="builtin")
        assert (changed["status"], changed["order_state"]) == ("pending", "ready")
    assert await scene.plane.order_runner.run_once() == 2
    for row in (refused, waiting):
        done = await scene.certificate(row["id"])
        assert (done["status"], done["issuer"]) == ("active", "builtin")


def test_an_old_key_of_another_type_is_replaced() -> None:
    key = ed448.Ed448PrivateKey.generate().private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made, csr = requests.new_request("ecdsa-p256", ("a.example",), False, key)
    assert made != key
    assert x509.load_der_x509_csr(csr).is_signature_valid
