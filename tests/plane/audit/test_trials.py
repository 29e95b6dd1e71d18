"""A dry run of every change by an operator: it says what would change, and changes nothing, on both engines."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from audit_cases import CASES, certificate, device_of, issuer
from engine_plane import WALL, plane_on, registered
from plane_world import Reply, World
from scripted_issuer import ScriptedKind, scripted

from certctrl.errors import PlaneError
from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.acts import MAX_COMPARED, Trial, acting
from certctrl.plane.audit.log import Filter
from certctrl.plane.http.permissions import NEVER_TRIED, PERMISSIONS
from certctrl.plane.http.routing import API, DRY_RUN
from certctrl.plane.storage.database import Database

MEMORY = frozenset({"limits"})
"""Tables that count requests: those that are tried count, too."""
WITHOUT_OBJECT = frozenset({"operator-key.off"})


@pytest.fixture(autouse=True)
def kind(world: World) -> Iterator[ScriptedKind]:
    with scripted(lambda: world.clock.wall) as kind:
        yield kind


def contents(database: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables, apart from the plane's own secrets and what counts requests."""
    names = database.all("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    tables = sorted({row["name"] for row in names} - MEMORY)
    return {name: [tuple(row) for row in database.all(f"SELECT * FROM {name}")] for name in tables}


def of_route(route: tuple[str, str], method: str, path: str) -> bool:
    pattern = re.sub(r"\{\w+\}", "[^/]+", route[1])
    return method == route[0] and re.fullmatch(pattern, path.partition("?")[0]) is not None


@pytest.mark.parametrize("route", sorted(set(CASES) - NEVER_TRIED), ids=lambda route: " ".join(route))
async def test_each_change_can_be_tried(
    world: World,
    kind: ScriptedKind,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    route: tuple[str, str],
) -> None:
    """Each request of the case to its route is tried first; then it is carried out, and changes what was said."""
    await world.plane.certificates.issue(1, ["first.example"])  # makes the intermediate
    operator, tried = world.operator, list[Reply]()
    caplog.set_level(logging.INFO, "certctrl")

    async def trying(method: str, path: str, *args: Any, **more: Any) -> Reply:
        if of_route(route, method, path):
            before, calls = contents(world.plane.database), len(kind.calls) if hasattr(kind, "calls") else 0
            caplog.clear()
            reply = await operator(method, path.replace(API, DRY_RUN, 1), *args, **more)
            assert caplog.messages == [], "what is logged has happened"
            assert contents(world.plane.database) == before
            assert calls == (len(kind.calls) if hasattr(kind, "calls") else 0)
            tried.append(reply)
        return await operator(method, path, *args, **more)

    monkeypatch.setattr(world, "operator", trying)
    await CASES[route](world)
    assert tried, "the case sends its request by the operator's client"
    for reply in tried:
        action = PERMISSIONS[route].action
        assert (reply.status, reply.data["dry_run"]) == (200, True)
        if "action" in reply.data:  # otherwise it is a preview of its own
            assert reply.data["action"] == action
            assert reply.data["changes"] or action in WITHOUT_OBJECT, "sent elsewhere? then it is NEVER_TRIED"


async def test_only_changes_of_operators_have_paths_of_dry_runs(world: World) -> None:
    device = await world.device()
    assert (await device("GET", "/apiv1/devices/self/certificates")).status == 200
    for path in ("devices/self/certificates", "devices/self/notify", "whoami", "", "dry-run/users"):
        for method in ("GET", "POST"):
            for client in (device, world.operator):
                assert (await client(method, f"{DRY_RUN}{path}", {} if method == "POST" else None)).status in (404, 405)
    assert (await world.operator("POST", f"{DRY_RUN}users?dry_run=0", {"name": "eve"})).data["dry_run"] is True
    assert (await world.operator("GET", f"{DRY_RUN}users")).data == (await world.operator("GET", f"{API}users")).data
    assert (await world.stranger("POST", f"{DRY_RUN}users", {"name": "eve"})).status == 401


async def test_a_device_has_no_dry_runs(world: World) -> None:
    """It shares the route of renewals, which would be carried out."""
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["own.example"], device_ids=[device.id])
    for start, query in ((DRY_RUN, ""), (API, "?dry_run=1")):
        path = f"{start}users/1/certificates/{row['id']}/issues{query}"
        reply = await device("POST", path, {"action": "renew"})
        assert (reply.status, reply.what) == (403, "Only operators have dry runs")
    assert world.plane.certificates.show(1, row["id"])["serial_number"] == row["serial_number"]
    assert (await device("GET", f"{DRY_RUN}users/1/devices/{device.id}/install-config")).status == 200


@pytest.mark.parametrize("route", sorted(NEVER_TRIED), ids=lambda route: " ".join(route))
async def test_what_is_not_in_the_database_only_has_no_dry_run(world: World, route: tuple[str, str]) -> None:
    device_id = await device_of(world)
    path = route[1].format(uid=1, did=device_id, name="builtin", channel="ops")
    reply = await world.operator(route[0], f"{path}?dry_run=1", {})
    assert (reply.status, "has no dry run" in reply.what) == (400, True)


async def test_a_dry_run_is_refused_as_the_change_would_be(world: World) -> None:
    reply = await world.operator("POST", "/apiv1/users/1/renewals?dry_run=yes", {"cert_ids": [1]})
    assert (reply.status, reply.what) == (400, "dry_run must be 0 or 1")
    reply = await world.operator("DELETE", "/apiv1/users/1/devices/99?dry_run=1")
    assert reply.status == 404
    assert world.plane.audit.page(Filter(), 0, 9) == []


async def test_an_external_issuer_is_not_asked(world: World, kind: ScriptedKind) -> None:
    await issuer(world)
    cert_id = await certificate(world, issuer="le")
    reply = await world.operator("POST", f"/apiv1/users/1/certificates/{cert_id}/issues?dry_run=1", {"action": "renew"})
    assert reply.data["dry_run"] is True
    body = {"domain_name": "new.example", "issuer": "le"}
    reply = await world.operator("POST", "/apiv1/users/1/certificates?dry_run=1", body)
    kinds = {(one["kind"], one["id"]) for one in reply.data["changes"]}
    assert kinds == {("certificate", ""), ("order", "")}
    assert len(await world.plane.work(world.plane.orders.page_of_user, 1, 0, 9)) == 1


async def test_the_end_of_a_certificate_that_is_only_ordered_is_not_known(world: World, kind: ScriptedKind) -> None:
    await issuer(world)
    for body in ({"domain_name": "a.example", "issuer": "le"}, {"domain_name": "b.example", "key_origin": "device"}):
        reply = await world.operator("POST", "/apiv1/users/1/certificates?dry_run=1", body)
        (made,) = [one for one in reply.data["changes"] if one["kind"] == "certificate"]
        assert made["after"]["status"] == "active" and "not_after" not in made["after"]
    reply = await world.operator("POST", "/apiv1/users/1/certificates?dry_run=1", {"domain_name": "c.example"})
    (made,) = reply.data["changes"]
    assert made["after"]["not_after"] > "2000", "it is signed, and the signature is thrown away"


async def test_all_objects_of_many_are_listed(world: World) -> None:
    """A request of several units of work, each rolled back, so that new objects may get the same ids again."""
    ids = [int((await world.plane.certificates.issue(1, [f"{n}.example"]))["id"]) for n in range(MAX_COMPARED + 3)]
    reply = await world.operator("POST", "/apiv1/users/1/renewals?dry_run=1", {"cert_ids": ids})
    listed = [(one["kind"], one["id"]) for one in reply.data["changes"]]
    assert listed.count(("order", "")) == len(ids)
    assert sorted(int(one) for kind, one in listed if kind == "certificate") == ids


async def test_a_first_certificate_that_is_tried_leaves_a_ca_that_works(world: World) -> None:
    """The intermediate that it needs stays: what is signed afterwards can be verified."""
    reply = await world.operator("POST", "/apiv1/users/1/certificates?dry_run=1", {"domain_name": "a.example"})
    assert [one["kind"] for one in reply.data["changes"]] == ["certificate"]
    row = await world.plane.certificates.issue(1, ["a.example"])
    detail = world.plane.certificates._table.row(1, row["id"])
    assert world.plane.ca.intermediates.stored() is not None
    assert detail["chain_pem"] == world.plane.ca.intermediates.stored().pem  # type: ignore[union-attr]


async def test_a_unit_of_work_is_rolled_back_on_both_engines(open_database: Callable[[], Database]) -> None:
    plane = plane_on(open_database(), wall_now=lambda: WALL)
    device_id, _ = await registered(plane)
    woken = list[int]()
    trial = Trial(plane.audit, Caller(who="ann", role=Role.ADMIN), "device.revoke")
    trial.note_fields({"uid": 1, "did": device_id})
    with acting(trial):
        await plane.work(_revoke, plane, device_id, woken)
        made = await plane.certificates.issue(1, ["a.example"], device_ids=[device_id])
    assert made["domain_name"] == "a.example"
    assert woken == []
    (shown, new) = trial.changes
    assert (shown["kind"], shown["before"]["status"], shown["after"]["status"]) == ("device", "active", "revoked")
    assert (new["kind"], new["id"], new["name"]) == ("certificate", "", "a.example")
    assert (await plane.work(plane.devices.show, 1, device_id))["status"] == "active"
    with pytest.raises(PlaneError):
        await plane.work(plane.certificates.show, 1, made["id"])
    assert await plane.work(plane.audit.page, Filter(), 0, 9) == []


def _revoke(plane: Any, device_id: int, woken: list[int]) -> None:
    plane.devices.revoke(1, device_id, "lost")
    plane.database.after_commit(lambda: woken.append(device_id))
