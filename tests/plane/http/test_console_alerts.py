"""The console's page of alerts: what is wrong now, channels, messages, and what operators do with dead ones."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any
from uuid import uuid4

import pytest
from console_visits import csrf_of, signed_in, text_of
from plane_world import World

from certctrl.plane.access.roles import Role
from certctrl.plane.alerts.channels import NewChannel
from certctrl.plane.alerts.texts import test_message as message_of_test
from certctrl.plane.audit.log import Filter
from certctrl.plane.health.problems import ProblemName

HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e{csrf}"
REASON = "ops-chat.example answered with 503"


async def channel(world: World, name: str = "ops") -> int:
    new = NewChannel(name=name, kind="slack", settings={}, secrets={"url": f"https://chat.example/{name}-secret"})
    await world.plane.work(world.plane.alerts.channels.put, new)
    return int((await world.plane.work(world.plane.alerts.channels.named, name)).id)


async def message(world: World, channel_id: int, state: str, title: str = "a title", problem: str = REASON) -> int:
    """Store a message in a state, and return its id."""
    body = message_of_test("ops", world.clock.wall) | {"title": title}

    def add() -> int:
        number = world.plane.alerts.outbox.add(channel_id, body)  # type: ignore[arg-type]
        sql = "UPDATE alert_messages SET state = ?, problem = ?, attempts = 30, ended_at = ? WHERE id = ?"
        ended_at = None if state == "due" else world.clock.wall
        world.plane.database.run(sql, state, "" if state == "sent" else problem, ended_at, number)
        return number

    return await world.plane.work(add)


def fields_of(reply: Any) -> dict[str, Any]:
    """Return the hidden fields of a page that asks, without that against forged requests."""
    found = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', reply.body.decode().partition("<main")[2])
    return {name: value for name, value in found if name != "csrf"}


async def test_it_says_what_is_wrong_now_and_how_messages_fare(world: World) -> None:
    browser = await signed_in(world)
    shown = text_of(await browser.get("/fleet/alerts"))
    assert "Nothing is wrong now No channel is set up, so no alert is sent." in shown
    assert "No channel yet: cert-ctrl plane alerts add" in shown and "No message yet." in shown
    ops = await channel(world)
    await channel(world, "mail")
    device = await world.device()
    await device.poll()
    world.clock.wall += 2 * 3600
    dead = await message(world, ops, "dead", "device silent: 500 (web-1, …)")
    await message(world, ops, "sent", "resolved: device silent")
    browser = await signed_in(world, name="bob")
    reply = await browser.get("/fleet/alerts")
    shown = text_of(reply)
    assert "1 problem now 1 message could not be delivered: send again or dismiss." in shown
    assert "device silent" in shown and "2 h" in shown
    assert b'href="/fleet/devices?state=stale"' in reply.body
    assert "ops slack" in shown and "mail slack" in shown
    assert f'href="/fleet/alerts/{dead}"'.encode() in reply.body
    assert REASON in shown
    assert b"secret" not in reply.body
    assert b'href="/fleet/alerts?state=dead&amp;channel=ops"' in reply.body


async def test_problems_of_the_plane_are_shown_without_a_channel(world: World) -> None:
    world.plane.problems.report(ProblemName.DISK_LOW, "/var/lib/plane has 1 % left")
    shown = text_of(await (await signed_in(world)).get("/fleet/alerts"))
    assert "1 problem now" in shown and "/var/lib/plane has 1 % left" in shown


async def test_critical_problems_come_first(world: World) -> None:
    devices = [await world.device(str(uuid4()), f"web-{number}") for number in range(3)]
    for device in devices:
        await device.poll()
    await world.plane.certificates.issue(1, ["gone.example"], device_ids=[devices[0].id])
    world.clock.wall += 400 * 86_400
    browser = await signed_in(world)
    rows = json.loads((await browser.get("/fleet/alerts/now.json")).body)
    severities = [row["severity"] for row in rows]
    assert severities == sorted(severities) and set(severities) == {"critical", "warning"}
    silent = next(row for row in rows if row["event"] == "device-silent")
    assert (silent["count"], silent["more"], len(silent["conditions"])) == (3, 0, 3)
    table = list(csv.DictReader(io.StringIO((await browser.get("/fleet/alerts/now.csv")).body.decode())))
    assert [row["group"] for row in table] == [row["group"] for row in rows]


async def test_a_dead_message_is_sent_again_or_dismissed(world: World) -> None:
    ops = await channel(world)
    first, second = await message(world, ops, "dead"), await message(world, ops, "dead")
    browser = await signed_in(world)
    outbox = world.plane.alerts.outbox
    page = await browser.get("/fleet/alerts?state=dead&channel=ops")
    csrf = csrf_of(page)
    reply = await browser.post(f"/fleet/alerts/{first}/dismiss", csrf=csrf, state="dead", channel="ops")
    assert (reply.status, reply.headers["location"]) == (303, "/fleet/alerts?state=dead&channel=ops&done=dismissed")
    shown = text_of(await browser.get(reply.headers["location"]))
    assert "Dismissed. It can still be sent again." in shown
    assert (await world.plane.work(outbox.counts)) == {"dismissed": 1, "dead": 1}
    count, oldest = await world.plane.work(outbox.failing)
    assert (count, oldest["id"]) == (1, second)
    reply = await browser.post(f"/fleet/alerts/{second}/resend", csrf=csrf, one="yes")
    assert reply.headers["location"] == f"/fleet/alerts/{second}?done=resent"
    assert "It is sent again" in text_of(await browser.get(reply.headers["location"]))
    assert (await world.plane.work(outbox.show, second))["state"] == "due"
    entries = world.plane.audit.page(Filter(what="alert-message"), 0, 9)
    assert [(one["action"], one["via"]) for one in entries] == [
        ("alert-message.resend", "console, token laptop"), ("alert-message.dismiss", "console, token laptop"),
    ]  # fmt: skip
    again = await browser.post(f"/fleet/alerts/{first}/dismiss", csrf=csrf)
    assert again.status == 303, "a repetition is harmless"
    assert len(world.plane.audit.page(Filter(what="alert-message"), 0, 9)) == 2
    reply = await browser.post(f"/fleet/alerts/{second}/dismiss", csrf=csrf)
    assert reply.status == 409 and "is still tried" in text_of(reply)


@pytest.mark.parametrize("do", ["resend", "dismiss"])
async def test_all_dead_messages_of_a_channel(world: World, do: str) -> None:
    ops, mail = await channel(world), await channel(world, "mail")
    dead = [await message(world, ops, "dead") for _ in range(22)]
    other = await message(world, mail, "dead")
    browser = await signed_in(world)
    page = await browser.get("/fleet/alerts?state=dead&channel=ops")
    assert f'href="/fleet/alerts/dead/confirm?do={do}&amp;channel=ops"'.encode() in page.body
    asked = await browser.get(f"/fleet/alerts/dead/confirm?do={do}&channel=ops")
    said = text_of(asked)
    assert "22 dead messages to ops" in said and "and 2 more" in said
    assert f"cert-ctrl plane alerts {do} --dead --channel ops" in said
    fields = fields_of(asked)
    assert (fields["channel"], fields["last"]) == ("ops", str(dead[-1]))
    await world.plane.work(world.plane.alerts.outbox.resend, dead[0])
    again = await browser.post(f"/fleet/alerts/dead/{do}", **fields)
    assert again.status == 409 and "Other messages are dead now: nothing was changed." in text_of(again)
    assert world.plane.audit.page(Filter(what="alert-message"), 0, 99) == []
    await message(world, ops, "dead")
    done = await browser.post(f"/fleet/alerts/dead/{do}", **fields_of(again))
    assert done.status == 303
    assert "still be sent again" in text_of(await browser.get(done.headers["location"])) or do == "resend"
    counts = await world.plane.work(world.plane.alerts.outbox.counts, "ops")
    assert counts == ({"due": 22, "dead": 1} if do == "resend" else {"due": 1, "dismissed": 21, "dead": 1})
    assert (await world.plane.work(world.plane.alerts.outbox.show, other))["state"] == "dead"
    entries = world.plane.audit.page(Filter(what=f"alert-message.{do}"), 0, 99)
    assert [one["objects"][0]["id"] for one in entries] == [str(number) for number in dead[:0:-1]]
    assert {one["via"] for one in entries} == {"console, token laptop"}


async def test_a_dismissed_message_that_an_earlier_plane_sends_again_is_due(world: World) -> None:
    ops = await channel(world)
    number, outbox = await message(world, ops, "dead"), world.plane.alerts.outbox
    await world.plane.work(outbox.dismiss, number)
    again = "UPDATE alert_messages SET state = ?, attempts = 3, ended_at = NULL WHERE id = ?"
    for state in ("due", "sent"):
        await world.plane.work(world.plane.database.run, again, state, number)
        assert (await world.plane.work(outbox.show, number))["state"] == state
        assert await world.plane.work(outbox.counts) == {state: 1}
        shown = await world.plane.work(world.plane.alerts.channels.show, "ops")
        assert (shown["due"], shown["dead"], shown["problem"]) == ((1, 0, REASON) if state == "due" else (0, 0, ""))


async def test_as_many_other_dead_messages_are_not_those_that_were_shown(world: World) -> None:
    ops = await channel(world)
    late, first, second = [await message(world, ops, state) for state in ("due", "dead", "dead")]
    browser = await signed_in(world)
    asked = await browser.get("/fleet/alerts/dead/confirm?do=dismiss&channel=ops")
    fields = fields_of(asked)
    outbox = world.plane.alerts.outbox
    await world.plane.work(outbox.resend, first)
    await world.plane.work(
        world.plane.database.run, "UPDATE alert_messages SET state = 'dead', ended_at = 1 WHERE id = ?", late
    )
    reply = await browser.post("/fleet/alerts/dead/dismiss", **fields)
    assert reply.status == 409 and "Other messages are dead now: nothing was changed." in text_of(reply)
    assert await world.plane.work(outbox.counts) == {"dead": 2, "due": 1}, (late, second)


async def test_dead_messages_need_a_role_and_a_known_change(world: World) -> None:
    await message(world, await channel(world), "dead")
    viewer, browser = await signed_in(world, Role.VIEWER), await signed_in(world, name="bob")
    assert (await viewer.get("/fleet/alerts/dead/confirm?do=dismiss")).status == 403
    csrf = csrf_of(await viewer.get("/fleet"))
    assert (await viewer.post("/fleet/alerts/dead/dismiss", csrf=csrf, last="1", set="x")).status == 403
    assert (await browser.get("/fleet/alerts/dead/confirm?do=delete")).status == 404
    assert (await browser.post("/fleet/alerts/dead/delete")).status == 404
    for fields in ({}, {"last": "x"}, {"last": "1", "set": ""}, {"last": "1", "set": "1", "channel": "opz"}):
        reply = await browser.post("/fleet/alerts/dead/dismiss", **fields)
        assert reply.status in (400, 404, 409), fields
    assert (await browser.post("/fleet/alerts/dead/dismiss", csrf="x", last="1", set="x")).status == 403
    assert await world.plane.work(world.plane.alerts.outbox.counts) == {"dead": 1}


async def test_a_viewer_sees_messages_and_changes_none(world: World) -> None:
    dead = await message(world, await channel(world), "dead")
    viewer = await signed_in(world, Role.VIEWER)
    for path in ("/fleet/alerts", "/fleet/alerts?state=dead", f"/fleet/alerts/{dead}"):
        reply = await viewer.get(path)
        assert reply.status == 200
        assert b'method="post"' not in reply.body.partition(b"<main")[2], path
    for do in ("resend", "dismiss"):
        reply = await viewer.post(f"/fleet/alerts/{dead}/{do}", csrf=csrf_of(await viewer.get("/fleet")))
        assert reply.status == 403 and "This needs the role operator; alice has the role viewer" in text_of(reply)
    browser = await signed_in(world, name="bob")
    reply = await browser.post(f"/fleet/alerts/{dead}/dismiss", csrf="x")
    assert reply.status == 403
    assert (await world.plane.work(world.plane.alerts.outbox.show, dead))["state"] == "dead"


async def test_pages_and_filters(world: World) -> None:
    ops, mail = await channel(world), await channel(world, "mail")
    for number in range(55):
        await message(world, ops, "dead" if number % 2 else "sent", f"message number {number}")
    await message(world, mail, "dead", "to mail")
    browser = await signed_in(world)
    first = await browser.get("/fleet/alerts?channel=ops")
    assert text_of(first).count("message number") == 50
    assert b'href="/fleet/alerts?channel=ops&amp;before_id=6"' in first.body
    second = await browser.get("/fleet/alerts?channel=ops&before_id=6")
    assert text_of(second).count("message number") == 5
    assert b'href="/fleet/alerts?state=sent&amp;channel=ops"' in second.body, "a tab begins at the first page"
    listed = json.loads((await browser.get("/fleet/alerts.json?state=dead&channel=ops")).body)
    api = (await world.operator("GET", "/apiv1/alert-messages?state=dead&channel=ops")).data
    assert listed == api and len(api) == 27
    table = list(csv.DictReader(io.StringIO((await browser.get("/fleet/alerts.csv?channel=mail")).body.decode())))
    assert [(row["title"], row["problem"]) for row in table] == [("to mail", REASON)]
    command = "cert-ctrl plane alerts outbox --channel ops --json"
    assert command in text_of(first)
    assert "No message fits" in text_of(await browser.get("/fleet/alerts?state=due"))


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/fleet/alerts?state=deed", 400, "did you mean dead?"),
        ("/fleet/alerts?channel=opz", 404, "There is no alert channel 'opz'"),
        ("/fleet/alerts?before_id=x", 400, "before_id"),
        ("/fleet/alerts/999", 404, "There is no alert message 999"),
        ("/fleet/alerts/x", 404, "There is no such page"),
        ("/fleet/alerts/1/dismiss", 404, "There is no such page"),
    ],
)
async def test_mistakes_are_pages(world: World, path: str, status: int, says: str) -> None:
    reply = await (await signed_in(world)).get(path)
    assert (reply.status, says in text_of(reply)) == (status, True), text_of(reply)
    assert b'href="/fleet">Overview' in reply.body or b">Overview</a>" in reply.body


async def test_hostile_texts_are_only_text(world: World) -> None:
    dead = await message(world, await channel(world), "dead", HOSTILE, HOSTILE)
    device: Any = await world.device()
    await device.poll()
    await world.plane.work(world.plane.database.run, "UPDATE devices SET name = ?", HOSTILE.replace("\x00", ""))
    world.clock.wall += 2 * 3600
    browser = await signed_in(world)
    for path in ("/fleet/alerts", "/fleet/alerts?state=dead", f"/fleet/alerts/{dead}"):
        body = (await browser.get(path)).body
        assert b"<script>alert" not in body and b"&lt;script&gt;" in body, path
        assert "\u202e" not in body.decode()
