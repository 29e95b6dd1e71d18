"""Changes of one device or certificate from the console, and Undo."""

from __future__ import annotations

import re
from typing import Any

import pytest
from console_visits import csrf_of, signed_in, text_of
from page_browser import Browser
from plane_world import World

from certctrl.model.features import KEY_ROTATION
from certctrl.plane.access.roles import Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.devices import features
from certctrl.plane.http.console import holders as holders_module
from certctrl.plane.http.console.undo import SECONDS


async def undone(browser: Browser) -> Any:
    """Press Undo on the page that is shown."""
    token = re.search(rb'name="undo" value="([^"]+)"', browser.page.body)
    assert token is not None, "the page offers Undo"
    return await browser.post("/fleet/undo", undo=token[1].decode())


async def posted(browser: Browser, path: str, **fields: Any) -> str:
    """Send a form of a page, and return the text of the page that it leads to."""
    reply = await browser.post(path, **fields)
    assert reply.status == 303, text_of(reply)
    return text_of(await browser.get(reply.headers["location"]))


def name_of(world: World, device_id: int) -> str:
    return str(world.plane.devices.show(1, device_id)["name"])


def tags_of(world: World, device_id: int) -> list[str]:
    return list(world.plane.devices.show(1, device_id)["tags"])


# --- names and tags ---------------------------------------------------------------------------------------------------


async def test_rename_and_undo(world: World) -> None:
    device = await world.device()
    browser = await signed_in(world)
    home = f"/fleet/devices/{device.id}"
    await browser.get(home)
    shown = await posted(browser, f"{home}/rename", name=" shop-1 ")
    assert name_of(world, device.id) == "shop-1" and "Renamed." in shown and "Undo" in shown
    done = await undone(browser)
    assert done.headers["location"] == f"{home}?done=undone" and name_of(world, device.id) == "web-1"
    assert "Undone: it is as before." in text_of(await browser.get(done.headers["location"]))
    entries = world.plane.audit.page(Filter(what="device.rename"), 0, 9)
    assert [entry["objects"][0]["after"]["name"] for entry in entries] == ["web-1", "shop-1"]
    assert {entry["via"] for entry in entries} == {"console, token laptop"}
    assert "It has this name already" in await posted(browser, f"{home}/rename", name="web-1")


@pytest.mark.parametrize(
    ("name", "says"), [("", "needs a name"), ("77", "not a number"), ("web-2", "has the name web-2")]
)
async def test_a_name_that_does_not_fit(world: World, name: str, says: str) -> None:
    device = await world.device()
    await world.device("b" * 36, "web-2")
    browser = await signed_in(world)
    await browser.get(f"/fleet/devices/{device.id}")
    reply = await browser.post(f"/fleet/devices/{device.id}/rename", name=name)
    assert reply.status in (400, 409) and says in text_of(reply)
    assert name_of(world, device.id) == "web-1"


async def test_tags_and_undo(world: World) -> None:
    device = await world.device()
    await world.plane.work(lambda: world.plane.devices.tags.change(1, [device.id], add=["web", "env=test"]))
    browser = await signed_in(world)
    home = f"/fleet/devices/{device.id}"
    await browser.get(home)
    shown = await posted(browser, f"{home}/tags", add="web, env=prod,", remove="nothing-has-this")
    assert tags_of(world, device.id) == ["env=prod", "web"] and "Its tags are changed" in shown
    assert (await undone(browser)).status == 303
    assert tags_of(world, device.id) == ["env=test", "web"], "what it had before stays"
    assert "Its tags are so already" in await posted(browser, f"{home}/tags", add="web")
    for add, says in (("", "No tag is given"), ("Not One", "is not a tag")):
        reply = await browser.post(f"{home}/tags", add=add)
        assert reply.status == 400 and says in text_of(reply)


# --- Undo -------------------------------------------------------------------------------------------------------------


async def test_undo_is_refused_when_the_value_has_changed(world: World) -> None:
    device = await world.device()
    browser = await signed_in(world)
    home = f"/fleet/devices/{device.id}"
    await browser.get(home)
    await posted(browser, f"{home}/rename", name="shop-1")
    await world.plane.life.rename(1, device.id, "shop-2")
    reply = await undone(browser)
    assert reply.status == 409 and "is named shop-2 now, not shop-1. Nothing was changed" in text_of(reply)
    await browser.get(home)
    await posted(browser, f"{home}/tags", add="web")
    await world.plane.work(lambda: world.plane.devices.tags.change(1, [device.id], remove=["web"]))
    reply = await undone(browser)
    assert reply.status == 409 and "Its tags have changed since" in text_of(reply)
    assert name_of(world, device.id) == "shop-2" and tags_of(world, device.id) == []


async def test_undo_is_for_a_minute_and_for_who_made_the_change(world: World) -> None:
    device = await world.device()
    browser, other = await signed_in(world), await signed_in(world, name="bob")
    home = f"/fleet/devices/{device.id}"
    await browser.get(home)
    sent = (await browser.post(f"{home}/rename", name="shop-1")).headers["location"]
    await other.get(home)
    assert "Undo" not in text_of(await other.get(sent)), "a link that is shared offers no Undo"
    token = sent.partition("undo=")[2]
    assert (await other.post("/fleet/undo", undo=token)).status == 409
    await browser.get(sent)
    assert (await browser.post("/fleet/undo", undo=token[:-1] + "0" * (token[-1] != "0"))).status == 409
    assert (await browser.post("/fleet/undo", undo="")).status == 409
    await browser.get(sent)
    world.clock.advance(SECONDS + 1)
    assert (await undone(browser)).status == 409
    assert "Undo" not in text_of(await browser.get(sent))
    assert name_of(world, device.id) == "shop-1"


# --- hardware, key, end -----------------------------------------------------------------------------------------------


async def test_replace_shows_the_token_once(world: World) -> None:
    device = await world.device()
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    browser = await signed_in(world)
    home = f"/fleet/devices/{device.id}"
    asked = text_of(await browser.get(f"{home}/confirm?do=replace"))
    assert "Replace the hardware of web-1?" in asked and "1 certificate" in asked
    assert "No token for new hardware was out." in await posted(browser, f"{home}/cancel-replacement")
    await browser.get(f"{home}/confirm?do=replace")
    made = await browser.post(f"{home}/replace")
    token = re.search(rb"dr_[\w-]+", made.body)
    assert made.status == 200 and token is not None and made.headers["cache-control"] == "no-store"
    assert token[0] not in (await browser.get(home)).body and token[0] not in (await browser.get("/fleet/audit")).body
    assert "The token for new hardware is void." in await posted(browser, f"{home}/cancel-replacement")


async def test_rotate_its_key(world: World) -> None:
    device = await world.device()
    await world.plane.work(world.plane.database.run, "UPDATE devices SET features = ?", features.stored([KEY_ROTATION]))
    browser = await signed_in(world)
    home = f"/fleet/devices/{device.id}"
    asked = text_of(await browser.get(f"{home}/confirm?do=rotate-key"))
    assert "Rotate the key of web-1?" in asked and f"cert-ctrl plane device rotate-key {device.id}" in asked
    assert world.plane.devices.show(1, device.id)["key_rotation_wanted_at"] is None, "asking changes nothing"
    assert "replaces its key when" in await posted(browser, f"{home}/rotate-key")
    assert world.plane.devices.show(1, device.id)["key_rotation_wanted_at"] is not None


async def test_decommission_by_name(world: World) -> None:
    device = await world.device()
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    browser = await signed_in(world)
    home = f"/fleet/devices/{device.id}"
    asked = text_of(await browser.get(f"{home}/confirm?do=decommission"))
    for text in (
        "Decommission web-1?",
        "1 certificate and 0 CAs are withdrawn",
        "No other device has a.example",
        "no undo",
    ):
        assert text in asked, text
    refused = await browser.post(f"{home}/decommission", name="web-2")
    assert refused.status == 400 and "'web-2' is not its name" in text_of(refused)
    assert (await device.poll()).status < 300
    shown = await posted(browser, f"{home}/decommission", name="web-1", reason="sold")
    assert "Decommissioned: its requests are refused" in shown and "Replace its hardware" not in shown
    assert (await device.poll()).key == "DEVICE_REVOKED"
    assert "it is decommissioned already" in text_of(await browser.get(f"{home}/confirm?do=decommission")).lower()


# --- certificates -----------------------------------------------------------------------------------------------------


async def test_assign_and_unassign_with_undo(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"])
    browser = await signed_in(world)
    home = f"/fleet/certificates/{row['id']}"

    def holders() -> list[int]:
        return list(world.plane.certificates.show(1, row["id"])["device_ids"])

    await browser.get(home)
    assert "Assigned: the device gets it" in await posted(browser, f"{home}/assign", device="WEB-1")
    assert holders() == [device.id]
    assert (await undone(browser)).headers["location"] == f"{home}?done=undone" and holders() == []
    await browser.get(home)
    await posted(browser, f"{home}/assign", device=str(device.id))
    assert "has it already" in await posted(browser, f"{home}/assign", device="web-1")
    assert "Unassigned" in await posted(browser, f"{home}/unassign", device="web-1") and holders() == []
    assert (await undone(browser)).status == 303 and holders() == [device.id]
    actions = [entry["action"] for entry in world.plane.audit.page(Filter(who="alice"), 0, 9)]
    assert actions[:2] == ["certificate.assign", "certificate.unassign"]
    for named, status, says in (
        ("", 400, "No device is given"),
        ("wbe-1", 404, "did you mean web-1?"),
        ("99", 404, "No such device"),
    ):
        reply = await browser.post(f"{home}/assign", device=named)
        assert reply.status == status and says in text_of(reply)


async def test_undo_leaves_an_assignment_that_another_operator_made_since(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["www.example.com"])
    browser = await signed_in(world)
    home = f"/fleet/certificates/{row['id']}"
    await browser.get(home)
    await posted(browser, f"{home}/assign", device="web-1")
    await world.plane.certificates.unassign(1, device.id, row["id"])
    world.clock.wall += 1
    await world.plane.certificates.assign(1, device.id, row["id"])
    reply = await undone(browser)
    assert reply.status == 409 and "assigned again since" in text_of(reply), text_of(reply)
    assert world.plane.certificates.show(1, row["id"])["device_ids"] == [device.id]


async def test_a_device_is_found_by_its_name_among_many_that_contain_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders_module, "_MOST_NAMES", 2)
    for number in range(3):
        await world.device(f"{number}" * 36, f"a-web-{number}")
    device = await world.device("b" * 36, "web")
    row = await world.plane.certificates.issue(1, ["a.example"])
    browser = await signed_in(world)
    home = f"/fleet/certificates/{row['id']}"
    await browser.get(home)
    assert "Assigned: the device gets it" in await posted(browser, f"{home}/assign", device="Web")
    assert world.plane.certificates.show(1, row["id"])["device_ids"] == [device.id]


async def test_certificates_with_keys_of_devices_have_no_undo(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"], key_origin="device")
    browser = await signed_in(world)
    await browser.get(f"/fleet/certificates/{row['id']}")
    shown = await posted(browser, f"/fleet/certificates/{row['id']}/assign", device="web-1")
    assert "Assigned" in shown and "Undo" not in shown
    assert world.plane.certificates.page(device.id, 0, 9) != []


async def test_revoke_by_name(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    browser = await signed_in(world)
    home = f"/fleet/certificates/{row['id']}"
    assert "Revoke…" in text_of(await browser.get(home))
    asked = text_of(await browser.get(f"{home}/confirm?do=revoke"))
    for text in (
        "Revoke a.example?",
        "the 1 device that has it",
        "keyCompromise",
        f"cert-ctrl plane revoke {row['id']}",
    ):
        assert text in asked, text
    refused = await browser.post(f"{home}/revoke", name="b.example", reason="leaked", reason_code="keyCompromise")
    assert refused.status == 400 and "'b.example' is not its name" in text_of(refused)
    assert b'value="leaked"' in refused.body and b'<option value="keyCompromise" selected>' in refused.body
    shown = await posted(browser, f"{home}/revoke", name="a.example", reason="leaked", reason_code="keyCompromise")
    assert "Revoked here" in shown and "leaked" in shown and "Revoke…" not in shown
    (entry, *_) = world.plane.audit.page(Filter(what="certificate.revoke"), 0, 9)
    assert entry["detail"]["reason_code"] == "keyCompromise" and entry["via"] == "console, token laptop"
    bad = await browser.post(f"{home}/revoke", name="a.example", reason_code="because")
    assert bad.status == 400 and "reason_code must be one of" in text_of(bad)


# --- who may ----------------------------------------------------------------------------------------------------------


async def test_viewers_have_no_forms_and_change_nothing(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"])
    viewer = await signed_in(world, Role.VIEWER)
    csrf = csrf_of(await viewer.get("/fleet"))
    forms = ("rename", "tags", "replace", "cancel-replacement", "rotate-key", "decommission")
    paths = [f"/fleet/devices/{device.id}/{form}" for form in forms]
    paths += [f"/fleet/certificates/{row['id']}/{form}" for form in ("assign", "unassign", "revoke")]
    for path in paths:
        fields: Any = {
            "csrf": csrf,
            "name": "web-1" if "devices" in path else "a.example",
            "add": "x",
            "device": "web-1",
        }
        assert (await viewer.post(path, **fields)).status == 403, path
    for path in (f"/fleet/devices/{device.id}", f"/fleet/certificates/{row['id']}"):
        assert b'method="post"' not in (await viewer.get(path)).body.partition(b"<main")[2]
    for question in ("replace", "rotate-key", "decommission"):
        assert (await viewer.get(f"/fleet/devices/{device.id}/confirm?do={question}")).status == 403
    assert (await viewer.get(f"/fleet/certificates/{row['id']}/confirm?do=revoke")).status == 403
    assert (
        name_of(world, device.id) == "web-1" and world.plane.audit.page(Filter(who="alice", what="device"), 0, 9) == []
    )
