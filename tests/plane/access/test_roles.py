"""Roles are enforced for every route; tokens and sessions end with what they depend on."""

from __future__ import annotations

from typing import Any

import pytest
from audit_cases import CASES, grant
from page_browser import Browser
from plane_world import Client, World

from certctrl.plane.access.accounts import MAX_SESSIONS
from certctrl.plane.access.key import set_setting
from certctrl.plane.access.marked import MarkedSecrets
from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.errors import DatabaseAwayError, ErrorResponse
from certctrl.plane.http.permissions import PERMISSIONS
from certctrl.plane.settings import DAY
from certctrl.plane.sign_in.provider import Person
from certctrl.plane.storage.keyring import OPERATOR_KEY_DIGEST, digest

OPERATORS, TOKENS, KEY = "/apiv1/operators", "/apiv1/operator-tokens", "/apiv1/plane/operator-key"
IDS = dict.fromkeys(
    ("uid", "did", "cid", "caid", "tid", "oid", "name", "operator", "ktid", "rid", "channel", "mid"), "1"
) | {
    "code": "ABCD-EFGH",
    "ktid": "9",
}


def test_roles_are_in_order() -> None:
    viewer, operator, admin = Role
    assert [one.lesser(other) for one in Role for other in Role] == [
        viewer, viewer, viewer, viewer, operator, operator, viewer, operator, admin,
    ]  # fmt: skip
    assert [one.includes(least) for one in Role for least in Role] == [
        True, False, False, True, True, False, True, True, True,
    ]  # fmt: skip


def test_a_refusal_names_the_role_that_is_needed() -> None:
    for via, shown in (("", ""), ("token ci", " by token ci")):
        with pytest.raises(ErrorResponse) as refused:
            Caller(who="alice", role=Role.VIEWER, via=via).require(Role.ADMIN)
        assert refused.value.what == f"This needs the role admin; alice has the role viewer{shown}"
        assert refused.value.params == {"role": "admin", "has": "viewer"}
    Caller.of_plane().require(Role.ADMIN)
    assert Caller.of_plane() == Caller(who="plane", role=Role.ADMIN)
    assert Caller.of_plane("rollout 7") == Caller(who="plane", role=Role.ADMIN, via="rollout 7")


async def add(world: World, name: str, role: str) -> None:
    assert (await world.operator("POST", OPERATORS, {"name": name, "role": role})).status == 201


async def token(world: World, of: str, **more: object) -> Client:
    """Return a client with a new token of an operator."""
    body = {"operator": of, "name": "ci", "expires_in": DAY} | more
    made = (await world.operator("POST", TOKENS, body)).data
    return Client(world.app, made["token"])


async def operator(world: World, role: str, name: str = "alice") -> Client:
    await add(world, name, role)
    return await token(world, name)


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
async def test_every_route_needs_its_role(world: World, role: str) -> None:
    caller = await operator(world, role)
    for (method, path), permission in PERMISSIONS.items():
        reply = await caller(method, path.format(**IDS), None if method == "GET" else {})
        if Role(role).includes(permission.role):
            assert reply.status not in (401, 403), (method, path, reply.body)
        else:
            assert (reply.status, reply.key) == (403, "ROLE_REQUIRED"), (method, path)
            params = reply.json["error"]["params"]
            assert params == {"role": str(permission.role), "has": role}
            assert reply.what == f"This needs the role {permission.role}; alice has the role {role} by token ci"
    assert role != "viewer" or world.plane.audit.page(Filter(who="alice"), 0, 9) == []


async def test_a_viewer_lists_issuers_without_checking_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    async def check(name: str) -> dict[str, object]:
        checked.append(name)
        return {"name": name, "ok": True, "facts": {}}

    monkeypatch.setattr(world.plane.issuers, "check", check)
    caller = await operator(world, "viewer")
    (row,) = (await caller("GET", "/apiv1/issuers?check=1")).data
    assert "ok" not in row and checked == []
    await world.operator("GET", "/apiv1/issuers?check=1")
    assert checked == ["builtin"]


async def test_a_change_by_a_token_names_its_operator(world: World) -> None:
    caller = await operator(world, "admin")
    assert (await caller("POST", "/apiv1/users", {"name": "web team"})).status == 201
    (entry,) = world.plane.audit.page(Filter(who="alice"), 0, 9)
    assert (entry["via"], entry["action"], entry["address"]) == ("token ci", "user.add", "192.0.2.7")
    assert (await caller("GET", "/apiv1/whoami")).data == {
        "who": "alice", "role": "admin", "via": "token ci", "address": "192.0.2.7", "tags": [], "dry_run": True,
        "dry_run_paths": True,
    }  # fmt: skip


async def test_shared_routes_take_tokens(world: World) -> None:
    caller, viewer = await operator(world, "operator"), await operator(world, "viewer", "bob")
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    issues = f"/apiv1/users/1/certificates/{row['id']}/issues"
    assert (await viewer("GET", f"{device.home}/install-config")).status == 200
    assert (await viewer("POST", issues, {"action": "renew"})).key == "ROLE_REQUIRED"
    assert (await caller("POST", issues, {"action": "renew"})).status == 202
    assert (await device("POST", issues, {"action": "renew"})).status == 202
    assert (await caller("POST", "/auth/device", verify(await grant(world)))).status == 200
    assert (await viewer("POST", "/auth/device", verify(await grant(world)))).key == "ROLE_REQUIRED"


def verify(code: str) -> dict[str, Any]:
    return {"action": "device_verify", "user_code": code, "approve": True}


async def test_tokens_end(world: World) -> None:
    caller = await operator(world, "admin")
    assert (await caller("GET", "/apiv1/users")).status == 200
    (listed,) = (await world.operator("GET", TOKENS)).data
    assert (listed["status"], listed["last_address"]) == ("valid", "192.0.2.7") and "token" not in listed
    world.clock.advance(DAY)
    refused = await caller("GET", "/apiv1/users")
    assert (refused.status, refused.key) == (401, "OPERATOR_TOKEN_EXPIRED")
    assert "expired at 2026-09-22T14:13:20Z" in refused.what
    assert world.plane.access.was_accepted(caller.token) is False
    other = await token(world, "alice", name="other")
    (_, listed) = (await world.operator("GET", TOKENS)).data
    for _ in range(2):
        assert (await world.operator("DELETE", f"{TOKENS}/{listed['id']}")).data["status"] == "revoked"
    assert (await other("GET", "/apiv1/users")).key == "OPERATOR_TOKEN_REVOKED"
    world.stranger.token = "ot_" + "x" * 43
    assert (await world.stranger("GET", "/apiv1/users")).key == "INVALID_TOKEN"
    world.clock.advance(200 * DAY)
    await world.plane.work(world.plane.operators.delete_expired)
    assert (await world.operator("GET", TOKENS)).data == []


async def test_a_token_never_has_more_than_its_operator(world: World) -> None:
    caller = await operator(world, "admin")
    lesser = await token(world, "alice", name="reader", role="viewer")
    explicit = await token(world, "alice", name="explicit", role="admin")
    assert (await explicit("POST", "/apiv1/users", {"name": "y"})).status == 201
    assert (await lesser("POST", "/apiv1/users", {"name": "x"})).key == "ROLE_REQUIRED"
    assert (await world.operator("PATCH", f"{OPERATORS}/alice", {"role": "viewer"})).data["role"] == "viewer"
    for each in (caller, explicit):
        assert (await each("POST", "/apiv1/users", {"name": "x"})).key == "ROLE_REQUIRED"
    refused = await world.operator(
        "POST", TOKENS, {"operator": "alice", "name": "new", "expires_in": DAY, "role": "admin"}
    )
    assert (refused.status, refused.what) == (
        400, "A token has at most the role of its operator: alice is viewer",
    )  # fmt: skip


async def test_disabled_operators_lose_tokens_and_sessions_immediately(world: World) -> None:
    caller, browser = await operator(world, "operator"), Browser(world.stranger)
    assert (await browser.sign_in(caller.token)).status == 303
    assert b"Approve a device" in (await browser.get("/device")).body
    assert (await world.operator("PATCH", f"{OPERATORS}/alice", {"disabled": True})).data["status"] == "disabled"
    refused = await caller("GET", "/apiv1/users")
    assert (refused.status, refused.key) == (401, "OPERATOR_DISABLED")
    assert b"Sign in" in (await browser.get("/device")).body
    assert (await browser.sign_in(caller.token)).status == 403
    await world.operator("PATCH", f"{OPERATORS}/alice", {"disabled": False})
    assert (await caller("GET", "/apiv1/users")).status == 200
    assert b"Sign in" in (await browser.get("/device")).body, "the session does not come back"
    await browser.sign_in(caller.token)
    assert (await world.operator("DELETE", f"{OPERATORS}/alice")).status == 204
    assert (await caller("GET", "/apiv1/users")).status == 401
    assert b"Sign in" in (await browser.get("/device")).body
    await add(world, "alice", "admin")
    assert (await caller("GET", "/apiv1/users")).status == 401, "another operator of the same name"


async def test_the_approval_page_needs_the_role_operator(world: World) -> None:
    viewer, code = await operator(world, "viewer"), await grant(world)
    browser = Browser(world.stranger)
    await browser.sign_in(viewer.token)
    await browser.get(f"/device?user_code={code}")
    refused = await browser.post("/device/decide", user_code=code, decision="approve")
    assert refused.status == 403 and b"This needs the role operator; alice has the role viewer" in refused.body
    await world.operator("PATCH", f"{OPERATORS}/alice", {"role": "operator"})
    await browser.get(f"/device?user_code={code}")
    assert (await browser.post("/device/decide", user_code=code, decision="approve")).status == 200
    (entry, *_) = world.plane.audit.page(Filter(who="alice"), 0, 9)
    assert (entry["action"], entry["via"]) == ("grant.decide", "page, token ci")


async def test_a_session_ends_with_its_token(world: World) -> None:
    caller, browser = await operator(world, "admin"), Browser(world.stranger)
    await browser.sign_in(caller.token)
    (listed,) = (await world.operator("GET", TOKENS)).data
    await world.operator("DELETE", f"{TOKENS}/{listed['id']}")
    assert b"Sign in" in (await browser.get("/device")).body


# --- the operator key -------------------------------------------------------------------------------------------------


async def test_the_key_is_turned_off_only_if_an_admin_is_left(world: World) -> None:
    await operator(world, "operator")
    refused = await world.operator("DELETE", KEY)
    assert (refused.status, refused.key) == (409, "NO_ADMIN_LEFT")
    assert (await world.operator("GET", KEY)).data == {"state": "on"}
    await add(world, "bob", "admin")
    assert (await world.operator("DELETE", KEY)).key == "NO_ADMIN_LEFT", "without a token"
    await token(world, "bob", role="viewer")
    assert (await world.operator("DELETE", KEY)).key == "NO_ADMIN_LEFT", "with a token of a viewer"
    admin, browser = await token(world, "bob", name="admin"), Browser(world.stranger)
    await browser.sign_in(world.plane.operator_key)
    assert (await world.operator("DELETE", KEY)).status == 200
    assert (await world.operator("GET", "/apiv1/users")).key == "OPERATOR_KEY_OFF"
    assert b"Sign in" in (await browser.get("/device")).body
    refused = await browser.sign_in(world.plane.operator_key)
    assert refused.status == 403 and b"The operator key is turned off" in refused.body
    assert (await admin("GET", KEY)).data == {"state": "off"}
    (last,) = [row for row in (await admin("GET", f"{TOKENS}?operator=bob")).data if row["role"] == "admin"]
    for method, path, body in (
        ("DELETE", f"{TOKENS}/{last['id']}", None), ("DELETE", f"{OPERATORS}/bob", None),
        ("PATCH", f"{OPERATORS}/bob", {"role": "operator"}), ("PATCH", f"{OPERATORS}/bob", {"disabled": True}),
    ):  # fmt: skip
        assert (await admin(method, path, body)).key == "NO_ADMIN_LEFT", (method, path)
    assert (await admin("GET", f"{OPERATORS}")).status == 200


async def test_the_key_is_known_while_the_database_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await operator(world, "admin")

    async def away(*_: object) -> object:
        raise DatabaseAwayError("the server does not answer")

    monkeypatch.setattr(world.plane.database, "work_read", away)
    assert (await world.operator("GET", "/apiv1/plane/status")).status == 200
    assert (await caller("GET", "/apiv1/plane/status")).status == 503
    reply = await world.operator("POST", "/apiv1/users", {"name": "web team"})
    assert reply.status == 503, "the database may have answered again, and know another key"
    assert (await world.operator("GET", "/apiv1/users")).status == 503


async def test_a_replaced_key_is_refused_while_the_database_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.plane.work(set_setting, world.plane.database, OPERATOR_KEY_DIGEST, digest("ok_new"))
    assert (await world.operator("GET", "/apiv1/plane/status")).status == 401

    async def away(*_: object) -> object:
        raise DatabaseAwayError("the server does not answer")

    monkeypatch.setattr(world.plane.database, "work_read", away)
    assert (await world.operator("GET", "/apiv1/plane/status")).status == 503


async def test_overload_does_not_lock_operators_with_tokens_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await operator(world, "viewer")
    monkeypatch.setattr(world.plane.database, "backlog", lambda: 3.5)
    assert (await caller("GET", "/apiv1/users")).status == 503, "its token was not used before"
    monkeypatch.undo()
    assert (await caller("GET", "/apiv1/users")).status == 200
    monkeypatch.setattr(world.plane.database, "backlog", lambda: 3.5)
    assert (await caller("GET", "/apiv1/users")).status == 200


async def test_unknown_tokens_of_an_address_hardly_reach_the_database(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, new = await operator(world, "viewer"), await operator(world, "viewer", "bob")
    assert (await known("GET", "/apiv1/users")).status == 200
    reads, work_read = [], world.plane.database.work_read

    async def counted(*args: Any) -> Any:
        reads.append(args)
        return await work_read(*args)

    monkeypatch.setattr(world.plane.database, "work_read", counted)
    for number in range(300):
        reply = await Client(world.app, f"o{'tk'[number % 2]}_{number}")("GET", "/apiv1/users")
        assert reply.status == (401 if number < 100 else 429), number
    assert len(reads) == 100
    assert (await known("GET", "/apiv1/users")).status == 200, "it has been accepted before"
    assert (await world.operator("GET", "/apiv1/users")).status == 200
    assert (await new("GET", "/apiv1/users")).status == 200, "guesses from the same address do not hold it up"
    world.clock.steady += 0.11
    assert (await Client(world.app, "ot_x")("GET", "/apiv1/users")).status == 401


async def test_a_token_of_an_earlier_release_waits_for_the_guesses_of_its_address(world: World) -> None:
    caller = await operator(world, "viewer")
    caller.token = f"ot_{'a' * 43}"
    await world.plane.work(world.plane.database.run, "UPDATE operator_tokens SET token_hash = ?", digest(caller.token))
    for number in range(100):
        await Client(world.app, f"ot_{number}")("GET", "/apiv1/users")
    assert (await caller("GET", "/apiv1/users")).status == 429
    caller.address = "192.0.2.8"
    assert (await caller("GET", "/apiv1/users")).status == 200
    caller.address = "192.0.2.7"
    assert (await caller("GET", "/apiv1/users")).status == 200, "it is known now"


async def test_a_revoked_token_reads_the_database_no_more_often_than_a_guess(world: World) -> None:
    caller, other = await operator(world, "viewer"), await operator(world, "viewer", "bob")
    await world.plane.work(world.plane.access.accounts.revoke_token, 1)
    found = [(await caller("GET", "/apiv1/users")).status for _ in range(110)]
    assert found == [401] * 100 + [429] * 10
    assert (await other("GET", "/apiv1/users")).status == 200


@pytest.mark.parametrize("change", ["", "x", "prefix", "random", "check", "cut", "long", "é"])
def test_a_checksum_is_right_only_for_what_was_made_with_the_key(change: str) -> None:
    marks = MarkedSecrets(b"k" * 32)
    text = marks.new("ot_")
    assert marks.is_own(text) and marks.is_own(marks.new()) and text != marks.new("ot_")
    flipped = {True: "A", False: "B"}
    bad = {
        "prefix": f"os_{text[3:]}",
        "random": text[:10] + flipped[text[10] != "A"] + text[11:],
        "check": text[:-1] + flipped[text[-1] != "A"],
        "cut": text[:-1],
        "long": f"{text}{'A' * 20}",
        "é": f"{text[:-1]}é",
    }.get(change, change)
    assert not marks.is_own(bad)
    assert not MarkedSecrets(b"l" * 32).is_own(text)


async def test_the_tokens_that_were_used_last_are_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.access.access._REMEMBERED", 2)
    one, two, three = [await operator(world, "viewer", name) for name in ("alice", "bob", "carol")]
    for caller in (one, two, one, one, three):
        await caller("GET", "/apiv1/users")
    assert [world.plane.access.was_accepted(caller.token) for caller in (one, two, three)] == [True, False, True]


@pytest.mark.parametrize("kind", ["key", "token", "provider"])
async def test_a_new_session_beyond_the_limit_ends_the_oldest(world: World, kind: str) -> None:
    operators, sessions = world.plane.operators, []
    alice = await operator(world, "viewer")
    other = await operators.sign_in((await operator(world, "viewer", "bob")).token, "192.0.2.9")
    for _ in range(MAX_SESSIONS + 3):
        world.clock.wall += 1
        if kind == "provider":
            sessions.append(
                await operators.open_provider_session(Person(subject="sub-1", name="carol", role=Role.VIEWER))
            )
        else:
            secret = world.plane.operator_key if kind == "key" else alice.token
            sessions.append(await operators.sign_in(secret, "192.0.2.9"))
    found = [await world.plane.work(operators.is_signed_in, one) for one in sessions]
    assert found == [False] * 3 + [True] * MAX_SESSIONS
    assert await world.plane.work(operators.is_signed_in, other), "that of somebody else"


async def test_the_new_session_is_never_the_one_that_is_ended(world: World) -> None:
    """All sessions of a token that ends soon end with it."""
    await add(world, "alice", "viewer")
    last = await token(world, "alice", expires_in=60)
    for _ in range(3 * MAX_SESSIONS):
        session = await world.plane.operators.sign_in(last.token, "192.0.2.9")
        assert await world.plane.work(world.plane.operators.is_signed_in, session)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (OPERATORS, {"name": "Alice", "role": "admin"}, "name has up to 100 lower-case"),
        (OPERATORS, {"name": "plane", "role": "admin"}, "is not 'plane'"),
        (OPERATORS, {"name": "operator key", "role": "admin"}, "lower-case"),
        (OPERATORS, {"name": "bob", "role": "root"}, "role: expected viewer, operator or admin"),
        (OPERATORS, {"name": "alice", "role": "admin"}, "There is an operator alice already"),
        (TOKENS, {"operator": "alcie", "name": "x", "expires_in": 1}, "did you mean alice?"),
        (TOKENS, {"operator": "alice", "name": "ci", "expires_in": 60}, "has a valid token ci already"),
        (TOKENS, {"operator": "alice", "name": "", "expires_in": 60}, "A token needs a name"),
        (TOKENS, {"operator": "alice", "name": "x", "expires_in": 367 * DAY}, "at most 366 days"),
        (TOKENS, {"operator": "alice", "name": "x"}, "expires_in"),
    ],
)
async def test_refusals_name_the_value(world: World, path: str, body: object, said: str) -> None:
    await operator(world, "admin")
    refused = await world.operator("POST", path, body)
    assert 400 <= refused.status < 500 and said in refused.what, refused.what


def test_every_case_of_the_audit_log_is_in_the_table() -> None:
    assert set(CASES) <= set(PERMISSIONS)
