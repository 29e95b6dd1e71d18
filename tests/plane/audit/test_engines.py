"""Operators, tokens, sessions and acts on each engine."""

from __future__ import annotations

import contextlib
import threading

import pytest
import trio
from engine_plane import plane_on

from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.acts import Act, acting, aside
from certctrl.plane.audit.log import Filter
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database

ALICE = Caller(who="alice", role=Role.ADMIN, address="192.0.2.7")


@pytest.fixture
def plane(database: Database) -> Plane:
    return plane_on(database)


async def entries(plane: Plane) -> list[dict[str, object]]:
    return await plane.work(plane.audit.page, Filter(), 0, 100)


async def test_an_act_is_recorded_with_its_units_of_work(plane: Plane) -> None:
    act = Act(plane.audit, ALICE, "user.add")
    with acting(act):
        await plane.work_long(plane.devices.users)
        with aside():
            await plane.work(plane.devices.add_user, "not hers")
        with pytest.raises(ErrorResponse):
            await plane.work(plane.devices.add_user, "not hers")
        assert await entries(plane) == []
        await plane.work(plane.devices.add_user, "first")
        await plane.work_long(plane.devices.add_user, "second")
    await plane.work(plane.devices.add_user, "later")
    (entry,) = await entries(plane)
    objects = entry["objects"]
    assert isinstance(objects, list)
    assert [(shown["kind"], shown["name"], shown["after"]) for shown in objects] == [
        ("user", name, {"name": name, "rollouts_frozen": "", "renewal_rollouts": ""}) for name in ("first", "second")
    ]  # fmt: skip


async def test_operators_tokens_and_sessions(plane: Plane) -> None:
    accounts = plane.access.accounts
    await plane.work(accounts.add, "alice", Role.ADMIN)
    made = await plane.work(accounts.create_token, "alice", "ci", Role.VIEWER, DAY)
    caller = await plane.access.authenticate(made["token"], "192.0.2.7")
    assert (caller.who, caller.role, caller.via) == ("alice", Role.VIEWER, "token ci")
    (listed,) = await plane.work(accounts.tokens, "alice")
    assert listed["last_address"] == "192.0.2.7" and listed["last_used_at"] is not None
    session = await plane.operators.sign_in(made["token"], "192.0.2.7")
    assert await plane.work(plane.operators.caller_of, session) == Caller(who="alice", role=Role.VIEWER, via="token ci")
    with pytest.raises(ErrorResponse, match="No admin"):
        await plane.work(accounts.turn_key_off)
    admins = await plane.work(accounts.create_token, "alice", "admin", None, DAY)
    await plane.work(accounts.turn_key_off)
    with pytest.raises(ErrorResponse, match="turned off"):
        await plane.access.authenticate(plane.operator_key, "")
    with pytest.raises(ErrorResponse, match="No admin"):
        await plane.work(accounts.delete, "alice")
    assert (await plane.access.authenticate(admins["token"], "")).role == Role.ADMIN
    await plane.work(accounts.revoke_token, made["id"])
    assert await plane.work(plane.operators.caller_of, session) is None
    (shown,) = await plane.work(accounts.show_all)
    assert (shown["status"], shown["tokens"]) == ("active", 1)
    await plane.work(plane.operators.delete_expired)


async def test_sessions_of_a_provider(plane: Plane) -> None:
    accounts = plane.access.accounts
    opened = await plane.work(accounts.open_provider_session, "https://id u1", "bob", Role.OPERATOR, "hash", 60.0)
    assert await plane.work(accounts.of_session, "hash") == opened
    again = await plane.work(accounts.open_provider_session, "https://id u1", "robert", Role.VIEWER, "other", 60.0)
    assert (again.who, again.role) == ("bob", Role.VIEWER), "the name stays"
    found = await plane.work(accounts.of_session, "hash")
    assert found is not None and found.role == Role.VIEWER
    await plane.work(accounts.end_sessions_of, "https://id u1")
    assert await plane.work(accounts.of_session, "hash") is None
    with pytest.raises(ErrorResponse, match="already"):
        await plane.work(accounts.open_provider_session, "https://id u2", "bob", Role.ADMIN, "third", 60.0)


async def test_two_admins_cannot_remove_each_other_at_once(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts, both = plane.access.accounts, threading.Barrier(2)
    for name in ("alice", "bob"):
        await plane.work(accounts.add, name, Role.ADMIN)
        await plane.work(accounts.create_token, name, "ci", None, DAY)
    await plane.work(accounts.turn_key_off)
    check, refused = accounts._require_admin, list[str]()

    def check_together() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # only one gets here, unless both changes run at once
        check()

    monkeypatch.setattr(accounts, "_require_admin", check_together)

    async def disable(name: str) -> None:
        try:
            await plane.work(accounts.change, name, None, True)
        except ErrorResponse as error:
            refused.append(error.key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disable, "alice")
        nursery.start_soon(disable, "bob")
    assert refused == ["NO_ADMIN_LEFT"]
