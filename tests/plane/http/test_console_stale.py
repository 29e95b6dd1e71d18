"""Previews of profiles and rollouts that no longer hold, and hostile forms."""

from __future__ import annotations

import json

import pytest
from console_visits import HOSTILE, csrf_of, signed_in, text_of
from page_browser import FORM
from plane_world import World
from profile_visits import (
    CHANGE,
    ITEM,
    LIST,
    NEW,
    OTHER,
    RULES,
    added,
    entries,
    fields,
    of_page,
    preview,
    three,
    versions,
    well_formed,
)

from certctrl.plane.access.roles import Role
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules

# --- previews that no longer hold, and hostile forms ------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["a version", "a tag", "another profile", "a device", "the items", "a rule", "the user"]
)
async def test_a_stale_preview_starts_nothing(world: World, what: str) -> None:
    await three(world, ITEM)
    plane, browser = world.plane, await signed_in(world)
    other = (await world.operator("POST", "/apiv1/users", {"name": "other team"})).data["id"]
    await browser.get(f"{NEW}?profile=nginx")
    asked = of_page(await browser.post(NEW, do="preview", profile="nginx", **fields(OTHER), **RULES))
    if what == "a version":
        await plane.profiles.put(1, "nginx", ProfileChange(installs=[ITEM, OTHER | {"id": "x"}]))
    elif what == "a tag":
        await plane.work(lambda: plane.devices.tags.change(1, [3], remove=["web"]))
    elif what == "another profile":
        await plane.profiles.put(1, "b", ProfileChange(devices="web", installs=[OTHER | {"id": "b"}]))
    elif what == "a device":
        extra = await added(world, 4)
        await plane.work(lambda: plane.devices.tags.change(1, [extra], add=["web"]))
    elif what == "the items":
        asked["installs"] = json.dumps([OTHER | {"cmd_argv": ["/bin/evil"]}])
    elif what == "a rule":
        asked["waves"] = "100%"
    else:
        await plane.profiles.put(other, "nginx", ProfileChange(devices="web", order=10, installs=[ITEM]))
        await browser.get(f"/fleet?user={other}")
    reply = await browser.post(NEW, do="start", **asked)
    if what == "another profile":
        assert reply.status == 303, "what it does is as it was shown"
        return
    assert reply.status in (400, 409), reply.status
    assert "so nothing was changed" in text_of(reply) or "nothing to roll out" in text_of(reply)
    assert plane.rollouts.show_all(1) == plane.rollouts.show_all(other) == []
    assert entries(world, "rollout") == []
    if what in ("a tag", "a device"):
        sizes = "1, 1" if what == "a tag" else "1, 2, 1"
        assert f"waves of {sizes} devices" in text_of(reply), "the page shows the present plan"
        assert (await browser.post(NEW, do="start", **of_page(reply))).status == 303


async def test_a_stale_preview_of_renewals_starts_nothing(world: World) -> None:
    await three(world)
    issued = await world.plane.certificates.issue(1, ["a.example"], device_ids=[1, 2, 3])
    browser = await signed_in(world)
    form = await browser.get(f"{NEW}?certificates={issued['id']}")
    asked = await browser.post(NEW, do="preview", **of_page(form), **RULES)
    await world.plane.certificates.renew(1, issued["id"])
    reply = await browser.post(NEW, do="start", **of_page(asked))
    assert reply.status == 409 and world.plane.rollouts.show_all(1) == []


async def test_a_stale_preview_stores_nothing(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    asked = of_page(await preview(browser, CHANGE, **fields(OTHER)))
    await world.plane.work(lambda: world.plane.devices.tags.change(1, [3], remove=["web"]))
    reply = await browser.post(CHANGE, do="store", **asked)
    assert reply.status == 409 and "so nothing was changed" in text_of(reply)
    assert "the config of 2 devices would change" in text_of(reply) and versions(world) == [1]
    for missing in ({}, {"preview_id": "x" * 100}):
        unseen = await browser.post(CHANGE, do="store", **fields(OTHER), **missing)
        assert unseen.status in (400, 409) and versions(world) == [1]
    for do in ("", "delete", "start"):
        assert (await browser.post(CHANGE, do=do, **of_page(reply))).status == 400


async def test_viewers_see_and_change_nothing(world: World) -> None:
    await three(world, ITEM)
    issued = await world.plane.certificates.issue(1, ["a.example"], device_ids=[1])
    viewer = await signed_in(world, Role.VIEWER)
    for path in (
        LIST,
        f"{LIST}/nginx",
        f"{LIST}/nginx?version=1",
        "/fleet/rollouts",
        f"/fleet/certificates/{issued['id']}",
    ):
        reply = await viewer.get(path)
        main = reply.body.decode().partition("<main")[2]
        assert reply.status == 200 and "<form" not in main and "…</a>" not in main, path
    for path in (CHANGE, NEW, f"{NEW}?profile=nginx", f"{NEW}?certificates={issued['id']}"):
        refused = await viewer.get(path)
        assert refused.status == 403 and "This needs the role operator" in text_of(refused), path
    token = csrf_of(await viewer.get("/fleet"))
    for path, more in ((CHANGE, {}), (NEW, {"profile": "nginx"} | RULES)):
        for do in ("edit", "preview", "store", "start"):
            reply = await viewer.post(path, csrf=token, do=do, **fields(OTHER), **more)
            assert reply.status == 403, (path, do)
    assert versions(world) == [1]


@pytest.mark.parametrize("path", [CHANGE, NEW])
async def test_hostile_forms_change_nothing(world: World, path: str) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    do = "store" if path == CHANGE else "start"
    await browser.get(CHANGE)
    asked = of_page(await browser.post(path, do="preview", profile="nginx", **fields(OTHER), **RULES))
    assert asked["preview_id"]
    for headers, token in (({"sec-fetch-site": "cross-site"}, asked["csrf"]), ({}, "0" * 64), ({}, "")):
        reply = await browser.post(path, do=do, headers=headers, **(asked | {"csrf": token}))
        assert reply.status == 403
    large = b"csrf=" + asked["csrf"].encode() + b"&do=preview&installs=" + b"%5B" * 400_000
    cookies = {"cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
    reply = await world.stranger("POST", path, body=large, headers={**cookies, **FORM})
    assert reply.status == 413 and "use cert-ctrl plane profile or rollout with a file" in text_of(reply)
    many = b"&".join(b"f%d=1" % number for number in range(100))
    assert (await world.stranger("POST", path, body=many, headers={**cookies, **FORM})).status == 400
    assert versions(world) == [1] and world.plane.rollouts.show_all(1) == []
    assert (await world.stranger("POST", path, body=large, headers=FORM)).status == 303, "to the sign-in"


async def test_hostile_texts_are_only_text(world: World) -> None:
    visible = "<script>alert(1)</script>\"'&"
    spoilt = {"id": visible, "type": "exec", "cmd_argv": ["/bin/{{csrf}}", visible]}
    await three(world, spoilt)
    db = world.plane.database

    def spoil() -> None:
        db.run("UPDATE devices SET name = ?", HOSTILE)
        db.run("UPDATE install_configs SET problem = ?", HOSTILE)
        db.run("UPDATE profile_versions SET note = ?", HOSTILE)
        db.run("UPDATE certificates SET domain_name = ?", HOSTILE)

    issued = await world.plane.certificates.issue(1, ["a.example"], device_ids=[1])
    browser = await signed_in(world)
    for path in (f"{LIST}/nginx", CHANGE):
        well_formed(await browser.get(path), path)
    await world.plane.work(spoil)
    pages = (
        LIST,
        f"{LIST}/nginx",
        f"{LIST}/nginx?version=1",
        NEW,
        f"{NEW}?certificates={issued['id']}",
        f"{NEW}?profile=nginx",
    )
    for path in pages:
        well_formed(await browser.get(path), path)
    changed = spoilt | {"cmd_argv": ["/bin/other"]}
    for path in (CHANGE, NEW):
        await browser.get(CHANGE)
        texts = fields(changed, note=HOSTILE) | RULES | {"profile": "nginx", "serial": "<b>\"'"}
        for do in ("preview", "edit", "store", "start", HOSTILE):
            reply = await browser.post(path, do=do, csrf=csrf_of(await browser.get("/fleet")), **texts)
            well_formed(reply, f"{path} {do}")
        for name in texts:
            wrong = texts | {"serial": "", name: HOSTILE}
            well_formed(
                await browser.post(path, do="preview", csrf=csrf_of(await browser.get("/fleet")), **wrong), name
            )


async def test_any_text_in_a_query_is_answered(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    for name in ("version", "after", "state", "new", "profile", "certificates", "done"):
        for value in ("%00", "%ff", "'", "%22%3E%3Cb%3E", "-1", "9" * 30, "%F0%9F%94%A5", "a" * 5000, "nginx", "..%2F"):
            for path in (LIST, f"{LIST}/nginx", f"{LIST}/nginx/export.json", CHANGE, NEW):
                reply = await browser.get(f"{path}?{name}={value}")
                assert reply.status in (200, 303, 400, 404), (path, name, value)
                assert b"<b>" not in reply.body


async def test_a_profile_of_a_name_with_dots(world: World) -> None:
    await three(world)
    for name in ("a", "a.json", "new", "change"):
        await world.plane.profiles.put(1, name, ProfileChange(devices="web", installs=[ITEM | {"id": name}]))
    browser = await signed_in(world)
    for name in ("a", "a.json", "new", "change"):
        assert f"Profiles {name} version 1" in text_of(await browser.get(f"{LIST}/{name}"))
        assert json.loads((await browser.get(f"{LIST}/{name}/export.json")).body)["name"] == name


async def test_a_profile_whose_first_rollout_is_under_way(world: World) -> None:
    await three(world)
    change, rules = ProfileChange(devices="web", installs=[ITEM]), RolloutRules(waves=("1",))
    planned = await world.plane.rollouts.start(1, "nginx", change, rules, dry_run=True)
    assert planned["version"] == (await world.plane.rollouts.start(1, "nginx", change, rules))["version"] == 2
    shown = text_of(await (await signed_in(world)).get(f"{LIST}/nginx"))
    assert "Rollout 1 brings version 2" in shown and "Deleted" not in shown
