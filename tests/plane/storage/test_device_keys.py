"""Certificates whose keys are made at their devices, on every engine of the plane's database."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from csrs import csr
from engine_plane import WALL, new_device, plane_on
from nacl.public import PrivateKey
from scripted_issuer import scripted

from certctrl.plane.ca.csr import key_digest
from certctrl.plane.ca.denied_keys import DeniedKeys
from certctrl.plane.certificates.device_keys import CSR_SECONDS
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.reports import AgentVersion
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.issuers.registry import NewIssuer
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database

NAMES = ["www.example", "192.0.2.7"]


class Site:
    """A plane on some engine, with its own wall clock."""

    def __init__(self, database: Database) -> None:
        self.now = WALL
        self.plane: Plane = plane_on(database, wall_now=lambda: self.now)
        self.db = database

    async def device(self, name: str = "web-1", *features: str, key: PrivateKey | None = None) -> int:
        """Register a device; again, if it is known."""
        known = await self.plane.work(self.plane.devices.find, 1, name)
        device_id = await new_device(self.plane, name) if known is None else int(known["id"])
        public = bytes((key or PrivateKey.generate()).public_key)

        def register() -> None:
            row = self.plane.devices.find(1, name)
            assert row is not None
            facts = DeviceFacts(device_public_id=name, name=name, features=features or ("csr",))
            self.plane.enrolment._register(row, 1, facts, public)

        await self.plane.work(register)
        return device_id

    async def starts(self, device_id: int, *features: str) -> None:
        """Let the agent of a device start, with these features."""
        await self.plane.work(self.plane.reports.store, device_id, [AgentVersion("0.9", features)])

    async def issue(self, *device_ids: int, **options: Any) -> dict[str, Any]:
        options = {"key_origin": "device"} | options
        return await self.plane.certificates.issue(1, NAMES, device_ids=device_ids, **options)

    async def sends(self, device_id: int, cert_id: int, request: bytes, order_id: int | None = None) -> dict[str, Any]:
        """Send a signing request for the open order of a certificate."""
        pem = x509.load_der_x509_csr(request).public_bytes(Encoding.PEM).decode()
        order = order_id or (await self.shown(cert_id))["order_id"]
        return await self.plane.work(self.plane.device_keys.receive, device_id, cert_id, order, pem)

    async def meets(self, device_id: int, cert_id: int) -> dict[str, Any]:
        """Send a signing request with a new key, and let the certificate be issued."""
        await self.sends(device_id, cert_id, csr(NAMES))
        await self.run_orders()
        return await self.shown(cert_id)

    async def run_orders(self) -> None:
        """Run the orders that are due."""
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.plane.order_runner.run)
                while await self.plane.work(self.db.one, "SELECT 1 FROM orders WHERE state = 'ready'") is not None:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    async def shown(self, cert_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.certificates.show, 1, cert_id)

    async def detail(self, device_id: int, cert_id: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.certificates.detail, device_id, cert_id)

    async def signals(self, device_id: int) -> list[tuple[str, dict[str, Any]]]:
        page = await self.plane.work(self.plane.stream.read, device_id, None, 100)
        return [(one["type"], one["ref"]) for one in page.signals]

    async def types(self, device_id: int) -> list[str]:
        return [kind for kind, _ in await self.signals(device_id)]


@pytest.fixture
def site(open_database: Callable[[], Database]) -> Site:
    return Site(open_database())


async def refused(answer: Any) -> tuple[int, str, Any]:
    with pytest.raises(ErrorResponse) as caught:
        await answer
    return caught.value.status, caught.value.key, caught.value.params.get("reason")


# --- one device -------------------------------------------------------------------------------------------------------


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


# --- mixed fleets -----------------------------------------------------------------------------------------------------


async def test_auto_makes_keys_at_devices_that_can(site: Site) -> None:
    new, old = await site.device("new"), await site.device("old", "key-proof")
    for devices, origin in (([new], "device"), ([], "plane"), ([old], "plane"), ([new, old], "plane")):
        assert (await site.issue(*devices, key_origin="auto"))["key_origin"] == origin
    assert await refused(site.issue(new, key_origin="hsm")) == (400, "BAD_REQUEST", None)


async def test_an_old_agent_is_not_asked(site: Site) -> None:
    device = await site.device("web-1", "key-proof")
    row = await site.issue(device)
    assert (row["status"], row["order_state"]) == ("pending", "blocked")
    assert row["problem"] == "the agent of web-1 (unknown version) does not make keys"
    assert await site.types(device) == []
    assert (await site.detail(device, row["id"]))["order"] is None
    assert (await refused(site.sends(device, row["id"], csr(NAMES))))[:2] == (409, "ORDER_STATE")
    await site.starts(device, "csr")
    assert (await site.shown(row["id"]))["order_state"] == "csr_wanted"
    assert (await site.meets(device, row["id"]))["status"] == "active"


async def test_a_downgraded_agent_is_shown_and_never_replaced_by_the_plane(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    before = await site.meets(device, row["id"])
    await site.starts(device)
    shown = await site.shown(row["id"])
    assert (shown["status"], shown["problem"]) == ("active", "the agent of web-1 (0.9) does not make keys")
    await site.plane.certificates.renew(1, row["id"])
    await site.run_orders()
    blocked = await site.shown(row["id"])
    assert (blocked["order_state"], blocked["serial_number"]) == ("blocked", before["serial_number"])
    with_keys = "SELECT count(*) AS n FROM certificates WHERE length(private_key_enc) > 0"
    assert (await site.plane.work(site.db.one, with_keys))["n"] == 0
    await site.starts(device, "csr")
    assert (await site.shown(row["id"]))["order_state"] == "csr_wanted"
    await site.starts(device)
    assert (await site.shown(row["id"]))["order_state"] == "blocked", "downgraded while it is asked"


async def test_a_device_that_has_not_registered_is_asked_once_it_has(site: Site) -> None:
    device = await new_device(site.plane, "web-1")
    row = await site.issue(device)
    assert (row["order_state"], row["problem"]) == ("blocked", "web-1 has not registered yet")
    await site.device("web-1")
    assert await site.types(device) == ["cert.csr_wanted"]


async def test_a_new_identity_is_asked_for_new_keys(site: Site) -> None:
    key = PrivateKey.generate()
    device = await site.device(key=key)
    row = await site.issue(device)
    await site.meets(device, row["id"])
    await site.device(key=key)
    assert (await site.shown(row["id"]))["order_id"] is None, "the same directory registers again"
    await site.device()
    assert (await site.shown(row["id"]))["order_state"] == "csr_wanted"
    await site.sends(device, row["id"], csr(NAMES))
    first = (await site.shown(row["id"]))["order_id"]
    await site.device()
    second = await site.shown(row["id"])
    assert (second["order_state"], second["order_id"] > first) == ("csr_wanted", True), "the key of the request is lost"


async def test_a_revoked_device_blocks_until_it_is_back(site: Site) -> None:
    device = await site.device()
    row = await site.issue(device)
    await site.plane.work(site.plane.devices.revoke, 1, device, "stolen")
    await site.plane.work(site.plane.orders.retry, 1, row["order_id"])
    assert (await site.shown(row["id"]))["problem"] == "web-1 is revoked"
    await site.device()
    assert (await site.shown(row["id"]))["order_state"] == "csr_wanted"


# --- templates --------------------------------------------------------------------------------------------------------


async def test_each_device_of_a_name_has_its_own_certificate(site: Site) -> None:
    one, two, three = [await site.device(f"web-{n}") for n in (1, 2, 3)]
    root = await site.issue(one, two)
    assert root["device_ids"] == [one]
    (child,) = await site.plane.work(site.plane.certificates.page_of_user, 1, root["id"], 10)
    assert (child["template_id"], child["device_ids"], child["sans"]) == (root["id"], [two], NAMES)
    third = await site.plane.certificates.assign(1, three, child["id"])
    assert (third["template_id"], third["device_ids"]) == (root["id"], [three])
    assert await site.plane.certificates.assign(1, three, root["id"]) == third, "idempotent"
    assert (await site.plane.certificates.assign(1, one, root["id"]))["id"] == root["id"]
    for device, cert in ((one, root), (two, child), (three, third)):
        await site.meets(device, cert["id"])
        assert [row["id"] for row in await site.plane.work(site.plane.certificates.page, device, 0, 9)] == [cert["id"]]
    serials = {(await site.shown(cert["id"]))["serial_number"] for cert in (root, child, third)}
    assert len(serials) == 3


async def test_what_is_done_to_a_template_is_done_to_all(site: Site) -> None:
    one, two = await site.device("web-1"), await site.device("web-2")
    root = await site.issue(one, two)
    child = (await site.plane.work(site.plane.certificates.page_of_user, 1, root["id"], 10))[0]
    for device, cert in ((one, root), (two, child)):
        await site.meets(device, cert["id"])
    await site.plane.certificates.renew(1, root["id"])
    for device, cert in ((one, root), (two, child)):
        assert (await site.shown(cert["id"]))["order_state"] == "csr_wanted"
        await site.meets(device, cert["id"])
    await site.plane.certificates.renew(1, child["id"])
    assert (await site.shown(root["id"]))["order_id"] is None, "only its own"
    await site.plane.certificates.revoke(1, root["id"], reason="test")
    assert [(await site.shown(cert["id"]))["status"] for cert in (root, child)] == ["revoked", "revoked"]
    assert (await site.types(two))[-1] == "cert.revoked"


async def test_the_issuer_of_a_template_is_that_of_all(site: Site) -> None:
    one, two, three = [await site.device(f"web-{number}") for number in range(3)]
    root = await site.issue(one, two, three)
    children = await site.plane.work(site.plane.certificates.page_of_user, 1, root["id"], 10)
    issued, gone = (row["id"] for row in children)
    await site.meets(two, issued)
    await site.plane.certificates.unassign(1, three, gone)
    with scripted():
        site.plane.issuers._kinds = None
        await site.plane.work(site.plane.issuers.put, NewIssuer(name="le", kind="scripted", settings={}))
        await site.plane.certificates.change(1, root["id"], issuer="le")
    rows = [await site.shown(cert_id) for cert_id in (root["id"], issued, gone)]
    assert [row["issuer"] for row in rows] == ["le"] * 3
    states = ["csr_wanted", "", ""]
    assert [row["order_state"] for row in rows] == states, "only what is pending and has a device is ordered at once"
    assert (await site.types(one))[-1] == "cert.csr_wanted"


async def test_unassigning_by_the_template_finds_the_device_s_own_certificate(site: Site) -> None:
    one, two = await site.device("web-1"), await site.device("web-2")
    root = await site.issue(one, two)
    child = (await site.plane.work(site.plane.certificates.page_of_user, 1, root["id"], 10))[0]
    await site.plane.certificates.unassign(1, two, root["id"])
    shown = await site.shown(child["id"])
    assert (shown["device_ids"], shown["order_id"]) == ([], None)
    assert (await site.signals(two))[-1] == ("cert.unassigned", {"cert_id": child["id"]})
    assert (await refused(site.plane.certificates.unassign(1, two, root["id"])))[0] == 404
    await site.plane.certificates.renew(1, root["id"])
    assert (await site.shown(child["id"]))["order_id"] is None, "nobody has it"
    again = await site.plane.certificates.assign(1, two, root["id"])
    assert (again["id"], again["order_state"]) == (child["id"], "csr_wanted"), "the same one again"


async def test_another_device_of_a_certificate_makes_its_own_key(site: Site) -> None:
    """The plane has nothing that it could give to it."""
    one, two = await site.device("web-1"), await site.device("web-2")
    row = await site.issue(one)
    before = await site.meets(one, row["id"])
    await site.plane.certificates.unassign(1, one, row["id"])
    moved = await site.plane.certificates.assign(1, two, row["id"])
    assert (moved["id"], moved["order_state"], moved["device_ids"]) == (row["id"], "csr_wanted", [two])
    assert "cert.renewed" not in await site.types(two)
    assert (await site.meets(two, row["id"]))["serial_number"] != before["serial_number"]


async def test_a_certificate_without_a_device_waits_for_one(site: Site) -> None:
    row = await site.issue()
    assert (row["status"], row["order_id"]) == ("pending", None)
    await site.plane.certificates.renew(1, row["id"])
    assert (await site.shown(row["id"]))["problem"] == "is assigned to no device that could make its key"
    device = await site.device()
    await site.plane.certificates.assign(1, device, row["id"])
    assert (await site.meets(device, row["id"]))["status"] == "active"


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


# --- revoked keys -----------------------------------------------------------------------------------------------------


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
