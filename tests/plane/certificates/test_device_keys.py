"""Certificates whose keys are made at their devices: requests, used keys, revoked keys."""

from __future__ import annotations

import json

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from csrs import csr
from device_key_site import NAMES, Site, refused
from engine_plane import WALL

from certctrl.plane.ca.csr import key_digest
from certctrl.plane.ca.denied_keys import DeniedKeys
from certctrl.plane.certificates.device_keys import CSR_SECONDS
from certctrl.plane.settings import DAY


async def test_a_device_makes_the_key_of_its_certificate(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    assert (row["status"], row["key_origin"], row["order_state"]) == ("pending", "device", "csr_wanted")
    order = (await site.detail(device, row["id"]))["order"]
    expires = int((WALL + CSR_SECONDS) * 1000)
    assert order == {
        "id": row["order_id"], "state": "csr_wanted", "key_type": "ecdsa-p256", "names": NAMES, "must_staple": False,
        "expires_ms": expires,
    }  # fmt: skip
    assert await site.signals(device) == [
        (
            "cert.csr_wanted",
            {"cert_id": row["id"], "order_id": row["order_id"], "expires_ms": expires, "key_type": "ecdsa-p256", "names": NAMES},
        )
    ]  # fmt: skip
    assert (await refused(site.plane.work(site.plane.certificates.materials, device, row["id"])))[1] == "WRAP_PENDING"
    key = ec.generate_private_key(ec.SECP256R1())
    assert (await site.sends(device, row["id"], csr(NAMES, key=key)))["state"] == "ready"
    assert (await site.detail(device, row["id"]))["order"]["state"] == "issuing"
    await site.run_orders()
    done = await site.shown(row["id"])
    assert (done["status"], done["order_id"]) == ("active", None)
    materials = await site.plane.work(site.plane.certificates.materials, device, row["id"])
    assert set(materials) == {"enc_scheme", "public_key_sha256", "certificate_pem", "chain_pem", "serial_number"}
    assert materials["enc_scheme"] == "device-key"
    leaf = x509.load_pem_x509_certificate(materials["certificate_pem"].encode())
    assert leaf.public_key() == key.public_key()
    detail = await site.detail(device, row["id"])
    assert (detail["order"], detail["public_key_sha256"]) == (None, materials["public_key_sha256"])
    assert (await site.signals(device))[-1] == (
        "cert.renewed", {"cert_id": row["id"], "serial": materials["serial_number"]},
    )  # fmt: skip


async def test_a_request_is_idempotent_by_order_and_key(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    key = ec.generate_private_key(ec.SECP256R1())
    first = await site.sends(device, row["id"], csr(NAMES, key=key))
    again = csr(NAMES, key=key)
    assert await site.sends(device, row["id"], again) == first
    assert await refused(site.sends(device, row["id"], csr(NAMES))) == (409, "CSR_CONFLICT", None)
    await site.run_orders()
    assert (await site.sends(device, row["id"], again, row["order_id"]))["state"] == "done"
    assert await refused(site.sends(device, row["id"], csr(NAMES), row["order_id"])) == (409, "CSR_CONFLICT", None)
    assert (await site.types(device)).count("cert.renewed") == 1


async def test_only_the_device_of_an_open_order_may_meet_it(site: Site) -> None:
    device, other = await site.device(), await site.device("web-2")
    row = await site.issue(device)
    assert (await refused(site.sends(other, row["id"], csr(NAMES))))[0] == 404
    assert (await refused(site.sends(device, row["id"], csr(NAMES), row["order_id"] + 100)))[0] == 404
    await site.plane.work(site.plane.orders.cancel, 1, row["order_id"])
    assert await refused(site.sends(device, row["id"], csr(NAMES), row["order_id"])) == (410, "ORDER_ENDED", None)
    at_plane = await site.issue(device, key_origin="plane")
    assert (await refused(site.sends(device, at_plane["id"], csr(NAMES), row["order_id"])))[0] == 404


async def test_a_request_must_be_for_what_was_ordered(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    for request, reason in (
        (csr(["www.example"]), "names"),
        (csr([*NAMES, "evil.example"]), "names"),
        (csr(NAMES, key=ed25519.Ed25519PrivateKey.generate()), "key-type"),
        (csr(NAMES, extensions=[x509.BasicConstraints(ca=True, path_length=None)]), "extension"),
    ):
        assert await refused(site.sends(device, row["id"], request)) == (400, "CSR_REFUSED", reason)
    assert (await site.shown(row["id"]))["order_state"] == "csr_wanted"


async def test_no_key_is_used_twice(site: Site) -> None:
    device, other = await site.device(), await site.device("web-2")
    request = csr(NAMES)
    for holder in (device, other):
        row = await site.issue(holder)
        if holder is device:
            await site.sends(device, row["id"], request)
            await site.run_orders()
    assert await refused(site.sends(other, row["id"], request)) == (400, "CSR_REFUSED", "known-key")


async def test_a_renewal_asks_for_a_new_key(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    first = await site.meets(device, row["id"])
    renewal = await site.plane.certificates.renew(1, row["id"])
    assert (renewal["status"], renewal["state"]) == ("pending", "csr_wanted")
    still = await site.shown(row["id"])
    assert (still["status"], still["serial_number"]) == ("active", first["serial_number"])
    assert (await site.meets(device, row["id"]))["serial_number"] != first["serial_number"]


async def test_a_key_is_used_again_by_choice_only(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device, reuse_key=True)
    first = await site.meets(device, row["id"])
    key = (await site.detail(device, row["id"]))["public_key_sha256"]
    site.now += 80 * DAY
    await site.plane.work(site.plane.orders.delete_expired)
    await site.plane.certificates.renew(1, row["id"])
    await site.run_orders()
    again = await site.detail(device, row["id"])
    assert (again["public_key_sha256"], again["serial_number"] == first["serial_number"]) == (key, False)
    assert (await site.types(device)).count("cert.csr_wanted") == 1
    await site.plane.certificates.renew(1, row["id"], device_id=device, key_lost=True)
    assert (await site.types(device)).count("cert.csr_wanted") == 2, "a lost key cannot be used again"


async def test_a_lost_key_ends_an_order_that_has_its_request(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    await site.sends(device, row["id"], csr(NAMES))
    plain = await site.plane.certificates.renew(1, row["id"], device_id=device)
    assert plain["order_id"] == row["order_id"], "an ordinary request changes nothing"
    lost = await site.plane.certificates.renew(1, row["id"], device_id=device, key_lost=True)
    assert lost["order_id"] > row["order_id"]
    assert lost["state"] == "csr_wanted"
    again = await site.plane.certificates.renew(1, row["id"], device_id=device, key_lost=True)
    assert again["order_id"] == lost["order_id"], "nothing was sent for this one yet"
    assert (await site.meets(device, row["id"]))["status"] == "active"


async def test_an_order_that_is_not_answered_is_replaced(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    site.now += CSR_SECONDS - 1
    await site.plane.work(site.plane.device_keys.replace_expired)
    assert (await site.shown(row["id"]))["order_id"] == row["order_id"]
    site.now += 2
    await site.plane.work(site.plane.device_keys.replace_expired)
    newer = await site.shown(row["id"])
    assert newer["order_id"] > row["order_id"]
    assert newer["order_state"] == "csr_wanted"
    ended = await site.plane.work(site.plane.orders.show, 1, row["order_id"])
    assert (ended["state"], ended["problem"]) == ("failed", "the device has sent no signing request for 7 days")


async def test_long_names_are_in_the_detail_only(site: Site) -> None:
    device = await site.device()
    names = [f"{'a' * 60}.{n}.example" for n in range(60)]
    row = await site.plane.certificates.issue(1, names, device_ids=[device], key_origin="device")
    (signal,) = await site.signals(device)
    assert "names" not in signal[1]
    assert len(json.dumps(signal[1])) < 300
    assert (await site.detail(device, row["id"]))["order"]["names"] == names


async def test_orders_may_be_stopped_while_they_start(site: Site) -> None:
    for checkpoints in range(4):
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(site.plane.order_runner.run)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


async def test_a_compromised_key_of_a_device_is_replaced_even_if_keys_are_used_again(site: Site) -> None:
    device, key = await site.device(), ec.generate_private_key(ec.SECP256R1())
    row = await site.issue(device, reuse_key=True)
    await site.sends(device, row["id"], csr(NAMES, key=key))
    await site.run_orders()
    before = await site.shown(row["id"])
    done = await site.plane.certificates.revoke(1, row["id"], reason_code="keyCompromise", replace=True)
    assert (done["status"], done["order_state"], done["serial_number"]) == (
        "active", "csr_wanted", before["serial_number"],
    )  # fmt: skip
    assert [one["state"] for one in done["revocations"]] == ["done"]
    assert await refused(site.sends(device, row["id"], csr(NAMES, key=key))) == (400, "CSR_REFUSED", "known-key")
    after = await site.meets(device, row["id"])
    assert after["serial_number"] != before["serial_number"]
    assert "cert.revoked" not in await site.types(device)


async def test_a_revoked_key_of_a_device_is_not_used_again(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device, reuse_key=True)
    await site.meets(device, row["id"])
    await site.plane.certificates.revoke(1, row["id"])
    assert (await site.types(device))[-1] == "cert.revoked"
    renewal = await site.plane.certificates.renew(1, row["id"])
    assert renewal["state"] == "csr_wanted"
    assert (await site.meets(device, row["id"]))["status"] == "active"


async def test_a_key_in_the_operators_lists_is_refused(site: Site) -> None:
    device, key = await site.device(), ec.generate_private_key(ec.SECP256R1())
    site.plane.device_keys._denied = DeniedKeys([bytes.fromhex(key_digest(key.public_key()))])
    row = await site.issue(device)
    assert await refused(site.sends(device, row["id"], csr(NAMES, key=key))) == (400, "CSR_REFUSED", "denied-key")
    assert (await site.meets(device, row["id"]))["status"] == "active"
