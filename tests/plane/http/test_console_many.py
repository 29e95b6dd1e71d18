"""Changes of many devices and certificates from the console: what is asked, what changes, what does not."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from console_visits import csrf_of, signed_in, text_of
from large_fleet import fill
from page_browser import Browser
from plane_world import World

from certctrl.model.features import KEY_ROTATION
from certctrl.plane.access.roles import Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.devices import features
from certctrl.plane.errors import DatabaseAwayError, conflict
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.http.console import chosen as chosen_module
from certctrl.plane.http.console import many as many_module

FAILING = "reason=command-failed&tag=web"


async def sent(browser: Browser, **fields: Any) -> Any:
    """Send the form of the page that asks."""
    page = browser.page.body.decode()
    action = re.search(r'<form method="post" action="(/fleet/\w+/confirm[^"]*)"', page)
    chosen = re.search(r'name="set" value="(\w+)"', page)
    assert action is not None and chosen is not None
    fields["set"] = chosen[1]
    return await browser.post(unescape(action[1]), **fields)


def signals(world: World, kind: str) -> list[int]:
    rows = world.plane.database.all("SELECT device_id FROM signals WHERE type = ? ORDER BY device_id", kind)
    return [row["device_id"] for row in rows]


async def test_only_a_filtered_list_can_be_changed(world: World) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    for kind, word in (("devices", "Try again on"), ("certificates", "Renew these")):
        assert word not in text_of(await browser.get(f"/fleet/{kind}"))
        assert word in text_of(await browser.get(f"/fleet/{kind}?q=a"))
        assert word not in text_of(await browser.get(f"/fleet/{kind}?q=nothing-has-this"))
    reply = await browser.get("/fleet/devices/confirm?do=retry")
    assert reply.status == 400 and "Choose some of them first" in text_of(reply)


async def test_try_again_on_those_that_fail_alike(world: World) -> None:
    failing = await fill(world.plane, 160)
    browser = await signed_in(world)
    listed = await browser.get(f"/fleet/devices?{FAILING}")
    assert f"Try again on these {len(failing)}…" in text_of(listed)
    asked = text_of(await browser.get(f"/fleet/devices/confirm?do=retry&{FAILING}"))
    for text in (
        "Try again on 6 devices?", "Nothing is renewed", "web-fra-003", "a command of an item fails",
        "cert-ctrl plane device retry", "There is nothing to undo",
    ):  # fmt: skip
        assert text in asked, text
    assert signals(world, "state.resync_required") == [], "asking changes nothing"
    done = await sent(browser)
    assert (done.status, done.headers["location"]) == (
        303,
        "/fleet/devices?reason=command-failed&tag=web&done=retry&n=6",
    )
    assert signals(world, "state.resync_required") == sorted(failing)
    assert "Asked 6 devices to try again" in text_of(await browser.get(done.headers["location"]))
    entries = world.plane.audit.page(Filter(what="device.resync"), 0, 50)
    assert {entry["via"] for entry in entries} == {"console, token laptop"} and len(entries) == len(failing)


async def test_other_rows_than_shown_are_not_changed(world: World) -> None:
    failing = await fill(world.plane, 160)
    browser = await signed_in(world)
    await browser.get(f"/fleet/devices/confirm?do=retry&{FAILING}")
    db = world.plane.database
    other = next(row["id"] for row in db.all("SELECT id FROM devices WHERE name LIKE 'web-fra%' ORDER BY id DESC"))

    def swap() -> None:  # as many as before, but another one
        db.run("DELETE FROM deployments WHERE device_id = ?", failing[0])
        db.run("UPDATE deployments SET failing = 1, step = 'run', reason = 'command-failed' WHERE device_id = ?", other)

    await world.plane.work(swap)
    reply = await sent(browser)
    assert reply.status == 409 and "Other rows fit the filter now" in text_of(reply)
    assert signals(world, "state.resync_required") == []
    assert (await sent(browser)).status == 303, "the page shows those that fit now"


async def test_many_are_changed_some_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(world.plane, 160)
    monkeypatch.setattr(many_module, "MOST", 25)
    browser = await signed_in(world)
    asked = text_of(await browser.get("/fleet/devices/confirm?do=retry&tag=web"))
    assert "Try again on 25 devices of 40?" in asked and "And 5 more devices." in asked
    assert "15 devices of this list are asked for after these." in asked
    first = await sent(browser)
    assert "--tag web --sort id --limit 25 --json | jq '.devices[].id')" in asked
    rest = text_of(await browser.get(first.headers["location"]))
    assert "Asked 25 devices to try again" in rest and "Try again on 15 devices?" in rest
    done = await sent(browser)
    assert done.headers["location"] == "/fleet/devices?tag=web&done=retry&n=15"
    web = [row["id"] for row in world.plane.fleet.devices(1, Query(tags=("web",), limit=500))["devices"]]
    assert signals(world, "state.resync_required") == sorted(web), "each once"


async def test_devices_that_cannot_are_left_out(world: World) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    for do in ("retry", "rotate-key"):
        asked = text_of(await browser.get(f"/fleet/devices/confirm?do={do}&state=expected"))
        assert "None of them can be changed so: never registered, or shut out" in asked
    assert "Left out" in text_of(await browser.get("/fleet/devices/confirm?do=retry&q=e"))


async def test_tags_of_many(world: World) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    form = await browser.get(f"/fleet/devices/confirm?do=tags&{FAILING}")
    assert "Tags of 6 devices" in text_of(form) and b'method="post"' not in form.body.partition(b"<main")[2]
    asked = text_of(await browser.get(f"/fleet/devices/confirm?do=tags&{FAILING}&add=env%3Dprod,web&remove=site%3Dfra"))
    for text in ("env=prod, web: added.", "site=fra: removed.", "gets env=prod , loses site=fra", "--add env=prod"):
        assert text in asked, text
    assert (await sent(browser)).status == 303
    rows = world.plane.fleet.devices(1, Query(reason="command-failed"))["devices"]
    assert {tuple(row["tags"]) for row in rows} == {("env=prod", "web")}
    (entry, *_) = world.plane.audit.page(Filter(what="device.tag"), 0, 9)
    assert entry["detail"]["add"] == ["env=prod", "web"] and entry["objects"][0]["kind"] == "device"
    again = text_of(await browser.get(f"/fleet/devices/confirm?do=tags&{FAILING}&add=web"))
    assert "nothing: it has them so already" in again


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("do=tags&tag=web&add=Not+a+tag", "is not a tag"),
        ("do=tags&tag=web&add=a%3D1,a%3D2", "are two values of one key"),
        ("do=tags&tag=web&add=x&remove=x", "cannot be both added and removed"),
        ("do=rerty&tag=web", "did you mean retry?"),
        ("do=renew&tag=web", "is not a change of many"),
        ("do=retry&state=degradd", "did you mean degraded?"),
        ("do=retry&tag=web&beyond=x", "beyond must be a whole number"),
    ],
)
async def test_what_does_not_fit_is_told(world: World, query: str, says: str) -> None:
    await fill(world.plane, 16)
    reply = await (await signed_in(world)).get(f"/fleet/devices/confirm?{query}")
    assert reply.status == 400 and says in text_of(reply)


async def test_decommissioning_many_needs_their_number(world: World) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    asked = text_of(await browser.get(f"/fleet/devices/confirm?do=decommission&{FAILING}"))
    for text in ("Decommission 6 devices?", "2 certificates withdrawn", "type how many: 6", "There is no undo"):
        assert text in asked, text
    refused = await sent(browser, count="5")
    assert refused.status == 409 and "'5' is not how many there are. Nothing was changed." in text_of(refused)
    assert (await sent(browser, count="6", reason="rack 7 is gone")).status == 303
    rows = world.plane.database.all("SELECT * FROM devices WHERE decommissioned_at IS NOT NULL")
    assert len(rows) == 6 and {row["revoke_reason"] for row in rows} == {"rack 7 is gone"}


async def test_a_refusal_does_not_stop_the_others(world: World) -> None:
    device, other = await world.device(), await world.device("b" * 36, "web-2")
    await world.plane.work(lambda: world.plane.devices.tags.change(1, [device.id, other.id], add=["web"]))
    await world.plane.work(
        world.plane.database.run,
        "UPDATE devices SET features = ? WHERE id = ?",
        features.stored([KEY_ROTATION]),
        other.id,
    )
    browser = await signed_in(world)
    asked = text_of(await browser.get("/fleet/devices/confirm?do=rotate-key&tag=web"))
    assert "not possible: The agent of device 1" in asked and "makes a new key" in asked
    reply = await sent(browser)
    shown = text_of(reply)
    assert reply.status == 200 and "Told 1 device to rotate their keys." in shown
    assert "Not done for 1 device" in shown and "does not rotate its key" in shown
    wanted = world.plane.database.all("SELECT id FROM devices WHERE key_wanted_at IS NOT NULL")
    assert [row["id"] for row in wanted] == [other.id]


async def test_a_database_that_goes_away_stops_it_and_tells_how_far(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world.plane, 160)
    browser, resync, calls = await signed_in(world), world.plane.resync, list[int]()

    async def at_times(user_id: int, device_id: int, reason: str = "") -> None:
        calls.append(device_id)
        if len(calls) == 2:
            raise conflict("not this one")
        if len(calls) == 4:
            raise DatabaseAwayError("cannot connect")
        await resync(user_id, device_id, reason)

    await browser.get(f"/fleet/devices/confirm?do=retry&{FAILING}")
    monkeypatch.setattr(world.plane, "resync", at_times)
    reply = await sent(browser)
    shown = text_of(reply)
    for text in (
        "Asked 2 devices to try again",
        "Not done for 1 device",
        "not this one",
        "Stopped",
        "3 devices were not tried",
        "Go on with the other 3",
    ):
        assert text in shown, text
    following = re.search(rb'<a href="([^"]*)" class="button primary">Go on', reply.body)
    assert following is not None
    monkeypatch.setattr(world.plane, "resync", resync)
    rest = text_of(await browser.get(unescape(following[1].decode())))
    assert "Try again on 3 devices?" in rest and (await sent(browser)).status == 303


async def test_a_request_whose_time_is_over_goes_on_with_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    monkeypatch.setattr(many_module, "_SECONDS", -1.0)
    await browser.get(f"/fleet/devices/confirm?do=retry&{FAILING}")
    for left in range(5, 0, -1):
        done = await sent(browser)
        asked = text_of(await browser.get(done.headers["location"]))
        assert "Asked 1 device to try again" in asked and f"Try again on {left} device" in asked
    assert (await sent(browser)).headers["location"].startswith("/fleet/devices?")
    assert len(set(signals(world, "state.resync_required"))) == 6


async def test_renew_many(world: World) -> None:
    device = await world.device()
    made = [
        await world.plane.certificates.issue(1, [f"{name}.example"], device_ids=[device.id]) for name in ("a", "b", "c")
    ]
    await world.plane.certificates.revoke(1, made[2]["id"])
    browser = await signed_in(world)
    assert "Renew these 3…" in text_of(await browser.get("/fleet/certificates?q=example"))
    asked = text_of(await browser.get("/fleet/certificates/confirm?do=renew&q=example"))
    for text in ("Renew 2 certificates?", "Left out: 1 certificate, revoked", "cert-ctrl plane renew", "--rollout"):
        assert text in asked, text
    done = await sent(browser)
    assert done.headers["location"] == "/fleet/certificates?q=example&done=renew&n=2"
    assert "Ordered the renewal of 2 certificates." in text_of(await browser.get(done.headers["location"]))
    orders = world.plane.database.all("SELECT cert_id FROM orders WHERE action = 'renew' ORDER BY cert_id")
    assert [row["cert_id"] for row in orders] == [made[0]["id"], made[1]["id"]]
    (entry, *_) = world.plane.audit.page(Filter(what="certificate.renew"), 0, 9)
    assert entry["via"] == "console, token laptop" and len(entry["objects"]) >= 2


async def test_viewers_and_forged_forms_change_nothing(world: World) -> None:
    await fill(world.plane, 160)
    viewer, operator = await signed_in(world, Role.VIEWER), await signed_in(world, name="bob")
    assert "Try again on" not in text_of(await viewer.get(f"/fleet/devices?{FAILING}"))
    await operator.get(f"/fleet/devices/confirm?do=retry&{FAILING}")
    for do in ("retry", "tags", "rotate-key", "decommission"):
        url = f"/fleet/devices/confirm?do={do}&{FAILING}&add=x"
        assert (await viewer.get(url)).status == 403
        assert (await viewer.post(url, csrf=csrf_of(await viewer.get("/fleet")))).status == 403
        assert (await operator.post(url, csrf="0" * 64)).status == 403
        assert (await operator.post(url, headers={"sec-fetch-site": "cross-site"})).status == 403
    assert world.plane.audit.page(Filter(what="device"), 0, 9) == []


async def test_the_command_of_a_rest_lists_the_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    monkeypatch.setattr(chosen_module, "NAMED", 3)
    asked = text_of(await browser.get(f"/fleet/devices/confirm?do=retry&{FAILING}&beyond=49"))
    query = re.search(r"--after '([^']*)' --sort id --limit (\d+) --json", asked)
    assert query is not None and "Try again on 5 devices?" in asked
    listed = Query(reason="command-failed", tags=("web",), sort="id", after=query[1], limit=int(query[2]))
    rows = world.plane.fleet.devices(1, listed)["devices"]
    await sent(browser)
    assert signals(world, "state.resync_required") == [row["id"] for row in rows]
