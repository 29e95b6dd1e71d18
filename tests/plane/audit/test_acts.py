"""Every change by an operator has exactly one entry in the audit log; nothing else has one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from audit_cases import CASES, ELSEWHERE, ITEM, OTHER_CASES, PROFILE, SECRET, certificate, forget, grant
from made_chains import made, pki
from page_browser import Browser
from plane_world import World
from scripted_issuer import ScriptedKind, scripted
from starlette.routing import Router

from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.acts import Act, acting
from certctrl.plane.audit.log import Filter
from certctrl.plane.http.app import make_app
from certctrl.plane.http.permissions import PERMISSIONS, Permission, permission_of


@pytest.fixture(autouse=True)
def kind(world: World) -> Iterator[ScriptedKind]:
    with scripted(lambda: world.clock.wall) as kind:
        yield kind


def entries(world: World) -> list[dict[str, object]]:
    return world.plane.audit.page(Filter(), 0, 1000)


@pytest.mark.parametrize("route", CASES, ids=lambda route: " ".join(route))
async def test_each_change_writes_one_entry(world: World, route: tuple[str, str]) -> None:
    assert entries(world) == []
    reply = await CASES[route](world)
    assert reply.status < 300, reply.body
    check(world, permission_of(*route).action, "operator key")


@pytest.mark.parametrize("case", OTHER_CASES)
async def test_each_change_by_a_page_writes_one_entry(world: World, case: str) -> None:
    action, run = OTHER_CASES[case]
    reply = await run(world)
    assert reply.status < 400, reply.body
    check(world, action, "operator key")


def check(world: World, action: str, who: str) -> None:
    """Check that there is one entry, about an object and without secrets."""
    (entry,) = entries(world)
    assert (entry["who"], entry["action"], entry["address"]) == (who, action, "192.0.2.7")
    without_object = {
        "plane-ca.constrain", "plane-tls.switch", "session.sign-in", "session.sign-out", "operator-key.off",
    }  # fmt: skip
    assert entry["objects"] or action in without_object
    text = str(entry)
    assert not any(secret in text for secret in (SECRET, "PRIVATE KEY", world.plane.operator_key))
    assert re.search(r"\bo[st]_[\w-]{20}", text) is None


def test_the_tables_name_every_route_of_operators(world: World) -> None:
    """A new route needs its row in ``PERMISSIONS``, and in ``CASES`` if it changes something."""
    guarded = routes_of_operators(world)
    assert guarded == set(PERMISSIONS)
    changing = {route for route in guarded if PERMISSIONS[route].action}
    assert changing == set(CASES) | set(ELSEWHERE)
    reading = {route for route in guarded - changing if route[0] != "GET"}
    assert reading == {
        ("POST", "/apiv1/users/{uid}/certificate-checks"), ("POST", "/apiv1/issuers/{name}/check"),
    }, "a route that is not GET changes something, unless it is named here"  # fmt: skip


def routes_of_operators(world: World) -> set[tuple[str, str]]:
    """Return the routes of the application below /apiv1 that are not those of devices."""
    router = make_app(world.plane)._inner._others._others  # type: ignore[attr-defined]
    assert isinstance(router, Router)
    found = {(method, route.path) for route in router.routes for method in route.methods}  # type: ignore[attr-defined]
    of_devices = ("/apiv1/devices/self", "/apiv1/device/registration")
    return {
        (method, path)
        for method, path in found
        if path.startswith("/apiv1/") and not path.startswith(of_devices) and method != "HEAD"
    }


async def test_refused_requests_leave_no_entry(world: World) -> None:
    assert (await world.operator("DELETE", "/apiv1/users/1/devices/7")).status == 404
    assert (await world.operator("POST", "/apiv1/users", {"name": ""})).status == 400
    browser, code = Browser(world.stranger), await grant(world)
    await browser.sign_in("wrong")
    assert entries(world) == []
    await browser.sign_in(world.plane.operator_key)
    await browser.get(f"/device?user_code={code}")
    assert (await browser.post("/device/decide", user_code="BCDF-GHJK", decision="approve")).status == 404
    assert [entry["action"] for entry in entries(world)] == ["session.sign-in"]


async def test_requests_that_change_nothing_leave_no_entry(world: World) -> None:
    await world.device()
    profile, rollouts, freeze = (
        "/apiv1/users/1/profiles/web",
        "/apiv1/users/1/rollouts",
        "/apiv1/users/1/rollout-freeze",
    )
    await world.operator("PUT", profile, PROFILE)
    forget(world)
    changed = PROFILE | {"installs": [ITEM | {"id": 2}]}
    for method, path, body in (
        ("PUT", f"{profile}?dry_run=1", changed),
        ("PUT", profile, PROFILE),
        ("DELETE", f"{profile}?dry_run=1", None),
        ("POST", f"{rollouts}?dry_run=1", changed | {"profile": "web"}),
        ("POST", freeze, {}),
    ):
        assert (await world.operator(method, path, body)).status == 200, (method, path)
    assert entries(world) == []
    rollout = (await world.operator("POST", rollouts, changed | {"profile": "web"})).data["id"]
    forget(world)
    for change in ("resume", "pause", "pause", "abort", "abort"):
        assert (await world.operator("POST", f"{rollouts}/{rollout}/{change}", {})).status == 200
    for reason in ("the fair", "the fair", ""):
        await world.operator("POST", freeze, {"reason": reason})
    assert [entry["action"] for entry in reversed(entries(world))] == [
        "rollout.pause", "rollout.abort", "rollout.freeze", "rollout.freeze",
    ]  # fmt: skip
    (shown,) = entries(world)[0]["objects"]  # type: ignore[misc]
    assert (shown["kind"], shown["before"], shown["after"]) == (
        "user",
        {"rollouts_frozen": "the fair"},
        {"rollouts_frozen": ""},
    )


async def test_names_that_two_users_have_are_different_objects(world: World) -> None:
    user = (await world.operator("POST", "/apiv1/users", {"name": "second"})).data["id"]
    ids = [await certificate(world, name=f"{number}.example") for number in range(2)]
    forget(world)
    await world.operator("PUT", "/apiv1/users/1/profiles/web", PROFILE)
    await world.operator("PUT", f"/apiv1/users/{user}/profiles/web", PROFILE | {"order": 7})
    await world.operator("POST", "/apiv1/users/1/certificate-sets", {"name": "mail", "cert_ids": ids})
    path = f"/apiv1/users/{user}/certificates"
    others = [(await world.operator("POST", path, {"domain_name": f"{name}.example"})).data["id"] for name in "cd"]
    await world.operator("POST", f"/apiv1/users/{user}/certificate-sets", {"name": "mail", "cert_ids": others})
    found = [shown for entry in reversed(entries(world)) for shown in entry["objects"]]  # type: ignore[attr-defined]
    own = [
        (shown["id"], shown["name"], shown["after"])
        for shown in found
        if shown["kind"] in ("profile", "certificate-set")
    ]
    assert [(object_id, name) for object_id, name, _ in own] == [
        ("1/web", "web"), (f"{user}/web", "web"), ("1/mail", "mail"), (f"{user}/mail", "mail"),
    ]  # fmt: skip
    assert [after["order"] for _, _, after in own[:2]] == [100, 7]
    assert [after["certificates"] for _, _, after in own[2:]] == [ids, others]


async def test_a_parameter_that_a_route_does_not_use_names_no_object(world: World) -> None:
    device = await world.device()
    query = f"?did={device.id}&name=other&uid=7"
    await world.operator("PUT", f"/apiv1/users/1/profiles/web{query}", PROFILE)
    await world.operator("POST", f"/apiv1/users{query}", {"name": "web team"})
    found = [shown for entry in entries(world) for shown in entry["objects"]]  # type: ignore[attr-defined]
    assert [(shown["kind"], shown["id"]) for shown in found] == [("user", "2"), ("profile", "1/web")]


async def test_configs_that_others_have_left_due_are_not_the_change_of_an_operator(world: World) -> None:
    device = await world.device()
    await world.operator("PUT", "/apiv1/users/1/profiles/web", PROFILE)
    forget(world)
    world.plane.database.run("UPDATE install_configs SET due = 1 WHERE device_id = ?", device.id)
    with acting(Act(world.plane.audit, Caller.of_plane(), "profile.put")):
        await world.plane.profiles.apply()
    assert entries(world) == []


async def test_what_devices_do_is_not_in_the_log(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    reply = await device("POST", f"/apiv1/users/1/certificates/{row['id']}/issues", {"action": "renew"})
    assert reply.status == 202
    assert entries(world) == []


async def test_an_entry_has_what_changed(world: World) -> None:
    device = await world.device()
    first = [{"id": 1, "type": "exec", "cmd_argv": ["/bin/true"]}, {"id": 2, "type": "exec", "cmd_argv": ["/bin/a"]}]
    await world.operator("PUT", f"{device.home}/install-config", {"installs": first})
    second = [first[0], first[1] | {"cmd_argv": ["/bin/b"]}]
    await world.operator("PUT", f"{device.home}/install-config", {"installs": second})
    (shown,) = entries(world)[0]["objects"]  # type: ignore[misc]
    assert (shown["kind"], shown["id"], shown["name"]) == ("device", str(device.id), "web-1")
    assert shown["before"] == {"config_version": 2, "items": {"2": {"cmd_argv": ["/bin/a"]}}}
    assert shown["after"] == {"config_version": 3, "items": {"2": {"cmd_argv": ["/bin/b"]}}}
    await world.operator("PUT", f"{device.home}/install-config", {"installs": second})
    assert len(entries(world)) == 2, "nothing was changed"


async def test_an_entry_is_stored_with_its_change_or_not_at_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(world.plane.audit, "add", fail)
    assert (await world.operator("POST", "/apiv1/users", {"name": "web team"})).status == 500
    monkeypatch.undo()
    assert [user["name"] for user in (await world.operator("GET", "/apiv1/users")).data] == ["operator"]


async def test_a_request_for_many_objects_has_one_entry(world: World) -> None:
    from audit_cases import renew_many

    await renew_many(world)
    (entry,) = entries(world)
    kinds = [shown["kind"] for shown in entry["objects"]]  # type: ignore[attr-defined]
    assert (kinds.count("certificate"), kinds.count("order")) == (25, 25)


def test_a_route_that_is_missing_in_the_table_needs_an_admin() -> None:
    assert permission_of("POST", "/apiv1/new") == Permission(Role.ADMIN, "POST /apiv1/new")
    assert permission_of("GET", "/apiv1/new") == Permission(Role.ADMIN)


async def test_a_request_names_no_objects_but_its_own(world: World) -> None:
    device = await world.device()
    query = "did=7&cid=7&user_code=ABCD-EFGH&operator=alice"
    assert (await world.operator("DELETE", f"/apiv1/users/1/devices/{device.id}?{query}")).status == 200
    (entry,) = entries(world)
    assert [(shown["kind"], shown["id"]) for shown in entry["objects"]] == [  # type: ignore[attr-defined]
        ("device", str(device.id))
    ]


async def test_an_id_in_a_path_is_one_short_line(world: World) -> None:
    code = (await grant(world)).replace("-", "\x1b" + "-" * 1000)
    assert (await world.operator("POST", f"/apiv1/device-grants/{code}", {"approve": True})).status == 200
    (entry,) = entries(world)
    (shown,) = [each for each in entry["objects"] if each["kind"] == "grant"]  # type: ignore[attr-defined]
    assert shown["id"].isprintable() and len(shown["id"]) <= 300


async def test_an_operator_whose_name_is_a_number_is_not_taken_for_another(world: World) -> None:
    for name in ("alice", "1"):
        assert (await world.operator("POST", "/apiv1/operators", {"name": name, "role": "viewer"})).status == 201
    assert (await world.operator("PATCH", "/apiv1/operators/1", {"role": "admin"})).status == 200
    (shown,) = entries(world)[0]["objects"]  # type: ignore[misc]
    assert (shown["name"], shown["before"], shown["after"]) == ("1", {"role": "viewer"}, {"role": "admin"})


async def test_a_key_next_to_an_imported_certificate_is_not_in_the_log(world: World) -> None:
    now, (root, middle) = world.clock.wall, pki()
    leaf = made("leaf", middle, names=["c.example"], start=now - 100, end=now + 86_400)
    body = {
        "certificate_pem": leaf.key_pem + leaf.pem, "private_key_pem": leaf.key_pem,
        "chain_pem": middle.key_pem + middle.pem + root.pem,
    }  # fmt: skip
    await world.operator("POST", "/apiv1/users/1/certificate-imports", body)
    await world.operator("POST", "/apiv1/users/1/cas", {"name": "own", "ca_certificate_pem": root.key_pem + root.pem})
    assert [entry["action"] for entry in entries(world)] == ["ca.add", "certificate.import"]
    assert "PRIVATE KEY" not in str(entries(world))
