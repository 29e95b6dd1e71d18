"""The page of a rollout in the console: failures that an operator accepts, what it says at the end, what it leads to."""

from __future__ import annotations

import re

from console_visits import rollout, signed_in, text_of
from large_fleet import fill
from plane_world import World

from certctrl.plane.rollouts.rollouts import RolloutRules


async def test_who_resumes_a_halted_rollout_has_seen_all_failures(world: World) -> None:
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
    assert "Nothing more is released. 1 device fails at present: read the reasons below." in shown
    assert "nginx says no" in text_of(await browser.get(f"/fleet/rollouts/{rollout_id}/confirm?do=resume"))
    refused = await browser.post(f"/fleet/rollouts/{rollout_id}/resume")
    assert refused.status == 400 and "tick that you have" in text_of(refused)
    assert world.plane.rollouts.show(1, rollout_id)["state"] == "halted"
    seen = re.search(r'name="seen" value="(\w+)"', refused.body.decode())
    assert seen is not None
    sql = "UPDATE rollout_devices SET state = 'failed' WHERE wave = 2"
    await world.plane.work(world.plane.database.run, sql)
    outdated = await browser.post(f"/fleet/rollouts/{rollout_id}/resume", read="yes", seen=seen[1])
    assert outdated.status == 400 and "Other devices have failed since" in text_of(outdated)
    assert world.plane.rollouts.show(1, rollout_id)["state"] == "halted"
    seen = re.search(r'name="seen" value="(\w+)"', outdated.body.decode())
    assert seen is not None
    assert (await browser.post(f"/fleet/rollouts/{rollout_id}/resume", read="yes", seen=seen[1])).status == 303
    assert world.plane.rollouts.show(1, rollout_id)["state"] == "running"


async def test_a_rollout_that_is_done_names_who_has_not_proven_it(world: World) -> None:
    await fill(world.plane, 160)
    rollout_id, db = await rollout(world, waves=("3",)), world.plane.database
    await world.plane.work(db.run, "UPDATE rollout_devices SET state = 'proven'")
    await world.plane.work(db.run, "UPDATE rollouts SET state = 'done', finished_at = created_at")
    browser = await signed_in(world)

    async def said() -> str:
        return text_of(await browser.get(f"/fleet/rollouts/{rollout_id}"))

    assert re.search(r"Done \d+ devices proved the change\. ", await said())
    states = "failed", "accepted", "skipped"
    for place, word in enumerate(states):
        one = "SELECT device_id FROM rollout_devices ORDER BY device_id LIMIT 1 OFFSET ?"
        sql = f"UPDATE rollout_devices SET state = ? WHERE device_id = ({one})"
        await world.plane.work(db.run, sql, word, place)
    end = "1 failed, which the rules allow, 1 failed and was accepted, 1 gets it when it is heard from."
    assert f"devices proved the change, {end}" in await said()
    assert re.search(r"Wave 1 settled 3 .* not all have proven it", await said())


async def test_the_page_of_a_renewal_leads_to_its_certificate(world: World) -> None:
    await fill(world.plane, 160)
    await world.plane.work(world.plane.renewal_rollouts.start, 1, [1], RolloutRules())
    browser = await signed_in(world)
    shown = await browser.get("/fleet/rollouts/1")
    assert "Renewal of certificate 1 (" in text_of(shown) and b'href="/fleet/certificates/1"' in shown.body
