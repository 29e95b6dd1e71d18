"""Who is let into the console: the sign-in and the way back, roles, forged forms."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from console_visits import PAGES, csrf_of, rollout, signed_in, text_of
from page_browser import Browser
from plane_world import World

from certctrl.plane.access.roles import Role
from certctrl.plane.audit.log import Filter


async def test_a_stranger_signs_in_and_comes_back(world: World) -> None:
    browser = Browser(world.stranger)
    sent = await browser.get("/fleet/devices?state=stale&q=a+b")
    assert sent.status == 303
    form = await browser.get(sent.headers["location"])
    assert b"the role viewer is enough" in form.body
    following = re.search(rb'name="next" value="([^"]*)"', form.body)
    assert following is not None
    fields: Any = {"key": world.plane.operator_key, "user_code": "", "next": unescape(following[1].decode())}
    back = await browser.post("/device/sign-in", **fields)
    assert (back.status, back.headers["location"]) == (303, "/fleet/devices?state=stale&q=a+b")
    assert (await browser.get("/fleet")).status == 200
    again = await browser.get("/device?next=/fleet/audit")
    assert (again.status, again.headers["location"]) == (303, "/fleet/audit"), "who is signed in goes there at once"


@pytest.mark.parametrize(
    "elsewhere",
    [
        "//evil.test",
        "https://evil.test/fleet",
        "/fleetevil",
        "/fleet\r\nX: y",
        "/fleet\\@evil.test",
        "/device",
        "/fleet/é",
        "/fleet?" + "a" * 600,
    ],
)
async def test_nobody_is_led_elsewhere_after_signing_in(world: World, elsewhere: str) -> None:
    browser = Browser(world.stranger)
    await browser.get("/device")
    back = await browser.post("/device/sign-in", key=world.plane.operator_key, user_code="", next=elsewhere)
    assert (back.status, back.headers["location"]) == (303, "/device")


async def test_a_link_from_another_site_leads_to_itself_once(world: World) -> None:
    reply = await world.stranger("GET", "/fleet/devices?state=stale", headers={"sec-fetch-site": "cross-site"})
    assert (reply.status, reply.headers["refresh"]) == (200, "0; url=/fleet/devices?state=stale")
    assert (await world.stranger("GET", "/fleet/devices", headers={"sec-fetch-site": "same-origin"})).status == 303


async def test_a_session_that_ends_leads_to_the_sign_in(world: World) -> None:
    browser = await signed_in(world)
    await world.plane.work(lambda: world.plane.access.accounts.change("alice", None, True))
    for path in ("/fleet", "/fleet/devices.json", "/fleet/rollouts/1"):
        assert (await browser.get(path)).headers["location"].startswith("/device?next=")
    reply = await browser.post("/fleet/devices/1/resync", csrf="x")
    assert (reply.status, reply.headers["location"]) == (303, "/device?next=/fleet")


async def test_a_viewer_sees_everything_and_changes_nothing(world: World) -> None:
    device = await world.device()
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    await world.plane.work(lambda: world.plane.devices.tags.change(1, [device.id], add=["web"]))
    await rollout(world)
    viewer = await signed_in(world, Role.VIEWER)
    for path in PAGES:
        reply = await viewer.get(path)
        expected = 403 if "confirm" in path else 404 if path.endswith("nothing") else 200
        assert reply.status == expected, path
        main = reply.body.partition(b"<main")[2]
        assert b'method="post"' not in main, path
    for path in ("devices/1/resync", "devices/1/revoke", "certificates/1/renew", "rollouts/1/pause"):
        reply = await viewer.post(f"/fleet/{path}", csrf=csrf_of(await viewer.get("/fleet")))
        assert reply.status == 403, path
        assert "This needs the role operator; alice has the role viewer by token laptop" in text_of(reply)
    assert world.plane.audit.page(Filter(who="alice", what="device"), 0, 9) == []


@pytest.mark.parametrize("how", ["another session's", "none", "another site"])
async def test_a_forged_form_changes_nothing(world: World, how: str) -> None:
    device = await world.device()
    browser, other = await signed_in(world), await signed_in(world, name="bob")
    foreign, own = csrf_of(await other.get("/fleet")), csrf_of(await browser.get("/fleet"))
    token = {"another session's": foreign, "none": "", "another site": own}[how]
    headers = {"sec-fetch-site": "cross-site" if how == "another site" else "same-origin"}
    reply = await browser.post(f"/fleet/devices/{device.id}/resync", csrf=token, headers=headers)
    assert reply.status == 403
    assert world.plane.audit.page(Filter(what="device.resync"), 0, 9) == []
