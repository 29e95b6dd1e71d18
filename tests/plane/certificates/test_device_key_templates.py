"""Keys at devices for one name on several devices: a template with one certificate each."""

from __future__ import annotations

from device_key_site import NAMES, Site, refused
from scripted_issuer import scripted

from certctrl.plane.issuers.registry import NewIssuer


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


async def test_a_check_counts_the_devices_with_certificates_of_their_own(site: Site) -> None:
    one, two, three = [await site.device(f"web-{n}") for n in (1, 2, 3)]
    root = await site.issue(one, two, three)
    children = await site.plane.work(site.plane.certificates.page_of_user, 1, root["id"], 10)
    await site.plane.certificates.unassign(1, three, children[1]["id"])
    (found,) = await site.plane.bulk.check(1, [{"domains": NAMES}])
    assert found["known"] == {"id": root["id"], "device_ids": [one, two]}


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
