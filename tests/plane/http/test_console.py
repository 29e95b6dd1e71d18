"""What the pages of the console show: the same facts as the API, lists, and what reading them costs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from console_visits import signed_in, text_of
from large_fleet import fill
from plane_world import World

from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.fleet.fleet import Query

# --- what pages show --------------------------------------------------------------------------------------------------


async def test_no_device_yet(world: World) -> None:
    browser = await signed_in(world)
    shown = text_of(await browser.get("/fleet"))
    assert "No device yet" in shown and "cert-ctrl" in shown
    assert "No device yet" in text_of(await browser.get("/fleet/devices"))
    assert "No certificate yet" in text_of(await browser.get("/fleet/certificates"))
    assert "No rollout yet" in text_of(await browser.get("/fleet/rollouts"))


async def test_nothing_needs_anyone(world: World) -> None:
    device = await world.device()
    await device.poll()
    shown = text_of(await (await signed_in(world)).get("/fleet"))
    assert shown.startswith('id="main" tabindex="-1"> Nothing needs you 1 device, none of them degraded or stale.')
    assert "Nothing has expired. Nothing ends in the next 30 days." in shown


async def test_the_overview_lists_causes(world: World) -> None:
    failing = await fill(world.plane, 160)
    browser = await signed_in(world)
    reply = await browser.get("/fleet")
    shown = text_of(reply)
    assert (
        "13 of 164 devices need you 4 causes. Nothing has expired. Left alone, the first to end is www.shop.example , in 9 d"
        in shown
    )
    assert f"{len(failing)} devices" in shown
    places = [
        shown.index(text)
        for text in (
            "still served legacy.shop.example",
            "stuck www.shop.example",
            "stuck api.shop.example",
            "stale the device",
        )
    ]
    assert places == sorted(places), "the worst first"
    answer = (await world.operator("GET", "/apiv1/users/1/fleet/causes")).data
    assert json.loads((await browser.get("/fleet/causes.json")).body) == answer, "one source"


async def test_a_failing_certificate_is_a_reason_to_get_up(world: World) -> None:
    device = await world.device()
    await device.poll()
    row = await world.plane.certificates.issue(1, ["pay.example"], device_ids=[device.id])
    await world.plane.work(
        world.plane.database.run,
        "INSERT INTO orders (cert_id, issuer, action, reason, state, refused_requests, created_at, updated_at, problem)"
        " VALUES (?, 'le', 'renew', '', 'ready', 0, 0, 0, 'CAA forbids it')",
        row["id"],
    )
    browser = await signed_in(world)
    shown = text_of(await browser.get("/fleet"))
    assert "1 certificate needs you" in shown and "Certificates that need you" in shown
    assert "CAA forbids it" in text_of(await browser.get(f"/fleet/certificates/{row['id']}"))


async def test_a_device_says_why_and_what_to_do(world: World) -> None:
    failing = await fill(world.plane, 160)
    shown = text_of(await (await signed_in(world)).get(f"/fleet/devices/{failing[0]}"))
    for text in (
        "web-fra-003 degraded since", "www.shop.example: a command of an item fails", "reload the service : failed",
        "see it served : not reached", "host not found in upstream", "which ends in 9 d", "5 other devices fail alike",
        "Try again now", "10.12.0.49", "rolled back",
    ):  # fmt: skip
        assert text in shown, text


async def test_a_device_whose_endpoints_serve_another_certificate_like_others(world: World) -> None:
    await fill(world.plane, 160)
    db, now = world.plane.database, world.plane.wall_now()
    healthy = world.plane.fleet.devices(1, Query(states=("healthy",)))["devices"][:3]

    def wrong() -> None:
        for row in healthy:
            db.run(
                "INSERT INTO endpoints SELECT device_id, object_id, 'web:443', serial_number, '0b', '', NULL,"
                " 'other-certificate', ?, ? FROM deployments WHERE device_id = ? AND kind = 'cert' AND failing = 0 LIMIT 1",
                *(now, now, row["id"]),
            )

    await world.plane.work(wrong)
    browser = await signed_in(world)
    shown = text_of(await browser.get(f"/fleet/devices/{healthy[0]['id']}"))
    assert "web:443 serves 0b" in shown and "2 other devices fail alike" in shown
    assert "looks again about once an hour" in shown and "retried" not in shown
    said = text_of(await browser.get("/fleet/certificates?state=not+served"))
    assert "all are or will be renewed" not in said


async def test_a_device_whose_certificate_has_ended_like_others(world: World) -> None:
    await fill(world.plane, 160)
    db = world.plane.database
    await world.plane.work(db.run, "UPDATE certificates SET not_after = ?", world.plane.wall_now() - 60)
    causes = world.plane.fleet.causes(1)["causes"]
    (cause,) = (one for one in causes if (one["state"], one["reason"]) == ("expired", "expired"))
    assert cause["devices"] > 2
    shown = text_of(await (await signed_in(world)).get(f"/fleet/devices/{cause['example']['device_id']}"))
    assert f"{cause['devices'] - 1} other devices fail alike" in shown
    found = world.plane.fleet.certificates(1, Query(reason="expired"))
    assert found["total"] >= cause["certificates"] > 0


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("stale", "is not heard from"),
        ("expected", "Not registered yet"),
        ("revoked", "Shut out"),
        ("healthy", "Certificates: 2"),
    ],
)
async def test_a_device_in_each_state(world: World, state: str, says: str) -> None:
    await fill(world.plane, 160)
    (row, *_) = world.plane.fleet.devices(1, Query(states=(state,)))["devices"]
    shown = text_of(await (await signed_in(world)).get(f"/fleet/devices/{row['id']}"))
    assert f"{row['name']} {state}" in shown and says in shown


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["devices", "certificates"])
@pytest.mark.parametrize(
    "asked", ["", "?state=stuck", "?q=shop&sort=name", "?tag=web,site%3Dfra", "?reason=command-failed&sort=ends"]
)
async def test_a_list_has_the_rows_of_the_api(world: World, kind: str, asked: str) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    path, pages, rows = f"/fleet/{kind}{asked}", 0, list[str]()
    while True:
        reply = await browser.get(path)
        rows += re.findall(
            rf'<th scope="row"[^>]*><a href="/fleet/{kind}/\d+" class="name">([^<]*)</a>', reply.body.decode()
        )
        pages += 1
        following = re.search(rb'<a href="([^"]*)" class="button">Next page</a>', reply.body)
        if following is None:
            break
        path = unescape(following[1].decode())
    query = asked.lstrip("?") + "&limit=500"
    answer = (await world.operator("GET", f"/apiv1/users/1/fleet/{kind}?{query}")).data
    assert rows == [row["name"] for row in answer[kind]] and pages == max(1, -(-len(rows) // 50))
    exported = (await browser.get(f"/fleet/{kind}.csv{asked}")).body.decode()
    assert [row["name"] for row in csv.DictReader(io.StringIO(exported))] == rows
    shown = json.loads((await browser.get(f"/fleet/{kind}.json{asked}")).body)
    assert shown[kind] == answer[kind][:50] and shown["total"] == len(rows)


async def test_a_page_begins_after_a_long_name(world: World) -> None:
    await fill(world.plane, 160)
    browser, db = await signed_in(world), world.plane.database
    await world.plane.work(db.run, "UPDATE devices SET name = ? || id", "ü" * 60)
    reply = await browser.get("/fleet/devices?sort=name")
    following = re.search(rb'<a href="([^"]*)" class="button">Next page</a>', reply.body)
    assert following is not None and len(following[1]) > 400
    reply = await browser.get(unescape(following[1].decode()))
    assert (reply.status, reply.body.count(b'<th scope="row"')) == (200, 50)


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("web-fra-00*", 10), ("WEB-FRA-001", 1), ("10.12.0.9", 11), ("legacy.shop", 1), ("100%", 0), ("web_fra", 0),
        ("*fra*", 40), ("svc-0*", 0), ("!", 0),
    ],
)  # fmt: skip
async def test_search(world: World, search: str, found: int) -> None:
    await fill(world.plane, 160)
    answer = world.plane.fleet.devices(1, Query(search=search))
    if search == "svc-0*":
        assert answer["total"] > 100, "by the names of certificates"
    else:
        assert answer["total"] == found


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/fleet/devices?state=degradd", 400, "did you mean degraded?"),
        ("/fleet/devices?colour=red", 400, "'colour' is not a filter"),
        ("/fleet/devices?after=zzz", 400, "after must be the next of a page"),
        ("/fleet/devices/x", 404, "There is no such page"),
        ("/fleet/devices/99", 404, "No such device"),
        ("/fleet/certificates/99", 404, "No such certificate"),
        ("/fleet/rollouts/99", 404, "No such rollout"),
        ("/fleet/rollouts/1/confirm?do=explode", 400, "use pause, resume or abort"),
        ("/fleet/audit?what=devise", 400, "did you mean device"),
        ("/fleet/audit?device=x", 400, "device must be a whole number"),
    ],
)
async def test_what_is_wrong_is_a_page_that_says_so(world: World, path: str, status: int, says: str) -> None:
    reply = await (await signed_in(world)).get(path)
    assert reply.status == status and reply.headers["content-type"].startswith("text/html")
    assert says in text_of(reply)


async def test_a_database_that_is_away_is_said_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await signed_in(world)

    async def away(*_: object) -> None:
        raise DatabaseAwayError("cannot connect")

    monkeypatch.setattr(world.plane, "work_long", away)
    reply = await browser.get("/fleet")
    assert reply.status == 503 and b"Hosts are not affected: they serve on." in reply.body


async def test_filters_are_shown_and_can_be_taken_off(world: World) -> None:
    await fill(world.plane, 160)
    reply = await (await signed_in(world)).get("/fleet/devices?reason=command-failed&tag=web&sort=name")
    shown = reply.body.decode()
    assert (
        "cause: a command of an item fails" in shown
        and 'href="/fleet/devices?reason=command-failed&amp;sort=name"' in shown
    )
    assert "cert-ctrl plane devices --reason command-failed --tag web --sort name --json" in shown


async def test_other_users_devices(world: World) -> None:
    other = (await world.operator("POST", "/apiv1/users", {"name": "other team"})).data["id"]
    facts = {"device_public_id": "f" * 36, "name": "theirs"}
    made = (await world.operator("POST", f"/apiv1/users/{other}/devices", facts)).data["id"]
    browser = await signed_in(world)
    assert "theirs" not in text_of(await browser.get("/fleet/devices"))
    assert (await browser.get(f"/fleet/devices/{made}")).status == 404
    assert "theirs" in text_of(await browser.get(f"/fleet/devices?user={other}"))
    assert "theirs" in text_of(await browser.get(f"/fleet/devices/{made}")), "the choice is remembered"
    browser.cookies["__Host-certctrl-user"] = "77"
    assert (await browser.get("/fleet")).status == 200


# --- cost -------------------------------------------------------------------------------------------------------------


async def test_the_page_of_a_device_reads_no_other_device(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(world.plane, 160)
    browser = await signed_in(world)
    db, scans = world.plane.database, list[str]()
    read: Callable[..., Any] = db.all

    def explained(sql: str, *parameters: Any) -> Any:
        plan = [str(row["detail"]) for row in read(f"EXPLAIN QUERY PLAN {sql}", *parameters)]
        scans.extend(
            line for line in plan if re.match(r"SCAN (d|a|x|o|c|devices|deployments|assignments|outcomes)\b", line)
        )
        return read(sql, *parameters)

    monkeypatch.setattr(db, "all", explained)
    assert (await browser.get("/fleet/devices/49")).status == 200
    allowed = [line for line in scans if "deployments_failing" in line]
    assert scans == allowed, "by keys and indexes"
