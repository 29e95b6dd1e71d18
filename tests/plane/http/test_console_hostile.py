"""The console with hostile texts: they are only text, and browsers are told to run nothing."""

from __future__ import annotations

import json
import re
from typing import Any

from console_visits import HOSTILE, PAGES, Tags, csrf_of, rollout, signed_in
from large_fleet import fill
from plane_world import World

from certctrl.plane.access.roles import Caller


async def hostile(world: World) -> None:
    """Fill all that others name with hostile texts."""
    await fill(world.plane, 160)
    rollout_id = await rollout(world)

    def spoil() -> None:
        db = world.plane.database
        db.run("UPDATE devices SET name = ?, app_version = ?, platform = ?, last_address = ?", *[HOSTILE] * 4)
        db.run("UPDATE devices SET device_public_id = device_public_id || ?", HOSTILE)
        db.run("UPDATE certificates SET domain_name = ?, sans = ?", HOSTILE, json.dumps([HOSTILE]))
        db.run("UPDATE deployments SET detail = ? WHERE failing = 1", HOSTILE)
        db.run("UPDATE outcomes SET detail = ?, type = ?, ref = ?", HOSTILE, HOSTILE, json.dumps({"cert_id": HOSTILE}))
        db.run("UPDATE rollouts SET note = ?, waits = ?, reason = ?", *[HOSTILE] * 3)
        db.run("UPDATE rollout_devices SET state = 'failed', detail = ? WHERE wave = 1", HOSTILE)

        values = json.dumps({HOSTILE: HOSTILE})
        db.run("UPDATE audit SET who = ?, via = ?, address = ?, detail = ?", HOSTILE, HOSTILE, HOSTILE, values)
        db.run("UPDATE audit_objects SET name = ?, before_json = ?, after_json = ?", HOSTILE, values, values)

    world.plane.audit.add(Caller.of_plane(), "device.tag", {"add": "web"})
    await world.plane.work(spoil)
    assert rollout_id == 1


async def test_hostile_texts_are_only_text(world: World) -> None:
    await hostile(world)
    browser, db = await signed_in(world), world.plane.database
    await world.plane.work(db.run, "UPDATE install_configs SET problem = ? WHERE device_id = 49", HOSTILE)
    await world.plane.work(db.run, "UPDATE devices SET revoke_reason = ? WHERE status = 'revoked'", HOSTILE)
    ids = [row["id"] for row in await world.plane.work(db.all, "SELECT id FROM devices ORDER BY id LIMIT 50")]
    for path in (*PAGES[:-1], *(f"/fleet/devices/{device_id}" for device_id in ids), "/fleet/certificates/4"):
        check(await browser.get(path), path)
    await world.plane.work(db.run, "UPDATE rollouts SET state = 'halted'")
    for path in ("/fleet", "/fleet/rollouts", "/fleet/rollouts/1", "/fleet/rollouts/1/confirm?do=resume"):
        check(await browser.get(path), path)
    check(
        await browser.post("/fleet/devices/1/revoke", name=HOSTILE, csrf=csrf_of(await browser.get("/fleet"))),
        "revoke",
        303,
    )
    check(
        await browser.post("/fleet/devices/2/revoke", name=f"{HOSTILE}!", csrf=csrf_of(await browser.get("/fleet"))),
        "no",
        400,
    )


def check(reply: Any, path: str, status: int = 200) -> None:
    """Check that a page is well-formed, and that its texts and its policy let nothing run."""
    assert reply.status == status, path
    if status == 303:
        return
    checker = Tags()
    checker.feed(reply.body.decode())
    assert (checker.open, checker.scripts) == ([], 1), path
    assert b"alert(1)</script>" not in reply.body, path
    policy = reply.headers["content-security-policy"]
    assert "script-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


async def test_hostile_texts_in_files(world: World) -> None:
    await hostile(world)
    await world.plane.work(world.plane.database.run, "UPDATE devices SET name = '=cmd|''/c calc''!A1' WHERE id = 1")
    browser = await signed_in(world)
    for kind in ("causes", "devices", "certificates", "rollouts", "rollouts/1", "audit"):
        reply = await browser.get(f"/fleet/{kind}.csv")
        assert (
            reply.headers["content-type"].startswith("text/csv")
            and "attachment" in reply.headers["content-disposition"]
        )
        assert not re.search(r"(^|,)\"?[=@]", reply.body.decode(), re.MULTILINE), kind
        assert json.loads((await browser.get(f"/fleet/{kind}.json")).body) is not None


async def test_queries_of_any_text_are_answered(world: World) -> None:
    await world.device()
    browser = await signed_in(world)
    for name in (
        "state",
        "reason",
        "tag",
        "q",
        "sort",
        "after",
        "user",
        "who",
        "what",
        "device",
        "before_id",
        "do",
        "done",
        "history",
    ):
        for value in ("%00", "%ff", "'", "%22%3E%3Cb%3E", "-1", "9" * 30, "%F0%9F%94%A5", "a" * 5000, "[" * 100):
            for path in (
                "/fleet",
                "/fleet/devices",
                "/fleet/certificates",
                "/fleet/devices/1",
                "/fleet/audit",
                "/fleet/rollouts",
            ):
                reply = await browser.get(f"{path}?{name}={value}")
                assert reply.status in (200, 400, 404), (path, name, value)
                assert b"<b>" not in reply.body


async def test_assets(world: World) -> None:
    for name, kind in (("console.css", "text/css"), ("console.js", "text/javascript")):
        reply = await world.stranger("GET", f"/fleet/{name}")
        assert reply.status == 200 and reply.headers["content-type"].startswith(kind)
        assert b"http://" not in reply.body and b"https://" not in reply.body, "nothing from elsewhere"
