"""Keys at devices in mixed fleets: old, downgraded, unregistered, replaced and revoked devices."""

from __future__ import annotations

from csrs import csr
from device_key_site import NAMES, Site, refused
from engine_plane import new_device
from nacl.public import PrivateKey


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
