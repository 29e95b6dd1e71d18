"""Tokens with tags see and change only devices that carry all of them, and what only such devices have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from engine_plane import new_device, plane_on
from page_browser import Browser
from plane_world import Client, Device, Reply, World
from scripted_issuer import ScriptedKind, scripted

from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.http.permissions import NEVER_TRIED, PERMISSIONS
from certctrl.plane.http.scopes import WITHIN, Within
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database
from certctrl.plane.token_scope import TokenScope
from certctrl.text import counted

OPERATORS, TOKENS = "/apiv1/operators", "/apiv1/operator-tokens"
USER = "/apiv1/users/1"
PUBLIC_IDS = [f"23229bf7-5172-02c7-59a2-76d5b4a400{number:02}" for number in range(20)]
IDS = dict.fromkeys(("uid", "caid", "tid", "operator", "ktid", "rid", "channel", "mid"), "1") | {
    "code": "ABCD-EFGH",
    "name": "hidden",
}
ITEM = {"id": 1, "type": "exec", "cmd_argv": ["/bin/true"]}


@pytest.fixture
def kind(world: World) -> Iterator[ScriptedKind]:
    with scripted(lambda: world.clock.wall) as kind:
        yield kind


class Scene:
    """Two devices within the scope ``env=prod``, two outside, certificates, and a client with a token of that scope."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.devices: dict[str, Device] = {}
        self.certificates: dict[str, int] = {}
        self.client = Client(world.app, "")

    @property
    def own(self) -> int:
        return self.devices["prod-1"].id

    @property
    def other(self) -> int:
        return self.devices["hidden-1"].id

    async def issue(self, name: str, *devices: str, **more: Any) -> int:
        ids = [self.devices[device].id for device in devices]
        row = await self.world.plane.certificates.issue(1, [name], device_ids=ids, **more)
        self.certificates[name] = int(row["id"])
        return int(row["id"])

    async def tag(self, device: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        body = {"device_ids": [self.devices[device].id], "add": list(add), "remove": list(remove)}
        assert (await self.world.operator("POST", f"{USER}/device-tags", body)).status == 200

    async def profile(self, name: str, devices: str, client: Client | None = None, query: str = "") -> Reply:
        body = {"devices": devices, "installs": [ITEM]}
        return await (client or self.world.operator)("PUT", f"{USER}/profiles/{name}{query}", body)

    async def token(self, name: str, *tags: str, role: str | None = None) -> Client:
        body: dict[str, Any] = {"operator": "alice", "name": name, "expires_in": DAY, "tags": tags}
        made = (await self.world.operator("POST", TOKENS, body | ({"role": role} if role else {}))).data
        return Client(self.world.app, made["token"])


@pytest.fixture
async def scene(world: World, kind: ScriptedKind) -> Scene:
    scene = Scene(world)
    for public_id, name in zip(PUBLIC_IDS, ("prod-1", "prod-2", "hidden-1", "hidden-2"), strict=False):
        scene.devices[name] = await world.device(public_id, name)
    for name, tags in {"prod-1": ["env=prod", "web"], "prod-2": ["env=prod"], "hidden-1": ["env=test"]}.items():
        await scene.tag(name, tags)
    await scene.issue("own.example", "prod-1", "prod-2")
    await scene.issue("shared.example", "prod-1", "hidden-1", "hidden-2")
    await scene.issue("hidden.example", "hidden-1")
    await scene.issue("unused.example")
    await scene.profile("hidden", "env=test")
    await world.operator("POST", OPERATORS, {"name": "alice", "role": "admin"})
    scene.client = await scene.token("ci", "env=prod")
    return scene


def entries(world: World, who: str = "alice") -> list[dict[str, Any]]:
    return world.plane.audit.page(Filter(who=who), 0, 100)


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_names_every_route_of_operators() -> None:
    """A new route needs its row in ``WITHIN``: decide what it means to a token that is only for certain devices."""
    assert set(WITHIN) == set(PERMISSIONS)


def test_what_only_admins_may_change_is_refused() -> None:
    for route, permission in PERMISSIONS.items():
        assert permission.role is not Role.ADMIN or WITHIN[route] is Within.NOTHING, route


def path_of(path: str, device: int, certificate: int, order: int) -> str:
    return path.format(**IDS, did=device, cid=certificate, oid=order)


async def test_every_route_keeps_within_the_scope(scene: Scene) -> None:
    """What names an object outside is answered as if there were none, and no answer names one."""
    order = await order_of(scene, "hidden-order.example", "hidden-1")
    before = state(scene.world)
    for route in PERMISSIONS:
        await check_outside(scene, route, order)
    assert state(scene.world) == before and entries(scene.world) == []


async def check_outside(scene: Scene, route: tuple[str, str], order: int) -> None:
    method, path = route
    hidden = scene.certificates["hidden.example"]
    body = None if method == "GET" else {"device_ids": [scene.other], "cert_ids": [hidden], "cert_id": hidden}
    outside = await scene.client(method, path_of(path, scene.other, hidden, order), body)
    match WITHIN[route]:
        case Within.NOTHING:
            assert (outside.status, outside.key) == (403, "OUT_OF_SCOPE"), route
            assert "token ci of alice: devices with env=prod" in outside.what
        case Within.NAMED | Within.WHOLE:
            assert outside.status == 404, (route, outside.body)
            none = body and {"device_ids": [999], "cert_ids": [999], "cert_id": 999}
            unknown = await scene.client(method, path_of(path, 999, 999, 999), none)
            assert outside.json == unknown.json, route
            if PERMISSIONS[route].action and route not in NEVER_TRIED:
                tried = await scene.client(method, path_of(path, scene.other, hidden, order) + "?dry_run=1", body)
                assert tried.json == unknown.json, route
        case Within.ENDPOINT | Within.CALLER:
            assert outside.status in (200, 403, 404), route
            assert re.search(rb"hidden-|hidden.example|unused|env=test", outside.body) is None, outside.body


async def test_no_read_within_the_scope_names_what_is_outside(scene: Scene) -> None:
    order = await order_of(scene, "prod-order.example", "prod-1")
    for route, place in WITHIN.items():
        if route[0] == "GET" and place is Within.NAMED:
            path = path_of(route[1], scene.own, scene.certificates["shared.example"], order)
            reply = await scene.client("GET", path)
            assert reply.status == 200 and b"hidden" not in reply.body, route
            if "device_ids" in reply.data:
                assert reply.data["device_ids"] == [scene.own]


async def order_of(scene: Scene, name: str, *devices: str) -> int:
    from certctrl.plane.issuers.registry import NewIssuer

    await scene.world.plane.work(scene.world.plane.issuers.put, NewIssuer(name="le", kind="scripted", settings={}))
    cert_id = await scene.issue(name, *devices, issuer="le")
    row = scene.world.plane.database.one("SELECT id FROM orders WHERE cert_id = ?", cert_id)
    assert row is not None
    return int(row["id"])


def state(world: World) -> list[list[tuple[Any, ...]]]:
    """Return the tables that operators change."""
    tables = (
        "devices", "device_tags", "certificates", "assignments", "orders", "install_configs", "signals", "profiles",
        "operators", "enrolment_tokens", "device_replacements", "authorities", "settings", "questions",
    )  # fmt: skip
    rows = [world.plane.database.all(f"SELECT * FROM {table}") for table in tables]
    ignored = ("last_seen_at", "last_address", "last_cursor")
    return [
        sorted((tuple((key, row[key]) for key in row.keys() if key not in ignored) for row in found), key=repr)  # noqa: SIM118
        for found in rows
    ]


# --- lists ----------------------------------------------------------------------------------------------------------


async def test_lists_are_filtered_and_counted_within_the_scope(scene: Scene) -> None:
    client = scene.client
    assert [row["name"] for row in (await client("GET", f"{USER}/devices")).data] == ["prod-1", "prod-2"]
    assert [row["name"] for row in (await client("GET", f"{USER}/devices?limit=1&after_id=1")).data] == ["prod-2"]
    assert [row["name"] for row in (await client("GET", f"{USER}/devices?tag=web")).data] == ["prod-1"]
    assert (await client("GET", f"{USER}/devices?tag=env%3Dtest")).data == []
    listed = (await client("GET", f"{USER}/certificates")).data
    assert [(row["domain_name"], row["device_ids"]) for row in listed] == [
        ("own.example", [1, 2]),
        ("shared.example", [1]),
    ]
    assert (await client("GET", f"{USER}/certificates?tag=env%3Dtest")).data == []
    assert (await client("GET", f"{USER}/device-tags")).data == [
        {"tag": "env=prod", "devices": 2}, {"tag": "web", "devices": 1},
    ]  # fmt: skip
    devices = (await client("GET", f"{USER}/fleet/devices")).data
    assert ([row["name"] for row in devices["devices"]], devices["total"]) == (["prod-1", "prod-2"], 2)
    assert sum(devices["counts"].values()) == 2
    assert (await client("GET", f"{USER}/fleet/devices?q=hidden")).data["total"] == 0
    certificates = (await client("GET", f"{USER}/fleet/certificates?sort=name")).data
    assert [(row["name"], row["devices"]) for row in certificates["certificates"]] == [
        ("own.example", 2), ("shared.example", 1),
    ]  # fmt: skip
    assert (certificates["total"], sum(certificates["counts"].values())) == (2, 2)
    assert (await client("GET", f"{USER}/fleet/certificates?tag=env%3Dtest")).data["total"] == 0
    scene.world.clock.advance(DAY / 2)
    (cause,) = (await client("GET", f"{USER}/fleet/causes")).data["causes"]
    assert (cause["state"], cause["devices"]) == ("stale", 2)
    assert sum((await scene.world.operator("GET", f"{USER}/fleet/causes")).data["counts"].values()) == 4


async def test_a_device_needs_all_tags_of_the_scope(scene: Scene) -> None:
    client = await scene.token("web", "web", "env=prod")
    assert [row["name"] for row in (await client("GET", f"{USER}/devices")).data] == ["prod-1"]
    assert (await client("GET", f"{USER}/devices/2")).status == 404
    await scene.tag("prod-1", remove=["web"])
    assert (await client("GET", f"{USER}/devices")).data == []


# --- changes ----------------------------------------------------------------------------------------------------------


async def test_devices_within_the_scope_can_be_changed(scene: Scene) -> None:
    client, own = scene.client, f"{USER}/devices/{scene.own}"
    assert (await client("PUT", f"{own}/install-config", {"installs": []})).status == 200
    assert (await client("POST", f"{own}/resync", {"reason": "test"})).status == 202
    assert (await client("POST", f"{own}/replacement", {})).status == 201
    assert (await client("POST", f"{own}/certificates", {"cert_id": scene.certificates["own.example"]})).status == 200
    assert (await client("POST", f"{USER}/device-tags", {"device_ids": [scene.own], "add": ["canary"]})).status == 200
    assert (await client("DELETE", f"{USER}/devices/2")).data["status"] == "revoked"
    found = {(entry["action"], entry["via"]) for entry in entries(scene.world)}
    assert ("device.revoke", "token ci") in found and ("device.tag", "token ci") in found


async def test_a_change_that_would_reach_devices_outside_is_refused_with_their_number(scene: Scene) -> None:
    client, shared = scene.client, scene.certificates["shared.example"]
    for path, body in (
        (f"{USER}/certificates/{shared}/issues", {"action": "renew"}),
        (f"{USER}/certificates/{shared}/issues?dry_run=1", {"action": "renew"}),
        (f"{USER}/certificates/{shared}/revoke", {"reason": "test"}),
        (f"{USER}/renewals", {"cert_ids": [shared]}),
        (f"{USER}/renewals", {"cert_ids": [scene.certificates["own.example"], shared]}),
        (f"{USER}/renewals?dry_run=1", {"cert_ids": [shared]}),
    ):
        refused = await client("POST", path, body)
        assert (refused.status, refused.key) == (403, "OUT_OF_SCOPE"), (path, refused.body)
        assert refused.what == (
            f"This would reach 2 devices, by certificate {shared}, outside the scope of token ci of alice: devices with env=prod"
        )
        assert refused.json["error"]["params"] == {"devices": 2, "tags": ["env=prod"]}
    assert entries(scene.world) == []
    renewed = await client(
        "POST", f"{USER}/certificates/{scene.certificates['own.example']}/issues", {"action": "renew"}
    )
    assert renewed.status == 202


async def test_what_is_renewed_together_counts(scene: Scene) -> None:
    """A set renews its other certificates, too: their devices are reached."""
    own, hidden = scene.certificates["own.example"], scene.certificates["hidden.example"]
    await scene.world.operator("POST", f"{USER}/certificate-sets", {"name": "pair", "cert_ids": [own, hidden]})
    for path, body in (
        (f"{USER}/certificates/{own}/issues", {"action": "renew"}),
        (f"{USER}/renewals", {"cert_ids": [own]}),
    ):
        assert (await scene.client("POST", path, body)).json["error"]["params"]["devices"] == 1


async def test_certificates_made_from_one_count(scene: Scene) -> None:
    for device in scene.devices.values():
        scene.world.plane.database.run("UPDATE devices SET features = ? WHERE id = ?", '["device-keys"]', device.id)
    made = await scene.issue("key.example", "prod-1", key_origin="device")
    assert (await scene.client("POST", f"{USER}/certificates/{made}/issues", {"action": "renew"})).status == 202
    await scene.world.plane.certificates.assign(1, scene.other, made)
    shown = (await scene.client("GET", f"{USER}/certificates/{made}")).data
    assert (shown["device_ids"], shown["made_for_others"]) == ([scene.own], [])
    refused = await scene.client("POST", f"{USER}/certificates/{made}/issues", {"action": "renew"})
    assert refused.json["error"]["params"]["devices"] == 1


async def test_the_batch_of_a_certificate_made_from_one_counts(scene: Scene) -> None:
    """It leaves its batch when it is ordered anew, and the others of the batch are delivered."""
    db = scene.world.plane.database
    for device in scene.devices.values():
        db.run("UPDATE devices SET features = ? WHERE id = ?", '["device-keys"]', device.id)
    root = await scene.issue("key.example", "prod-1", key_origin="device")
    made = (await scene.world.plane.certificates.assign(1, scene.devices["prod-2"].id, root))["id"]
    hidden = scene.certificates["hidden.example"]
    assert (await scene.world.operator("POST", f"{USER}/renewals", {"cert_ids": [made, hidden]})).status == 202
    db.run("UPDATE orders SET batch = 'b-1' WHERE cert_id IN (?, ?) AND state != 'done'", made, hidden)
    for path, body in (
        (f"{USER}/certificates/{root}/issues", {"action": "renew"}),
        (f"{USER}/renewals", {"cert_ids": [root]}),
    ):
        assert (await scene.client("POST", path, body)).json["error"]["params"]["devices"] == 1


async def test_a_certificate_does_not_name_what_it_was_made_from_outside(scene: Scene) -> None:
    for device in scene.devices.values():
        scene.world.plane.database.run("UPDATE devices SET features = ? WHERE id = ?", '["device-keys"]', device.id)
    root = await scene.issue("key.example", "hidden-1", key_origin="device")
    made = (await scene.world.plane.certificates.assign(1, scene.own, root))["id"]
    (listed,) = [row for row in (await scene.client("GET", f"{USER}/certificates")).data if row["id"] == made]
    assert listed["template_id"] is None and (await scene.client("GET", f"{USER}/certificates/{root}")).status == 404
    assert (await scene.world.operator("GET", f"{USER}/certificates/{made}")).data["template_id"] == root
    assert (await scene.client("POST", f"{USER}/certificates/{made}/issues", {"action": "renew"})).status == 202


async def test_orders_are_those_of_certificates_within_the_scope(scene: Scene) -> None:
    order = await order_of(scene, "prod-order.example", "prod-1", "hidden-1")
    for asking, shown in ((scene.other, None), (scene.own, scene.own)):
        scene.world.plane.database.run("UPDATE orders SET device_id = ? WHERE id = ?", asking, order)
        assert (await scene.client("GET", f"{USER}/orders/{order}")).data["device_id"] == shown
        (listed,) = (await scene.client("GET", f"{USER}/orders?open=1")).data
        assert (listed["id"], listed["device_id"]) == (order, shown)
    for change in ("retry", "cancel"):
        assert (await scene.client("POST", f"{USER}/orders/{order}/{change}")).key == "OUT_OF_SCOPE"
    cert_id = scene.certificates["prod-order.example"]
    await scene.world.plane.certificates.unassign(1, scene.other, cert_id)
    assert (await scene.client("POST", f"{USER}/orders/{order}/retry")).status == 202


async def test_a_shared_certificate_can_be_taken_from_a_device_within(scene: Scene) -> None:
    shared = scene.certificates["shared.example"]
    path = f"{USER}/devices/{scene.own}/certificates"
    tried = await scene.client("DELETE", f"{path}/{shared}?dry_run=1")
    assert tried.status == 200 and all(
        "devices" not in row["before"] for row in tried.data["changes"] if row["kind"] == "certificate"
    )
    given = await scene.client("POST", f"{USER}/devices/2/certificates", {"cert_id": shared})
    assert given.data["device_ids"] == [1, 2]
    assert (await scene.client("DELETE", f"{path}/{shared}")).status in (200, 204)
    assert (await scene.client("DELETE", f"{USER}/devices/2/certificates/{shared}")).status in (200, 204)
    assert (await scene.client("GET", f"{USER}/certificates/{shared}")).status == 404
    assert (await scene.client("POST", path, {"cert_id": shared})).status == 404


async def test_a_decommission_ends_although_its_certificates_leave_the_scope(scene: Scene) -> None:
    """Each of its units of work is checked, also those after a certificate is no longer within the scope."""
    await scene.issue("last.example", "prod-1")
    done = await scene.client("POST", f"{USER}/devices/{scene.own}/decommission", {"revoke": True})
    assert done.data["decommissioned_at"]


async def test_profiles_are_those_for_devices_within_the_scope(scene: Scene) -> None:
    client, profiles = scene.client, f"{USER}/profiles"
    await scene.profile("narrow", "env=prod and not web")
    assert [row["name"] for row in (await client("GET", profiles)).data] == ["narrow"]
    for path in (f"{profiles}/narrow", f"{profiles}/narrow/history"):
        assert (await client("GET", path)).status == 200
    for path in (f"{profiles}/hidden", f"{profiles}/hidden/history", f"{profiles}/hidden?version=1"):
        unknown = await client("GET", path.replace("hidden", "hiddem"))
        assert unknown.status == 404
        assert (await client("GET", path)).body == unknown.body.replace(b"hiddem", b"hidden")
    assert (await client("DELETE", f"{profiles}/hidden")).status == 404
    tried = (await scene.profile("mine", "web and env=prod", client, "?dry_run=1")).data
    assert [row["name"] for row in tried["changes"]["devices"]] == ["prod-1"]
    assert (await scene.profile("mine", "web and env=prod", client)).status == 200
    assert (await client("DELETE", f"{profiles}/mine")).status == 200
    assert {entry["action"] for entry in entries(scene.world)} == {"profile.put", "profile.delete"}


async def test_a_profile_that_reaches_beyond_is_refused_with_the_number_of_devices(scene: Scene) -> None:
    for devices, outside in (
        ("*", 2),
        ("env=*", 1),
        ("not web", 2),
        ("env=prod or web", 0),
        ("web", 0),
        ("env=test", 1),
    ):
        for query in ("", "?dry_run=1"):
            refused = await scene.profile("mine", devices, scene.client, query)
            assert (refused.status, refused.key) == (403, "OUT_OF_SCOPE"), devices
            assert refused.json["error"]["params"] == {"devices": outside, "tags": ["env=prod"]}
            reach = f"reach {counted(outside, 'device')}, now or later," if outside else "could reach devices later"
            assert reach in refused.what
    assert (
        "would reach 1 device, now or later, outside the scope of this token: write the devices as env=prod and (…)"
        in refused.what
    )
    refused = await scene.profile("hidden", "env=prod", scene.client)
    assert (refused.key, refused.json["error"]["params"]["devices"]) == ("OUT_OF_SCOPE", 1)
    await scene.profile("hidden", "env=prod")
    assert (await scene.profile("hidden", "env=prod and web", scene.client)).key == "OUT_OF_SCOPE"
    assert entries(scene.world) == []


# --- no way out -------------------------------------------------------------------------------------------------------


async def test_the_tags_of_the_scope_cannot_be_changed(scene: Scene) -> None:
    for change in ({"add": ["env=test"]}, {"remove": ["env=prod"]}, {"add": ["env=prod"]}, {"add": ["x", "env=dev"]}):
        for query in ("", "?dry_run=1"):
            refused = await scene.client("POST", f"{USER}/device-tags{query}", {"device_ids": [scene.own]} | change)
            assert (refused.status, refused.key) == (403, "OUT_OF_SCOPE"), change
            assert "decides about the scope" in refused.what
    plain = await scene.token("web", "web")
    assert (await plain("POST", f"{USER}/device-tags", {"device_ids": [1], "remove": ["web"]})).key == "OUT_OF_SCOPE"
    mixed = {"device_ids": [scene.own, scene.other], "add": ["x"]}
    assert (await scene.client("POST", f"{USER}/device-tags", mixed)).what == "No such device"


async def test_new_hardware_keeps_the_tags_of_its_device(scene: Scene) -> None:
    made = (await scene.client("POST", f"{USER}/devices/{scene.own}/replacement", {})).data
    from nacl.public import PrivateKey
    from proving import registration

    body = registration(PUBLIC_IDS[9], PrivateKey.generate(), "prod-9") | {"enrolment_token": made["token"]}
    assert (await scene.world.register(body)).status < 300
    assert (await scene.client("GET", f"{USER}/devices/{scene.own}")).data["tags"] == ["env=prod", "web"]
    assert len((await scene.client("GET", f"{USER}/devices")).data) == 2


async def test_a_token_with_tags_opens_no_pages_and_approves_nothing(scene: Scene) -> None:
    browser = Browser(scene.world.stranger)
    shown = await browser.sign_in(scene.client.token)
    assert shown.status == 403 and b"only for devices with env=prod" in shown.body
    assert scene.world.plane.database.all("SELECT * FROM operator_sessions") == []
    verify = {"action": "device_verify", "user_code": "ABCD-EFGH", "approve": True}
    assert (await scene.client("POST", "/auth/device", verify)).key == "OUT_OF_SCOPE"


async def test_a_token_with_tags_is_no_admin(scene: Scene) -> None:
    """So that it does not count as an admin's token when the operator key is turned off."""
    body = {"operator": "alice", "name": "x", "expires_in": DAY, "tags": ["env=prod"]}
    refused = await scene.world.operator("POST", TOKENS, body | {"role": "admin"})
    assert (refused.status, refused.json["error"]["params"]) == (400, {"field": "role"})
    assert (await scene.world.operator("DELETE", "/apiv1/plane/operator-key")).key == "NO_ADMIN_LEFT"
    assert (await scene.client("GET", "/apiv1/whoami")).data == {
        "who": "alice", "role": "operator", "via": "token ci", "address": "192.0.2.7", "tags": ["env=prod"], "dry_run": True,
        "dry_run_paths": True,
    }  # fmt: skip


async def test_the_role_counts_within_the_scope(scene: Scene) -> None:
    viewer = await scene.token("view", "env=prod", role="viewer")
    assert (await viewer("GET", f"{USER}/devices/{scene.own}")).status == 200
    assert (await viewer("POST", f"{USER}/devices/{scene.own}/resync", {})).key == "ROLE_REQUIRED"


async def test_tags_of_tokens_are_checked_listed_and_recorded(scene: Scene) -> None:
    body = {"operator": "alice", "name": "x", "expires_in": DAY}
    for tags in (["Env=prod"], ["a=b", "a=c"], ["*"]):
        assert (await scene.world.operator("POST", TOKENS, body | {"tags": tags})).json["error"]["params"] == {
            "field": "tags"
        }
    (listed,) = (await scene.world.operator("GET", TOKENS)).data
    assert (listed["tags"], listed["role"]) == (["env=prod"], "operator")
    (entry,) = [entry for entry in entries(scene.world, "operator key") if entry["action"] == "token.create"]
    (shown,) = [one for one in entry["objects"] if one["kind"] == "token"]
    assert shown["after"]["tags"] == "env=prod"


async def test_an_earlier_release_does_not_take_tokens_with_tags(scene: Scene) -> None:
    """It knows no scopes, and takes tokens that begin with ``ot_`` for those of all devices."""
    assert scene.client.token.startswith("os_")


# --- each engine ------------------------------------------------------------------------------------------------------


async def test_the_scope_on_each_engine(database: Database) -> None:
    plane, scope = plane_on(database), ("env=prod", "web")
    own, half, other = [await new_device(plane, name) for name in ("own", "half", "other")]
    await plane.work(plane.devices.tags.change, 1, [own], add=scope)
    await plane.work(plane.devices.tags.change, 1, [half], add=["web"])
    alone = (await plane.certificates.issue(1, ["alone.example"], device_ids=[own]))["id"]
    shared = (await plane.certificates.issue(1, ["shared.example"], device_ids=[own, half, other]))["id"]
    hidden = (await plane.certificates.issue(1, ["hidden.example"], device_ids=[other]))["id"]

    def read() -> tuple[object, ...]:
        fleet, certificates = plane.fleet, plane.certificates
        devices = fleet.devices(1, Query(sort="name", search="o"), scope)
        certs = fleet.certificates(1, Query(sort="name", tags=["web"], states=["valid", "renewing"]), scope)
        return (
            [row["name"] for row in devices["devices"]], devices["total"], devices["counts"],
            [(row["name"], row["devices"]) for row in certs["certificates"]], certs["total"],
            fleet.causes(1, scope)["counts"],
            [row["name"] for row in plane.devices.page(1, 0, 9, ["web"], scope)],
            [(row["id"], row["device_ids"]) for row in certificates.page_of_user(1, 0, 9, ["web"], scope)],
            plane.devices.tags.used(1, scope),
            plane.orders.page_of_user(1, 0, 9, scope, only_open=True),
        )  # fmt: skip

    assert await plane.work_long(read) == (
        ["own"], 1, {"expected": 1}, [("alone.example", 0), ("shared.example", 0)], 2, {"expected": 1}, ["own"],
        [(alone, [own]), (shared, [own])], [{"tag": "env=prod", "devices": 1}, {"tag": "web", "devices": 1}], [],
    )  # fmt: skip
    caller, check = Caller(who="alice", role=Role.OPERATOR, via="token ci", tags=scope), TokenScope(database)
    await plane.work(plane.batches.mark, 1, "pair", [alone, hidden])

    def refusal(*named: tuple[str, int], whole: bool = False) -> tuple[int, object]:
        try:
            check.require(caller, [(kind, str(number)) for kind, number in named], whole=whole)
        except ErrorResponse as error:
            return error.status, error.params.get("devices")
        return 200, None

    def refusals() -> list[tuple[int, object]]:
        return [
            refusal(("device", own), ("certificate", alone), ("certificate", shared)),
            refusal(("device", own), ("device", half)),
            refusal(("certificate", shared), ("certificate", hidden)),
            refusal(("order", 1)),
            refusal(("certificate", shared), whole=True),
            refusal(("certificate", alone), whole=True),
            refusal(("user", 1), ("device", 2**60)),
        ]

    assert await plane.work(refusals) == [
        (200, None), (404, None), (404, None), (404, None), (403, 2), (403, 1), (404, None),
    ]  # fmt: skip
