"""Operator endpoints for issuers, rules and orders, and the renewal requests of devices that become orders."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from issued import issue, materials
from plane_world import World
from scripted_issuer import ScriptedKind, scripted

from certctrl.plane.issuers.issuer import IssuerError

ISSUERS = "/apiv1/issuers"
RULES = "/apiv1/issuer-rules"
ORDERS = "/apiv1/users/1/orders"
LE = {"name": "le", "kind": "scripted", "secrets": {"eab": base64.b64encode(b"very secret").decode()}}


@pytest.fixture
def kind(world: World) -> Iterator[ScriptedKind]:
    with scripted(lambda: world.clock.wall) as kind:
        yield kind


async def added(world: World) -> None:
    assert (await world.operator("POST", ISSUERS, LE)).status == 201


async def pending(world: World, *names: str, **more: object) -> dict[str, Any]:
    reply = await world.operator(
        "POST", "/apiv1/users/1/certificates", {"domain_name": names[0], "sans": names[1:], "issuer": "le", **more}
    )
    assert (reply.status, reply.data["status"]) == (202, "pending"), reply.body
    data: dict[str, Any] = reply.data
    return data


async def test_issuers_are_added_shown_checked_and_removed(world: World, kind: ScriptedKind) -> None:
    reply = await world.operator("POST", ISSUERS, LE)
    assert (reply.status, reply.data["secrets"]) == (201, ["eab"])
    assert b"very secret" not in reply.body and LE["secrets"]["eab"].encode() not in reply.body  # type: ignore[index]
    assert (await world.operator("POST", ISSUERS, LE)).status == 409
    assert (await world.operator("POST", ISSUERS, LE | {"replace": True})).status == 201
    rows = {row["name"]: row for row in (await world.operator("GET", f"{ISSUERS}?check=1")).data}
    assert rows["le"]["ok"] and rows["builtin"]["ok"]
    assert rows["le"]["facts"] == {"orders_left": "50"}
    assert (await world.operator("GET", f"{ISSUERS}/le")).data["settings"] == {"url": "https://ca.example"}
    assert (await world.operator("POST", f"{ISSUERS}/le/check")).data["ok"] is True
    assert (await world.operator("DELETE", f"{ISSUERS}/le")).status == 204
    assert (await world.operator("GET", f"{ISSUERS}/le")).status == 404
    assert (await world.operator("POST", f"{ISSUERS}/le/check")).status == 404


@pytest.mark.parametrize("trouble", ["bug", "removed"])
async def test_one_issuer_that_cannot_be_checked_does_not_hide_the_others(
    world: World, kind: ScriptedKind, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    await added(world)

    async def check() -> dict[str, str]:
        if trouble == "bug":
            raise KeyError("orders_left")
        await world.plane.work(world.plane.issuers.remove, "le")
        return {}

    monkeypatch.setattr(kind.ca, "check", check)
    rows = {row["name"]: row for row in (await world.operator("GET", f"{ISSUERS}?check=1")).data}
    assert rows["builtin"]["ok"] and not rows["le"]["ok"]
    said = "unexpected KeyError in issuer le" if trouble == "bug" else "There is no issuer 'le'; see plane issuers list"
    assert rows["le"]["problem"] == said
    assert rows["le"]["facts"] == {}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"settings": {"colour": 1}}, "colour"), ({"settings": []}, "settings"), ({"settings": "x"}, "settings"),
        ({"secrets": {"a": "not base64!"}}, "secrets"), ({"secrets": {"a": 1}}, "secrets"), ({"secrets": []}, "secrets"),
        ({"name": ""}, "name"), ({"name": "a b"}, "name"), ({"kind": "other"}, "kind"), ({"replace": 1}, "replace"),
    ],
)  # fmt: skip
async def test_bad_issuers_are_refused_with_the_field(
    world: World, kind: ScriptedKind, change: dict[str, Any], where: str
) -> None:
    reply = await world.operator("POST", ISSUERS, LE | change)
    assert (reply.status, reply.json["error"]["params"]["field"]) == (400, where), reply.body


async def test_a_check_that_hangs_is_cut_off(world: World, kind: ScriptedKind, monkeypatch: pytest.MonkeyPatch) -> None:
    import trio

    async def hang() -> dict[str, str]:
        await trio.sleep_forever()
        return {}

    await added(world)
    monkeypatch.setattr("certctrl.plane.http.issuing_api.CHECK_SECONDS", 0.05)
    kind.ca.check = hang  # type: ignore[method-assign]
    row = (await world.operator("POST", f"{ISSUERS}/le/check")).data
    assert (row["ok"], "does not answer" in row["problem"]) == (False, True)


async def test_rules(world: World, kind: ScriptedKind) -> None:
    await added(world)
    assert (await world.operator("POST", RULES, {"domain": "Shop.example", "issuer": "le"})).status == 201
    assert (await world.operator("GET", RULES)).data == [{"domain": "shop.example", "issuer": "le"}]
    assert (await world.operator("DELETE", f"{ISSUERS}/le")).status == 409
    assert (await world.operator("DELETE", f"{RULES}?domain=shop.example")).status == 204
    assert (await world.operator("DELETE", f"{RULES}?domain=shop.example")).status == 404
    assert (await world.operator("DELETE", RULES)).status == 400


async def test_an_order_from_request_to_material(world: World, kind: ScriptedKind) -> None:
    await added(world)
    device = await world.device()
    row = await pending(world, "a.example", device_ids=[device.id])
    path = f"/apiv1/devices/self/certificates/{row['id']}"
    refused = await device("GET", f"{path}/deploy-materials")
    assert (refused.status, refused.key) == (409, "WRAP_PENDING")
    assert (await device("GET", "/apiv1/devices/self/certificates")).data == []
    (order,) = (await world.operator("GET", f"{ORDERS}?open=1")).data
    assert (order["id"], order["domain_name"], order["state"]) == (row["order_id"], "a.example", "ready")
    await world.plane.order_runner.run_once()
    assert (await materials(device, row["id"]))["serial_number"]
    assert [one["id"] for one in (await device("GET", "/apiv1/devices/self/certificates")).data] == [row["id"]]
    assert (await world.operator("GET", f"{ORDERS}?open=1")).data == []
    assert [one["state"] for one in (await world.operator("GET", ORDERS)).data] == ["done"]
    assert (await world.operator("POST", f"{ORDERS}/{order['id']}/retry")).status == 409


async def test_a_device_that_requests_a_renewal_gets_the_order(world: World, kind: ScriptedKind) -> None:
    await added(world)
    device = await world.device()
    row = await pending(world, "a.example", device_ids=[device.id])
    await world.plane.order_runner.run_once()
    reply = await device("POST", f"/apiv1/users/1/certificates/{row['id']}/issues", {"action": "renew"})
    assert (reply.status, reply.data["status"]) == (202, "pending")
    assert (await world.operator("GET", f"{ORDERS}/{reply.data['order_id']}")).data["device_id"] == device.id
    again = await device("POST", f"/apiv1/users/1/certificates/{row['id']}/issues", {"action": "renew"})
    assert again.data["order_id"] == reply.data["order_id"]


async def test_orders_are_tried_and_cancelled(world: World, kind: ScriptedKind) -> None:
    await added(world)
    row = await pending(world, "a.example")
    kind.ca.script = [IssuerError("the CA says no", fix="ask it", is_permanent=True)]
    await world.plane.order_runner.run_once()
    order = (await world.operator("GET", f"{ORDERS}/{row['order_id']}")).data
    assert (order["state"], order["problem"], order["fix"]) == ("failed", "the CA says no", "ask it")
    again = await world.operator("POST", f"{ORDERS}/{row['order_id']}/retry")
    assert (again.status, again.data["state"]) == (202, "ready")
    cancelled = await world.operator("POST", f"{ORDERS}/{again.data['id']}/cancel")
    assert (cancelled.status, cancelled.data["state"]) == (200, "failed")
    assert (await world.operator("POST", f"{ORDERS}/{again.data['id']}/cancel")).status == 409


async def test_orders_of_others_are_not_visible(world: World, kind: ScriptedKind) -> None:
    await added(world)
    row = await pending(world, "a.example")
    other = (await world.operator("POST", "/apiv1/users", {"name": "other"})).data["id"]
    assert (await world.operator("GET", f"/apiv1/users/{other}/orders")).data == []
    for method, path in (("GET", ""), ("POST", "/retry"), ("POST", "/cancel")):
        assert (await world.operator(method, f"/apiv1/users/{other}/orders/{row['order_id']}{path}")).status == 404
    assert (await world.operator("GET", "/apiv1/users/99/orders")).status == 404


async def test_the_issuer_of_a_certificate_changes_and_its_id_stays(world: World, kind: ScriptedKind) -> None:
    await added(world)
    row = await issue(world, "a.example")
    assert row["issuer"] == "builtin"
    path = f"/apiv1/users/1/certificates/{row['id']}"
    changed = await world.operator("PATCH", path, {"issuer": "le"})
    assert (changed.status, changed.data["id"], changed.data["issuer"]) == (200, row["id"], "le")
    assert (await world.operator("PATCH", path, {"issuer": "nobody"})).status == 400
    renewal = await world.operator("POST", f"{path}/issues", {"action": "renew"})
    assert (renewal.status, renewal.data["status"]) == (202, "pending")
    await world.plane.order_runner.run_once()
    shown = (await world.operator("GET", path)).data
    assert (shown["id"], shown["serial_number"] != row["serial_number"]) == (row["id"], True)
