"""The console's pages of profiles and its form for rollouts: what they show, previews that must hold, hostile forms."""

from __future__ import annotations

import csv
import io
import json
import re
from html import unescape
from typing import Any

import pytest
from console_visits import HOSTILE, Tags, csrf_of, signed_in, text_of
from large_fleet import fill
from page_browser import FORM, Browser
from plane_world import World

from certctrl.plane.access.roles import Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.certificates.bulk import MAX_RENEWED
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules

ITEM = {"id": "reload", "type": "exec", "cmd_argv": ["/bin/true"], "env": {"TOKEN": "tell-no-one"}}
OTHER = ITEM | {"cmd_argv": ["/bin/echo"]}
CHANGE, NEW, LIST = "/fleet/profiles/nginx/change", "/fleet/rollouts/new", "/fleet/profiles"
RULES = {"waves": "1, 50%", "canary": "", "max_failures": "0", "pause": "0s", "windows": "", "serial": ""}


def fields(*items: Any, **more: str) -> dict[str, str]:
    """Return the fields of a profile as a browser sends them, with its line ends."""
    text = json.dumps(list(items), indent=2).replace("\n", "\r\n")
    return {"devices": "web", "order": "10", "installs": text, "note": ""} | more


def of_page(reply: Any) -> dict[str, str]:
    """Return the hidden fields of a page's last form."""
    form = reply.body.decode().rpartition('<form method="post" action="/fleet')[2]
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)
    return {name: unescape(value) for name, value in found}


async def added(world: World, number: int) -> int:
    """Add a device, and return its id."""
    return (await world.device(f"{number:08x}-0000-4000-8000-000000000000", f"web-{number}")).id


async def three(world: World, *items: Any) -> None:
    """Add three devices with the tag web and, with items, the profile nginx for them."""
    ids = [await added(world, number) for number in (1, 2, 3)]
    await world.plane.work(lambda: world.plane.devices.tags.change(1, ids, add=["web"]))
    if items:
        change = ProfileChange(devices="web", order=10, installs=list(items), note="first")
        await world.plane.profiles.put(1, "nginx", change)


async def preview(browser: Browser, path: str, **values: str) -> Any:
    """Ask for a preview with a form of the page."""
    await browser.get(path)
    return await browser.post(path, do="preview", **values)


def versions(world: World) -> list[int]:
    """Return the versions of the profile nginx that are stored."""
    return [row["version"] for row in world.plane.profiles.history(1, "nginx")]


def entries(world: World, what: str) -> list[dict[str, Any]]:
    """Return the changes of alice in the audit log."""
    return world.plane.audit.page(Filter(who="alice", what=what), 0, 9)


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


# --- rollouts ---------------------------------------------------------------------------------------------------------


async def test_a_rollout_of_a_profile_is_previewed_then_started(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    form = await browser.get(f"{NEW}?profile=nginx")
    assert "Change profile nginx in waves" in text_of(form) and b'value="1, 10%"' in form.body
    rules = {
        "waves": "1, 50%",
        "max_failures": "1",
        "pause": "10m",
        "windows": "22:00-06:00",
        "canary": "",
        "serial": "db",
    }
    asked = await browser.post(NEW, do="preview", profile="nginx", **fields(OTHER, note="try"), **rules)
    shown = text_of(asked)
    assert "A rollout of profile nginx would have 2 waves of 1, 2 devices" in shown
    assert "2 rest 2 web-2, web-3 when wave 1 has proven it, 10m later" in shown
    assert "~ reload (cmd_argv)" in shown and "halts by itself when more than 1 device fails" in shown
    command = (
        "cert-ctrl plane rollout start nginx nginx.json --devices web --order 10 --note try --waves '1,50%'"
        " --max-failures 1 --pause 10m --serial db --window 22:00-06:00"
    )
    assert command in shown
    assert world.plane.rollouts.show_all(1) == [] and versions(world) == [1]
    done = await browser.post(NEW, do="start", **of_page(asked))
    assert done.headers["location"] == "/fleet/rollouts/1?done=started"
    assert "Started" in text_of(await browser.get(done.headers["location"]))
    row = world.plane.rollouts.show(1, 1)
    assert row["rules"] == {
        "waves": ["1", "50%"], "canary": "", "max_failures": 1, "pause_seconds": 600, "windows": ["22:00-06:00"], "serial": "db",
    }  # fmt: skip
    (entry,) = entries(world, "rollout.start")
    assert entry["via"] == "console, token laptop" and "tell-no-one" not in json.dumps(entry)
    assert {one["kind"] for one in entry["objects"]} == {"profile", "rollout"}
    again = await browser.post(NEW, do="start", **of_page(asked))
    assert again.status == 409 and "Rollout 1 of this profile is running: abort it first" in text_of(again)
    under_way = text_of(await browser.get(f"{LIST}/nginx"))
    assert "Rollout 1 brings version 2" in under_way and "Change…" not in under_way, "it would be refused"
    assert "in a rollout 1" in text_of(await browser.get(LIST))


async def test_a_preview_leads_to_waves_and_back_to_the_form(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    asked = await preview(browser, CHANGE, **fields(OTHER, note="try"))
    form = await browser.post(NEW, do="edit", **of_page(asked))
    shown = text_of(form)
    assert (
        form.status == 200 and "/bin/echo" in shown and b'value="1, 10%"' in form.body and b'value="try"' in form.body
    )
    back = await browser.post(CHANGE, do="edit", **of_page(asked))
    assert "/bin/echo" in text_of(back) and "Change profile nginx" in text_of(back)


async def test_renewals_in_waves(world: World) -> None:
    await three(world)
    issued = await world.plane.certificates.issue(1, ["a.example"], device_ids=[1, 2, 3])
    browser = await signed_in(world)
    page = await browser.get(f"/fleet/certificates/{issued['id']}")
    assert f'href="{NEW}?certificates={issued["id"]}"' in page.body.decode()
    form = await browser.get(f"{NEW}?certificates=a.example")
    assert "Renew 1 certificate in waves" in text_of(form)
    asked = await browser.post(NEW, do="preview", **of_page(form), **RULES, note="leak")
    shown = text_of(asked)
    assert "A rollout of the renewal of 1 certificate would have 2 waves of 1, 2 devices" in shown
    assert f"cert-ctrl plane renew {issued['id']} --rollout '1,50%' --reason leak" in shown
    done = await browser.post(NEW, do="start", **of_page(asked))
    assert done.headers["location"] == "/fleet/rollouts/1?done=started"
    assert world.plane.rollouts.show(1, 1)["kind"] == "renewal"
    (entry,) = entries(world, "rollout.start")
    assert {one["kind"] for one in entry["objects"]} == {"certificate", "rollout"} and entry["detail"]["note"] == "leak"
    again = await browser.post(NEW, do="start", **of_page(asked))
    assert again.status == 409 and "rollout 1" in text_of(again).lower()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"waves": ""}, "give the size of at least one"),
        ({"waves": "1, 0%"}, "is not the size of a wave"),
        ({"canary": "nobody"}, "No device of this rollout matches the canary"),
        ({"canary": "web && x"}, "write and"),
        ({"max_failures": "-1"}, "max_failures must be a whole number"),
        ({"pause": "10 minutes"}, "use 90s, 10m, 2h or 1d"),
        ({"windows": "22-6"}, "use HH:MM-HH:MM"),
        ({"serial": "a and b"}, "use one tag"),
    ],
)
async def test_a_mistake_in_the_rules_is_named(world: World, values: dict[str, str], says: str) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    await browser.get(f"{NEW}?profile=nginx")
    reply = await browser.post(NEW, do="preview", profile="nginx", **fields(OTHER), **(RULES | values))
    assert reply.status == 400 and says in text_of(reply), text_of(reply)[:300]
    (name,) = values
    marked = re.search(rf'<input id="{name}"[^>]*aria-invalid="true"', reply.body.decode())
    assert marked is not None, "the field is marked"


async def test_what_a_rollout_is_to_bring_is_asked(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    reply = await browser.get(NEW)
    assert "New rollout" in text_of(reply) and b'<option value="nginx">' in reply.body
    for _ in range(2):
        await world.plane.certificates.issue(1, ["twice.example"])
    for asked, status, says in (
        ("b.example", 404, "No such certificate: b.example"),
        ("*.example", 404, "No such certificate: *.example"),
        ("twice.example", 400, "use an id, such as 1, 2"),
        ("77", 404, "77"),
        (",".join(map(str, range(1, MAX_RENEWED + 2))), 400, f"Name up to {MAX_RENEWED} certificates"),
    ):
        refused = await browser.get(f"{NEW}?certificates={asked}")
        assert refused.status == status and says in text_of(refused), asked


async def test_a_certificate_that_is_gone_is_asked_for_again(world: World) -> None:
    await three(world, ITEM)
    browser = await signed_in(world)
    await browser.get(NEW)
    reply = await browser.post(NEW, do="preview", certificates="77", **RULES)
    assert reply.status == 404 and "No such certificate: 77" in text_of(reply)
    assert b'value="77"' in reply.body, "what was asked for is kept"


async def test_a_frozen_fleet_is_said(world: World) -> None:
    await three(world, ITEM)
    await world.plane.work(world.plane.rollouts.freeze, 1, "the fair")
    browser = await signed_in(world)
    await browser.get(f"{NEW}?profile=nginx")
    reply = await browser.post(NEW, do="preview", profile="nginx", **fields(OTHER), **RULES)
    assert "All rollouts are frozen" in text_of(reply) and "the fair" in text_of(reply)


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


def well_formed(reply: Any, path: str) -> None:
    """Check that tags are closed in order, and that nothing runs but the script of the console."""
    assert reply.status in (200, 400, 404, 409), (path, reply.status)
    checker = Tags()
    checker.feed(reply.body.decode())
    assert (checker.open, checker.scripts) == ([], 1), path
    assert b"alert(1)</script>" not in reply.body and b"<b>" not in reply.body, path


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
