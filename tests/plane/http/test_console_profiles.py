"""The console's pages of profiles, and changes of a profile with their previews."""

from __future__ import annotations

import csv
import io
import json
import re
from html import unescape

import pytest
from console_visits import csrf_of, signed_in, text_of
from large_fleet import fill
from plane_world import World
from profile_visits import (
    CHANGE,
    ITEM,
    LIST,
    NEW,
    OTHER,
    RULES,
    entries,
    fields,
    of_page,
    preview,
    three,
    versions,
)

from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules

# --- pages ------------------------------------------------------------------------------------------------------------


async def test_profiles_are_listed_with_their_problems(world: World) -> None:
    browser = await signed_in(world)
    assert "No profile yet" in text_of(await browser.get(LIST))
    await three(world, ITEM)
    await world.plane.profiles.put(1, "db", ProfileChange(devices="db", installs=[]))
    db = world.plane.database
    await world.plane.work(db.run, "UPDATE install_configs SET problem = 'it has no tag env' WHERE device_id = 2")
    shown = text_of(await browser.get(LIST))
    assert "1 profile of 2 cannot be given to all of their devices" in shown and "all 2 with problems 1" in shown
    only = text_of(await browser.get(f"{LIST}?state=problems"))
    assert "nginx" in only and " db " not in only
    assert "No profile is like this" in text_of(await browser.get(f"{LIST}?state=rollout"))
    answer = (await world.operator("GET", "/apiv1/users/1/profiles")).data
    assert json.loads((await browser.get(f"{LIST}.json")).body) == answer, "one source"
    rows = list(csv.DictReader(io.StringIO((await browser.get(f"{LIST}.csv")).body.decode())))
    assert [row["name"] for row in rows] == ["nginx", "db"]


async def test_a_profile_shows_items_devices_versions_and_problems(world: World) -> None:
    await three(world, ITEM, {"id": "f", "type": "copy", "from": ["fullchain.pem"], "to": ["/tls/{cert.name}.pem"]})
    db = world.plane.database
    await world.plane.work(db.run, "UPDATE install_configs SET problem = 'it has no tag env' WHERE device_id = 2")
    browser = await signed_in(world)
    reply = await browser.get(f"{LIST}/nginx")
    shown = text_of(reply)
    for words in (
        "version 1, on 3 devices · first", "1 device cannot be given it", "device 2 : it has no tag env", "Items: 2",
        "reload exec /bin/true", "→ /tls/{cert.name}.pem", "Devices that have it: 3", "3 of 3 devices",
        "version 1 present", "cert-ctrl plane profile show nginx --json",
    ):  # fmt: skip
        assert words in shown, words
    assert b"tell-no-one" not in reply.body, "environment variables may be secrets"
    answer = (await world.operator("GET", "/apiv1/users/1/profiles/nginx")).data
    assert json.loads((await browser.get(f"{LIST}/nginx/export.json")).body) == answer
    missed = await browser.get(f"{LIST}/ngnix")
    assert missed.status == 404 and "did you mean nginx?" in text_of(missed)


async def test_an_earlier_version_is_shown_and_put_back(world: World) -> None:
    await three(world, ITEM)
    await world.plane.profiles.put(1, "nginx", ProfileChange(installs=[OTHER]))
    browser = await signed_in(world)
    shown = text_of(await browser.get(f"{LIST}/nginx?version=1"))
    assert (
        "Version 1, which is not the present one" in shown
        and "/bin/true" in shown
        and "Put this version back…" in shown
    )
    form = await browser.get(f"{CHANGE}?version=1")
    assert "/bin/true" in text_of(form) and b'value="back to version 1"' in form.body
    asked = await browser.post(CHANGE, do="preview", **fields(ITEM, note="back to version 1"))
    assert (await browser.post(CHANGE, do="store", **of_page(asked))).status == 303
    assert versions(world) == [3, 2, 1] and world.plane.profiles.show(1, "nginx")["installs"] == [ITEM]
    await world.plane.profiles.delete(1, "nginx")
    gone = text_of(await browser.get(f"{LIST}/nginx"))
    assert "Deleted" in gone and "version 3" in gone and "Change…" not in gone
    assert (await browser.get(f"{LIST}/nginx?version=9")).status == 404


async def test_devices_of_a_profile_have_pages(world: World) -> None:
    await fill(world.plane, 160)
    await world.plane.profiles.put(1, "all", ProfileChange(devices="*", installs=[ITEM]))
    browser, seen, path = await signed_in(world), set[str](), f"{LIST}/all"
    while path:
        reply = (await browser.get(path)).body.decode()
        seen |= set(re.findall(r'href="(/fleet/devices/\d+)"', reply))
        found = re.search(r'href="([^"]*)" class="button">Next page', reply)
        path = unescape(found[1]) if found else ""
    assert len(seen) == world.plane.profiles.devices(1, "all", 0, 1)["total"] > 100


# --- a new version ----------------------------------------------------------------------------------------------------


async def test_a_new_version_is_previewed_then_stored(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    asked = await preview(browser, CHANGE, **fields(OTHER, note="louder"))
    shown = text_of(asked)
    assert "Profile nginx would have version 2 on 3 devices; the config of 3 devices would change" in shown
    assert "3 devices web-1 , web-2 , web-3 ~ reload (cmd_argv)" in shown
    assert "cert-ctrl plane profile put nginx nginx.json --devices web --order 10 --note louder" in shown
    assert versions(world) == [1] and entries(world, "profile") == [], "asking changes nothing"
    done = await browser.post(CHANGE, do="store", **of_page(asked))
    assert done.headers["location"] == f"{LIST}/nginx?done=stored"
    assert "Stored" in text_of(await browser.get(done.headers["location"]))
    assert world.plane.profiles.show(1, "nginx")["installs"] == [OTHER]
    (entry,) = entries(world, "profile")
    assert (entry["action"], entry["via"]) == ("profile.put", "console, token laptop")
    assert entry["detail"] == {"devices": "web", "order": 10, "note": "louder"}
    assert [one["kind"] for one in entry["objects"]] == ["profile"]
    assert "tell-no-one" not in json.dumps(entry)


async def test_the_words_are_those_of_the_api(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    asked = of_page(await preview(browser, CHANGE, **fields(OTHER)))
    body = {"devices": "web", "order": 10, "installs": [OTHER]}
    path = "/apiv1/users/1/profiles/nginx"
    planned = (await world.operator("PUT", f"{path}?dry_run=1", body)).data
    assert planned["preview_id"] == asked["preview_id"], "one preview"
    stale = await world.operator("PUT", path, body | {"preview_id": "0" * 32})
    assert (stale.status, stale.key) == (409, "PREVIEW_STALE") and versions(world) == [1]
    assert (await world.operator("PUT", path, body | {"preview_id": planned["preview_id"]})).status == 200


async def test_the_api_starts_a_rollout_only_as_it_was_previewed(world: World) -> None:
    await three(world, ITEM)
    path, body = "/apiv1/users/1/rollouts", {"profile": "nginx", "installs": [OTHER], "waves": ["1"]}
    planned = (await world.operator("POST", f"{path}?dry_run=1", body)).data
    assert [(wave["devices"], wave["first"]) for wave in planned["waves"]] == [(1, ["web-1"]), (2, ["web-2", "web-3"])]
    seen = {"preview_id": planned["preview_id"]}
    for change in ({"installs": [OTHER | {"timeout_ms": 900}]}, {"waves": ["2"]}, {"devices": "*"}):
        stale = await world.operator("POST", path, body | seen | change)
        assert (stale.status, stale.key) == (409, "PREVIEW_STALE"), change
    assert world.plane.rollouts.show_all(1) == []
    assert (await world.operator("POST", path, body | seen)).status == 201
    again = await world.operator("POST", f"{path}?dry_run=1", body)
    assert (again.status, again.key) == (409, "ROLLOUT_OPEN"), "a dry run is refused as the start would be"


async def test_a_new_profile(world: World) -> None:
    await three(world)
    browser = await signed_in(world)
    sent = await browser.get(f"{LIST}?new=web.tls")
    assert sent.headers["location"] == "/fleet/profiles/web.tls/change"
    assert "New profile web.tls" in text_of(await browser.get(sent.headers["location"]))
    refused = await browser.get(f"{LIST}?new=Web/x")
    assert refused.status == 400 and "1 to 64 lower-case letters" in text_of(refused)
    asked = await browser.post(
        sent.headers["location"], csrf=csrf_of(await browser.get("/fleet")), do="preview", **fields(ITEM)
    )
    assert "would have version 1 on 3 devices" in text_of(asked)
    assert (await browser.post(sent.headers["location"], do="store", **of_page(asked))).status == 303
    assert "web.tls" in text_of(await browser.get(LIST))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"installs": "[{"}, "line 1, character 3: this is not JSON, expecting property name"),
        ({"installs": '[\r\n{"id" 1}]'}, "line 2, character 7: this is not JSON, expecting ':' delimiter"),
        ({"installs": ""}, "give the items as a JSON list"),
        ({"installs": "[" * 200 + "]" * 200}, "this is not plain JSON"),
        ({"installs": "[NaN]"}, "this is not plain JSON"),
        ({"installs": '"x"'}, "expected a list"),
        ({"installs": '{"devices": "web", "installs": []}'}, "give only the list that is its installs"),
        ({"installs": '[{"id": "a", "type": "exce", "cmd_argv": ["/x"]}]'}, "did you mean exec"),
        ({"installs": '[{"id": "a", "type": "exec", "cmd_argv": ["/x"], "timout_ms": 5}]'}, "did you mean timeout_ms"),
        ({"installs": '[{"id": "a", "type": "exec", "cmd_argv": ["{device.nam}"]}]'}, "did you mean {device.name}?"),
        ({"devices": "web && x"}, "write and"),
        ({"devices": "Web"}, "did you mean web?"),
        ({"devices": ""}, "give the devices"),
        ({"order": "10000"}, "order must be a whole number from 0 to 9999"),
    ],
)  # fmt: skip
async def test_a_mistake_is_named_and_the_form_keeps_what_was_typed(
    world: World, values: dict[str, str], says: str
) -> None:
    await three(world)
    browser = await signed_in(world)
    typed = fields(ITEM) | values
    for path, more in ((CHANGE, {}), (NEW, RULES | {"profile": "nginx"})):
        await browser.get(CHANGE)
        reply = await browser.post(path, do="preview", **typed, **more)
        assert reply.status == 400 and says in text_of(reply), text_of(reply)[:300]
        (name,) = values
        kept = re.search(r"<textarea[^>]*>\n(.*)</textarea>", reply.body.decode(), re.DOTALL)
        assert kept is not None and unescape(kept[1]) == typed["installs"]
        assert f'name="{name}"' in reply.body.decode()
    assert await world.plane.work(world.plane.profiles.show_all, 1) == []


async def test_a_version_that_does_not_fit_a_device_cannot_be_stored(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    bad = ITEM | {"cmd_argv": ["/bin/{device.tag.env}"]}
    for path, more, do in ((CHANGE, {}, "store"), (NEW, RULES | {"profile": "nginx"}, "start")):
        await browser.get(CHANGE)
        # two of three fit: a rollout would have something to do
        await world.plane.work(lambda: world.plane.devices.tags.change(1, [1, 2], add=["env=prod"]))
        asked = await browser.post(path, do="preview", **fields(bad), **more)
        shown = text_of(asked)
        assert asked.status == 200 and "1 device would get a config that is not valid" in shown
        assert "it has no tag env=" in shown and f'value="{do}"' not in asked.body.decode()
        refused = await browser.post(path, do=do, **of_page(asked))
        assert refused.status == 400 and "does not fit 1 device" in text_of(refused)
    assert versions(world) == [1]


async def test_the_way_back_is_the_version_that_devices_have(world: World) -> None:
    await three(world, ITEM)
    started = await world.plane.rollouts.start(1, "nginx", ProfileChange(installs=[OTHER]), RolloutRules())
    await world.plane.work(world.plane.rollouts.abort, 1, started["id"])
    shown = text_of(await preview(await signed_in(world), CHANGE, **fields(ITEM | {"timeout_ms": 900})))
    assert "would have version 3" in shown and "The way back: put version 1 back." in shown


async def test_fields_that_are_left_empty_stay_as_before(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    asked = await preview(browser, CHANGE, **(fields(OTHER) | {"devices": "", "order": ""}))
    assert "cert-ctrl plane profile put nginx nginx.json What changes" in text_of(asked)
    assert (await browser.post(CHANGE, do="store", **of_page(asked))).status == 303
    present = world.plane.profiles.history(1, "nginx")[0]
    assert (present["version"], present["devices"], present["order"]) == (2, "web", 10)
    new = f"{LIST}/other/change"
    await preview(browser, new, **(fields(OTHER | {"id": "other"}) | {"order": ""}))
    assert (await browser.post(new, do="store", **of_page(browser.page))).status == 303
    assert world.plane.profiles.show(1, "other")["order"] == 100


async def test_no_preview_of_what_a_rollout_would_refuse(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    await world.plane.rollouts.start(1, "nginx", ProfileChange(installs=[OTHER]), RolloutRules(waves=("1",)))
    reply = await preview(browser, CHANGE, **fields(OTHER | {"timeout_ms": 900}))
    assert reply.status == 409 and "Rollout 1 of this profile is running: abort it first" in text_of(reply)
    assert 'value="store"' not in reply.body.decode() and '"timeout_ms": 900' in text_of(reply), "the form is kept"


async def test_an_old_rollout_that_is_open_is_seen_behind_many_others(world: World) -> None:
    await three(world, ITEM)
    await world.plane.rollouts.start(1, "nginx", ProfileChange(installs=[OTHER]), RolloutRules(waves=("1",)))
    later = (
        "INSERT INTO rollouts (user_id, version, state, rules, note, created_at, updated_at)"
        " SELECT 1, 0, 'done', rules, 'due', created_at, updated_at FROM rollouts WHERE id = 1"
    )
    await world.plane.work(lambda: [world.plane.database.run(later) for _ in range(500)])
    browser = await signed_in(world)
    shown = text_of(await browser.get(f"{LIST}/nginx"))
    assert "Rollout 1 brings version 2" in shown and "Change…" not in shown
    assert "in a rollout 1" in text_of(await browser.get(LIST))
    assert "/fleet/rollouts/1" in (await browser.get("/fleet")).body.decode(), "as on the overview"


async def test_a_deletion_cannot_be_put_back(world: World) -> None:
    await three(world, ITEM)
    await world.plane.profiles.delete(1, "nginx")
    browser = await signed_in(world)
    gone = text_of(await browser.get(f"{LIST}/nginx?version=2"))
    assert "Deleted" in gone and "Change…" not in gone, "as without the version"
    await world.plane.profiles.put(1, "nginx", ProfileChange(devices="web", order=10, installs=[ITEM]))
    shown = text_of(await browser.get(f"{LIST}/nginx?version=2"))
    assert "Version 2, which is not the present one" in shown and "Put this version back" not in shown


async def test_nothing_to_change_is_said(world: World) -> None:
    await three(world, ITEM)
    reply = await preview(await signed_in(world), CHANGE, **fields(ITEM))
    assert reply.status == 400 and "already so: nothing would change" in text_of(reply)
