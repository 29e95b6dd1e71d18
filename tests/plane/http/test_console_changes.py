"""Changes from the console, by forms."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from typing import Any

import pytest
from console_visits import rollout, signed_in, text_of
from large_fleet import fill
from plane_world import World

from certctrl.plane.audit.log import Filter
from certctrl.plane.storage.database import CURRENT_ACT, without_act


async def test_pause_resume_and_abort(world: World) -> None:
    await fill(world.plane, 160)
    rollout_id = await rollout(world)
    browser = await signed_in(world)
    home = f"/fleet/rollouts/{rollout_id}"
    for do, state, buttons in (
        ("pause", "paused", "Resume…"),
        ("resume", "running", "Pause…"),
        ("abort", "aborted", ""),
    ):
        asked = await browser.get(f"{home}/confirm?do={do}")
        assert asked.status == 200 and f"cert-ctrl plane rollout {do} {rollout_id}" in text_of(asked)
        assert world.plane.rollouts.show(1, rollout_id)["state"] != state, "asking changes nothing"
        done = await browser.post(f"{home}/{do}")
        assert (done.status, world.plane.rollouts.show(1, rollout_id)["state"]) == (303, state)
        shown = text_of(await browser.get(done.headers["location"]))
        assert f"nginx v2 {state}" in shown and buttons in shown
        (entry, *_) = world.plane.audit.page(Filter(what=f"rollout.{do}"), 0, 9)
        assert (entry["who"], entry["via"], entry["objects"][0]["kind"]) == (
            "alice",
            "console, token laptop",
            "rollout",
        )
    assert (await browser.get(f"{home}/confirm?do=pause")).status == 409


async def test_an_abort_of_renewals_tells_of_no_way_back(world: World) -> None:
    await fill(world.plane, 160)
    await rollout(world)
    await world.plane.work(world.plane.database.run, "UPDATE rollouts SET profile_id = NULL")
    browser = await signed_in(world)
    shown = text_of(await browser.get("/fleet/rollouts/1/confirm?do=abort"))
    assert "profile put" not in shown and "plane rollout abort 1 --forward" in shown


async def test_a_halted_rollout_is_resumed_by_who_has_read_why(world: World) -> None:
    await fill(world.plane, 160)
    rollout_id = await rollout(world)

    def halt() -> None:
        db = world.plane.database
        db.run("UPDATE rollout_devices SET state = 'failed', detail = 'nginx says no' WHERE wave = 1")
        db.run("UPDATE rollouts SET state = 'halted', reason = '1 device failed, none may fail'")

    await world.plane.work(halt)
    browser = await signed_in(world)
    shown = text_of(await browser.get(f"/fleet/rollouts/{rollout_id}"))
    assert "Halted: 1 device failed, none may fail" in shown and "nginx says no" in shown
    assert "nginx says no" in text_of(await browser.get(f"/fleet/rollouts/{rollout_id}/confirm?do=resume"))
    refused = await browser.post(f"/fleet/rollouts/{rollout_id}/resume")
    assert refused.status == 400 and "tick that you have" in text_of(refused)
    assert world.plane.rollouts.show(1, rollout_id)["state"] == "halted"
    assert (await browser.post(f"/fleet/rollouts/{rollout_id}/resume", read="yes")).status == 303
    assert world.plane.rollouts.show(1, rollout_id)["state"] == "running"


async def test_a_failure_that_is_stored_while_the_form_is_answered_is_not_accepted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world.plane, 160)
    rollout_id = await rollout(world)
    db, change = world.plane.database, world.plane.work_long
    await world.plane.work(db.run, "UPDATE rollouts SET state = 'paused'")
    browser = await signed_in(world)
    await browser.get(f"/fleet/rollouts/{rollout_id}/confirm?do=resume")

    async def after_a_report(*args: Any, **kwargs: Any) -> Any:
        if CURRENT_ACT.get() is not None:
            sql = "UPDATE rollout_devices SET state = 'failed', detail = 'nginx says no' WHERE wave = 1"
            with without_act():
                await world.plane.work(db.run, sql)
        return await change(*args, **kwargs)

    monkeypatch.setattr(world.plane, "work_long", after_a_report)
    reply = await browser.post(f"/fleet/rollouts/{rollout_id}/resume")
    assert reply.status == 400 and "nginx says no" in text_of(reply)
    shown = world.plane.rollouts.show(1, rollout_id)
    assert (shown["state"], {one["state"] for one in shown["devices"]}) == ("paused", {"failed"})
    assert world.plane.audit.page(Filter(what="rollout.resume"), 0, 9) == []


async def test_a_rollout_page_lives_while_it_is_open(world: World) -> None:
    await fill(world.plane, 160)
    rollout_id = await rollout(world)
    browser = await signed_in(world)
    reply = await browser.get(f"/fleet/rollouts/{rollout_id}")
    assert b'data-live-seconds="5"' in reply.body and b'<noscript><meta http-equiv="refresh"' in reply.body
    await world.plane.work(world.plane.rollouts.abort, 1, rollout_id)
    assert b'data-live-seconds="0"' in (await browser.get(f"/fleet/rollouts/{rollout_id}")).body


async def test_try_again_shut_out_and_renew(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    browser = await signed_in(world)
    home = f"/fleet/devices/{device.id}"
    await browser.get(home)
    assert (await browser.post(f"{home}/resync")).headers["location"] == f"{home}?done=asked"
    assert any(one["type"] == "state.resync_required" for one in (await device.poll()).data["signals"])
    assert "Asked to try again" in text_of(await browser.get(f"{home}?done=asked"))
    await browser.get(f"/fleet/certificates/{row['id']}")
    assert (await browser.post(f"/fleet/certificates/{row['id']}/renew")).status == 303
    asked = await browser.get(f"{home}/confirm?do=revoke")
    assert "type its name: web-1" in text_of(asked)
    refused = await browser.post(f"{home}/revoke", name="web-2")
    assert refused.status == 400 and "'web-2' is not its name" in text_of(refused)
    assert (await device.poll()).status < 300
    assert (await browser.post(f"{home}/revoke", name="web-1", reason="stolen")).status == 303
    assert (await device.poll()).key == "DEVICE_REVOKED"
    done = [entry["action"] for entry in world.plane.audit.page(Filter(who="alice"), 0, 9)]
    assert done[:3] == ["device.revoke", "certificate.renew", "device.resync"]
    shown = text_of(await browser.get("/fleet/audit?who=alice&what=device"))
    assert "device.revoke" in shown and "web-1" in shown and "certificate.renew" not in shown
    (exported, *_) = csv.DictReader(io.StringIO((await browser.get("/fleet/audit.csv")).body.decode()))
    assert (exported["who"], exported["action"], exported["objects"]) == ("alice", "device.revoke", "device=web-1")


async def test_every_link_leads_somewhere(world: World) -> None:
    await fill(world.plane, 160)
    await rollout(world)
    browser, seen, waiting = await signed_in(world), set[str](), ["/fleet"]
    kinds: dict[str, int] = {}
    while waiting:
        path = waiting.pop()
        kind = re.sub(r"\d+", "N", path.partition("?")[0])
        if path in seen or kinds.get(kind, 0) >= 6:
            continue
        seen.add(path)
        kinds[kind] = kinds.get(kind, 0) + 1
        reply = await browser.get(path)
        assert reply.status == 200, path
        if reply.headers["content-type"].startswith("text/html"):
            waiting += [unescape(link) for link in re.findall(r'href="(/[^"#]*)', reply.body.decode())]
    assert len(kinds) > 20, kinds
