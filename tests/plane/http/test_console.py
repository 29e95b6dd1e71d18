"""The console: who is let in, what each page shows, the same facts as the API, changes by forms, hostile texts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from large_fleet import fill
from page_browser import Browser
from plane_world import World

from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.settings import DAY

HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e{csrf}"
ITEM = {"id": 1, "name": "nginx", "type": "exec", "cmd_argv": ["/bin/true"]}
PAGES = (
    "/fleet", "/fleet/devices", "/fleet/devices?state=stuck&q=web-*&tag=web&sort=ends", "/fleet/devices/1",
    "/fleet/certificates", "/fleet/certificates?state=valid&sort=name", "/fleet/certificates/1", "/fleet/rollouts",
    "/fleet/rollouts/1", "/fleet/rollouts/1/confirm?do=pause", "/fleet/rollouts/1/confirm?do=abort",
    "/fleet/devices/1/confirm?do=revoke", "/fleet/audit", "/fleet/devices?q=nothing-has-this", "/fleet/nothing",
)  # fmt: skip


async def signed_in(world: World, role: Role = Role.OPERATOR, name: str = "alice") -> Browser:
    """Return a browser in which an operator with this role has signed in."""
    accounts = world.plane.access.accounts
    await world.plane.work(accounts.add, name, role)
    token = (await world.plane.work(accounts.create_token, name, "laptop", None, DAY))["token"]
    browser = Browser(world.stranger)
    assert (await browser.sign_in(token)).status == 303
    return browser


async def rollout(world: World, **rules: Any) -> int:
    """Start a rollout over the devices with the tag web, and return its id."""
    plane = world.plane
    await plane.profiles.put(1, "nginx", ProfileChange(devices="web", order=10, installs=[ITEM], note=""))
    change = ProfileChange(devices="web", order=10, installs=[ITEM | {"cmd_argv": ["/bin/echo"]}], note="try")
    return int((await plane.rollouts.start(1, "nginx", change, RolloutRules(**rules)))["id"])


def text_of(reply: Any) -> str:
    """Return the text of a page's content, white space collapsed."""
    main = reply.body.decode().partition("<main")[2]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", main)).replace("\u202f", " ").split())


# --- who is let in ----------------------------------------------------------------------------------------------------


async def test_a_stranger_signs_in_and_comes_back(world: World) -> None:
    browser = Browser(world.stranger)
    sent = await browser.get("/fleet/devices?state=stale&q=a+b")
    assert sent.status == 303
    form = await browser.get(sent.headers["location"])
    assert b"the role viewer is enough" in form.body
    following = re.search(rb'name="next" value="([^"]*)"', form.body)
    assert following is not None
    fields: Any = {"key": world.plane.operator_key, "user_code": "", "next": unescape(following[1].decode())}
    back = await browser.post("/device/sign-in", **fields)
    assert (back.status, back.headers["location"]) == (303, "/fleet/devices?state=stale&q=a+b")
    assert (await browser.get("/fleet")).status == 200
    again = await browser.get("/device?next=/fleet/audit")
    assert (again.status, again.headers["location"]) == (303, "/fleet/audit"), "who is signed in goes there at once"


@pytest.mark.parametrize(
    "elsewhere",
    [
        "//evil.test",
        "https://evil.test/fleet",
        "/fleetevil",
        "/fleet\r\nX: y",
        "/fleet\\@evil.test",
        "/device",
        "/fleet/é",
        "/fleet?" + "a" * 600,
    ],
)
async def test_nobody_is_led_elsewhere_after_signing_in(world: World, elsewhere: str) -> None:
    browser = Browser(world.stranger)
    await browser.get("/device")
    back = await browser.post("/device/sign-in", key=world.plane.operator_key, user_code="", next=elsewhere)
    assert (back.status, back.headers["location"]) == (303, "/device")


async def test_a_link_from_another_site_leads_to_itself_once(world: World) -> None:
    reply = await world.stranger("GET", "/fleet/devices?state=stale", headers={"sec-fetch-site": "cross-site"})
    assert (reply.status, reply.headers["refresh"]) == (200, "0; url=/fleet/devices?state=stale")
    assert (await world.stranger("GET", "/fleet/devices", headers={"sec-fetch-site": "same-origin"})).status == 303


async def test_a_session_that_ends_leads_to_the_sign_in(world: World) -> None:
    browser = await signed_in(world)
    await world.plane.work(lambda: world.plane.access.accounts.change("alice", None, True))
    for path in ("/fleet", "/fleet/devices.json", "/fleet/rollouts/1"):
        assert (await browser.get(path)).headers["location"].startswith("/device?next=")
    reply = await browser.post("/fleet/devices/1/resync", csrf="x")
    assert (reply.status, reply.headers["location"]) == (303, "/device?next=/fleet")


async def test_a_viewer_sees_everything_and_changes_nothing(world: World) -> None:
    device = await world.device()
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    await world.plane.work(lambda: world.plane.devices.tags.change(1, [device.id], add=["web"]))
    await rollout(world)
    viewer = await signed_in(world, Role.VIEWER)
    for path in PAGES:
        reply = await viewer.get(path)
        expected = 403 if "confirm" in path else 404 if path.endswith("nothing") else 200
        assert reply.status == expected, path
        main = reply.body.partition(b"<main")[2]
        assert b'method="post"' not in main, path
    for path in ("devices/1/resync", "devices/1/revoke", "certificates/1/renew", "rollouts/1/pause"):
        reply = await viewer.post(f"/fleet/{path}", csrf=csrf_of(await viewer.get("/fleet")))
        assert reply.status == 403, path
        assert "This needs the role operator; alice has the role viewer by token laptop" in text_of(reply)
    assert world.plane.audit.page(Filter(who="alice", what="device"), 0, 9) == []


def csrf_of(reply: Any) -> str:
    found = re.search(rb'name="csrf" value="([0-9a-f]+)"', reply.body)
    assert found is not None
    return found[1].decode()


@pytest.mark.parametrize("how", ["another session's", "none", "another site"])
async def test_a_forged_form_changes_nothing(world: World, how: str) -> None:
    device = await world.device()
    browser, other = await signed_in(world), await signed_in(world, name="bob")
    foreign, own = csrf_of(await other.get("/fleet")), csrf_of(await browser.get("/fleet"))
    token = {"another session's": foreign, "none": "", "another site": own}[how]
    headers = {"sec-fetch-site": "cross-site" if how == "another site" else "same-origin"}
    reply = await browser.post(f"/fleet/devices/{device.id}/resync", csrf=token, headers=headers)
    assert reply.status == 403
    assert world.plane.audit.page(Filter(what="device.resync"), 0, 9) == []


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


# --- changes ----------------------------------------------------------------------------------------------------------


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


# --- hostile texts, and what browsers are told ------------------------------------------------------------------------


class Tags(HTMLParser):
    """Checks that tags are closed in order, and that nothing is inline that the policy forbids."""

    VOID = frozenset({"meta", "link", "input", "img", "path", "circle", "rect", "use", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        assert not [name for name in names if name == "style" or name.startswith("on")], (tag, attrs)
        self.scripts += tag == "script"
        assert tag != "script" or dict(attrs) == {"src": "/fleet/console.js", "defer": None}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


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
