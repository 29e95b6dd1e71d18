"""The console's pages of operators and tokens, unknown pages, and made-up sessions."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from console_visits import csrf_of, signed_in, text_of
from plane_world import Client, World

from certctrl.plane.access.roles import Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.settings import DAY


async def operator(world: World, name: str, role: Role = Role.OPERATOR, tokens: int = 1) -> list[str]:
    """Add an operator with tokens, and return their texts."""
    accounts = world.plane.access.accounts
    await world.plane.work(accounts.add, name, role)
    return [
        (await world.plane.work(accounts.create_token, name, f"t{number}", None, DAY))["token"]
        for number in range(tokens)
    ]


async def test_everybody_sees_operators_and_only_admins_change_them(world: World) -> None:
    (token,) = await operator(world, "bob@example.com")
    client = Client(world.app, token, "192.0.2.44")
    assert (await client("GET", "/apiv1/whoami")).status == 200
    viewer = await signed_in(world, Role.VIEWER)
    admin = await signed_in(world, Role.ADMIN, "root")
    for browser in (viewer, admin):
        reply = await browser.get("/fleet/operators")
        shown = text_of(reply)
        assert "The operator key is on" in shown
        assert "bob@example.com" in shown and "never" in shown
        tokens = text_of(await browser.get("/fleet/tokens"))
        assert "t0 token 1 bob@example.com operator all devices valid" in tokens and "from 192.0.2.44" in tokens
        may = browser is admin
        assert (b"Disable" in reply.body, "Withdraw" in tokens) == (may, may)
    csrf = csrf_of(await viewer.get("/fleet"))
    for path in (
        "/fleet/operators/root/confirm?do=disable", "/fleet/operators/root/token", "/fleet/tokens/1/confirm",
    ):  # fmt: skip
        reply = await viewer.get(path)
        assert reply.status == 403 and "This needs the role admin; alice has the role viewer" in text_of(reply), path
    for path in (
        "operators/root/disable", "operators/root/role", "operators/root/token", "tokens/1/revoke",
    ):  # fmt: skip
        reply = await viewer.post(f"/fleet/{path}", csrf=csrf, role="viewer", name="x", days="9")
        assert reply.status == 403 and "This needs the role admin" in text_of(reply), path
    actions = {one["action"] for one in world.plane.audit.page(Filter(), 0, 50)}
    assert actions == {"session.sign-in"}


async def test_an_operator_is_disabled_and_enabled(world: World) -> None:
    bob = await signed_in(world, name="bob+x@example.com")
    admin = await signed_in(world, Role.ADMIN, "root")
    quoted, home = "/fleet/operators/bob%2Bx%40example.com", "/fleet/operators/bob+x@example.com"
    assert f'href="{quoted}/confirm?do=disable"'.encode() in (await admin.get("/fleet/operators")).body
    asked = await admin.get(f"{home}/confirm?do=disable")
    assert "Disable bob+x@example.com?" in text_of(asked)
    assert "All requests with their 1 token are refused" in text_of(asked)
    done = await admin.post(f"{home}/disable")
    assert (done.status, done.headers["location"]) == (303, "/fleet/operators?done=operator-changed")
    assert "disabled" in text_of(await admin.get(done.headers["location"]))
    assert (await bob.get("/fleet")).status == 303, "the session has ended"
    (entry,) = world.plane.audit.page(Filter(what="operator.change"), 0, 9)
    assert (entry["who"], entry["via"]) == ("root", "console, token laptop")
    assert (await admin.post(f"{home}/enable")).status == 303
    assert (await world.plane.work(world.plane.access.accounts.show, "bob+x@example.com"))["status"] == "active"


async def test_a_role_is_changed_but_never_that_of_the_last_admin(world: World) -> None:
    await operator(world, "bob")
    admin = await signed_in(world, Role.ADMIN, "root")
    asked = await admin.get("/fleet/operators/bob/confirm?do=role")
    assert "Change the role of bob?" in text_of(asked)
    assert b'<option value="operator" selected>' in asked.body
    again = await admin.post("/fleet/operators/bob/role", role="")
    assert again.status == 400 and "Choose one of the roles." in text_of(again)
    again = await admin.post("/fleet/operators/bob/role", role="emperor")
    assert again.status == 400 and "'emperor' is not a role: use viewer, operator, admin" in text_of(again)
    assert (await admin.post("/fleet/operators/bob/role", role="viewer")).status == 303
    show = world.plane.access.accounts.show
    assert (await world.plane.work(show, "bob"))["role"] == "viewer"
    await world.plane.work(world.plane.access.accounts.turn_key_off)
    assert "This is your own account" in text_of(await admin.get("/fleet/operators/root/confirm?do=role"))
    for do in ("role", "disable"):
        reply = await admin.post(f"/fleet/operators/root/{do}", role="viewer")
        assert reply.status == 409 and "No admin could sign in any longer" in text_of(reply)
    assert (await world.plane.work(show, "root"))["role"] == "admin"


async def test_a_token_is_withdrawn(world: World) -> None:
    bob = await signed_in(world, name="bob")
    admin = await signed_in(world, Role.ADMIN, "root")
    asked = text_of(await admin.get("/fleet/tokens/1/confirm"))
    assert "Withdraw token 1, laptop of bob?" in asked and "There is no undo" in asked
    done = await admin.post("/fleet/tokens/1/revoke")
    assert (done.status, done.headers["location"]) == (303, "/fleet/tokens?operator=bob&done=withdrawn")
    shown = text_of(await admin.get(done.headers["location"]))
    assert "No token fits" in shown, "only current ones are listed"
    assert "revoked" in text_of(await admin.get("/fleet/tokens?operator=bob&status=revoked"))
    assert (await bob.get("/fleet")).status == 303
    (entry,) = world.plane.audit.page(Filter(what="token.revoke"), 0, 9)
    assert (entry["who"], entry["via"]) == ("root", "console, token laptop")
    own = text_of(await admin.get("/fleet/tokens/2/confirm"))
    assert "You have signed in with this token" in own


async def test_a_new_token_is_shown_once(world: World) -> None:
    await operator(world, "bob", tokens=0)
    admin = await signed_in(world, Role.ADMIN, "root")
    form = await admin.get("/fleet/operators/bob/token")
    assert b'<option value="admin"' not in form.body, "at most the role of the operator"
    made = await admin.post("/fleet/operators/bob/token", name="ci", days="30", role="viewer")
    assert (made.status, made.headers["cache-control"]) == (200, "no-store")
    found = re.search(rb"ot_[A-Za-z0-9_-]+", made.body)
    assert found is not None
    token = found[0].decode()
    who = (await Client(world.app, token)("GET", "/apiv1/whoami")).data
    assert (who["who"], who["role"], who["via"]) == ("bob", "viewer", "token ci")
    again = await admin.post("/fleet/operators/bob/token", name="ci", days="30", role="")
    assert again.status == 400 and "bob has a valid token ci already." in text_of(again)
    assert "ot_" not in again.body.decode()
    paths = (
        "tokens",
        "tokens?status=all",
        "tokens.json",
        "tokens.csv",
        "operators",
        "audit",
        "audit.json",
        "tokens/2/confirm",
    )
    for path in paths:
        assert token[:20] not in (await admin.get(f"/fleet/{path}")).body.decode(), path
    (entry,) = world.plane.audit.page(Filter(what="token.create"), 0, 9)
    assert entry["via"] == "console, token laptop" and token not in json.dumps(entry)
    for fields in ({"days": "0"}, {"days": "x"}, {"days": "367"}, {"name": ""}, {"role": "admin"}, {"role": "x"}):
        reply = await admin.post("/fleet/operators/bob/token", **{"name": "n", "days": "9", "role": ""} | fields)
        assert reply.status == 400 and b'role="alert"' in reply.body, fields
    assert len(await world.plane.work(world.plane.access.accounts.tokens, "bob")) == 1


@pytest.mark.parametrize("name", ["nobody", "bob\x00", "bob'--", "é", "b" * 5000])
async def test_an_operator_who_is_unknown(world: World, name: str) -> None:
    await operator(world, "bobby")
    admin = await signed_in(world, Role.ADMIN, "root")
    home = f"/fleet/operators/{name}"
    csrf = csrf_of(await admin.get("/fleet/operators"))
    for reply in (
        await admin.get(f"{home}/confirm?do=disable"),
        await admin.get(f"{home}/token"),
        await admin.post(f"{home}/disable", csrf=csrf),
        await admin.post(f"{home}/role", csrf=csrf, role="viewer"),
        await admin.post(f"{home}/token", csrf=csrf, name="x", days="9", role=""),
        await admin.post("/fleet/operators/bobby/delete", csrf=csrf),
        await admin.get("/fleet/operators/bobby/confirm?do=delete"),
        await admin.get("/fleet/tokens/99/confirm"),
        await admin.post("/fleet/tokens/99/revoke", csrf=csrf),
    ):
        assert reply.status == 404 and reply.headers["content-type"].startswith("text/html")
    assert world.plane.audit.page(Filter(what="operator"), 0, 9) == []


async def test_lists_have_pages_filters_and_files(world: World) -> None:
    for number in range(53):
        await operator(world, f"op-{number:02}", tokens=0)
    await operator(world, "many", tokens=55)
    browser = await signed_in(world)
    first = await browser.get("/fleet/operators")
    assert "55 operators" in text_of(first)
    assert b'href="/fleet/operators?after=op-47"' in first.body
    rest = text_of(await browser.get("/fleet/operators?after=op-47"))
    assert "op-48" in rest and "op-47" not in rest
    only = text_of(await browser.get("/fleet/operators?q=MAN"))
    assert "many" in only and "op-01" not in only
    assert "No operator has a name like this" in text_of(await browser.get("/fleet/operators?q=nobody"))
    listed = json.loads((await browser.get("/fleet/operators.json")).body)
    assert listed == (await world.operator("GET", "/apiv1/operators")).data
    assert next(row for row in listed if row["name"] == "alice")["last_sign_in_at"] is not None
    tokens = await browser.get("/fleet/tokens?operator=many")
    assert b"before_id=" in tokens.body and "50 tokens" in text_of(tokens)
    page = json.loads((await browser.get("/fleet/tokens.json?operator=many")).body)
    api = (await world.operator("GET", "/apiv1/operator-tokens?operator=many")).data
    assert page == api[::-1]
    table = list(csv.DictReader(io.StringIO((await browser.get("/fleet/tokens.csv")).body.decode())))
    assert len(table) == 56
    assert "did you mean valid?" in text_of(await browser.get("/fleet/tokens?status=vaild"))


# --- pages that do not exist, and sessions that never did -------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/fleet/", "/fleet/nothing", "/fleet/a/b/c/d", "/fleet/devices/1/resync", "/fleet/é<b>"]
)
async def test_an_unknown_page_is_a_page(world: World, path: str) -> None:
    stranger = await world.stranger("GET", path)
    assert (stranger.status, stranger.headers["location"].startswith("/device?next=")) == (303, True)
    browser = await signed_in(world)
    for reply in (await browser.get(path), await browser.post("/fleet/nothing")):
        assert reply.status == 404
        assert reply.headers["content-type"].startswith("text/html")
        assert "Not found There is no such page. Overview" in text_of(reply)
        assert b"<b>" not in reply.body


@pytest.mark.parametrize("session", ["x", "a" * 43, "a" * 59, "é" * 59, "a" * 5000])
async def test_a_made_up_session_reads_nothing(world: World, monkeypatch: pytest.MonkeyPatch, session: str) -> None:
    async def none(*_: Any) -> Any:
        raise AssertionError("the database was asked")

    for name in ("work", "work_long", "work_read"):
        monkeypatch.setattr(world.plane.database, name, none)
    cookie = f"__Host-certctrl-operator={session}".encode().decode("latin-1")
    for path in ("/fleet", "/fleet/devices.json", "/fleet/nothing"):
        reply = await world.stranger("GET", path, headers={"cookie": cookie})
        assert reply.status == 303, path
