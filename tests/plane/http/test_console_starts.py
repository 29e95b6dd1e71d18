"""The console's form for rollouts: what it brings, its plan, and its start."""

from __future__ import annotations

import json
import re

import pytest
from console_visits import signed_in, text_of
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

from certctrl.plane.certificates.bulk import MAX_RENEWED

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
