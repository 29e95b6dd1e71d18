"""The operator API: authorization, missing objects, isolation of users, CAs, reports."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from plane_world import Device, World

from certctrl.plane.ca.x509 import new_key, new_root, pem_of, sign_leaf
from certctrl.protocol.wire.certificates import ca_from_wire

NOTIFY = "/apiv1/devices/self/notify"
SCHEMA = "certctrl.device.notify.v1"

ENDPOINTS = [
    ("GET", "/apiv1/users"), ("POST", "/apiv1/users"),
    ("GET", "/apiv1/users/1/devices"), ("POST", "/apiv1/users/1/devices"),
    ("GET", "/apiv1/users/1/device-tags"), ("POST", "/apiv1/users/1/device-tags"),
    ("GET", "/apiv1/users/1/devices/1"), ("DELETE", "/apiv1/users/1/devices/1"),
    ("GET", "/apiv1/users/1/devices/1/outcomes"), ("POST", "/apiv1/users/1/devices/1/resync"),
    ("PUT", "/apiv1/users/1/devices/1/install-config"),
    ("GET", "/apiv1/users/1/devices/1/certificates"), ("POST", "/apiv1/users/1/devices/1/certificates"),
    ("DELETE", "/apiv1/users/1/devices/1/certificates/1"),
    ("GET", "/apiv1/users/1/devices/1/cas"), ("POST", "/apiv1/users/1/devices/1/cas"),
    ("DELETE", "/apiv1/users/1/devices/1/cas/1"),
    ("GET", "/apiv1/users/1/certificates"), ("POST", "/apiv1/users/1/certificates"),
    ("GET", "/apiv1/users/1/certificates/1"), ("POST", "/apiv1/users/1/certificates/1/revoke"),
    ("GET", "/apiv1/users/1/cas"), ("POST", "/apiv1/users/1/cas"),
    ("GET", "/apiv1/users/1/enrolment-tokens"), ("POST", "/apiv1/users/1/enrolment-tokens"),
    ("DELETE", "/apiv1/users/1/enrolment-tokens/1"),
    ("GET", "/apiv1/device-grants"), ("GET", "/apiv1/device-grants/ABCD-EFGH"),
    ("POST", "/apiv1/device-grants/ABCD-EFGH"), ("GET", "/apiv1/plane/tls"), ("POST", "/apiv1/plane/tls"),
    ("GET", "/apiv1/plane/status"), ("PATCH", "/apiv1/users/1/certificates/1"),
    ("GET", "/apiv1/issuers"), ("POST", "/apiv1/issuers"), ("GET", "/apiv1/issuers/1"), ("DELETE", "/apiv1/issuers/1"),
    ("POST", "/apiv1/issuers/1/check"), ("POST", "/apiv1/issuers/1/change-key"),
    ("POST", "/apiv1/issuers/1/deactivate"), ("GET", "/apiv1/issuer-rules"), ("POST", "/apiv1/issuer-rules"),
    ("DELETE", "/apiv1/issuer-rules"), ("GET", "/apiv1/users/1/orders"), ("GET", "/apiv1/users/1/orders/1"),
    ("POST", "/apiv1/users/1/orders/1/retry"), ("POST", "/apiv1/users/1/orders/1/cancel"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_endpoints_are_for_operators_only(world: World, method: str, path: str) -> None:
    device = await world.device()
    body = {} if method in ("POST", "PUT", "PATCH") else None
    assert (await world.stranger(method, path, body)).key == "INVALID_TOKEN"
    world.stranger.token = world.plane.operator_key[:-1]
    assert (await world.stranger(method, path, body)).status == 401
    refused = await device(method, path, body)
    assert (refused.status, refused.key) == (403, "FORBIDDEN")
    assert (await world.operator(method, path, body)).status not in (401, 403, 405, 500)


def test_the_table_of_endpoints_is_complete(world: World) -> None:
    from certctrl.plane.http.issuing_api import IssuingApi
    from certctrl.plane.http.operator_api import OperatorApi
    from certctrl.plane.http.operator_resources import OperatorResources

    apis = OperatorApi(world.plane), OperatorResources(world.plane), IssuingApi(world.plane)
    routes = [route for api in apis for route in api.routes()]
    served = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    shared = {("GET", "install-config"), ("POST", "issues")}
    served = {(method, path) for method, path in served if (method, path.rsplit("/", 1)[1]) not in shared}
    listed = {
        (method, "/".join({"1": "{}", "ABCD-EFGH": "{}"}.get(part, part) for part in path.split("/")))
        for method, path in ENDPOINTS
    }
    assert listed == {(m, "/".join("{}" if p.startswith("{") else p for p in path.split("/"))) for m, path in served}


@pytest.mark.parametrize(
    ("method", "path"), [(m, p) for m, p in ENDPOINTS if "/1" in p.removeprefix("/apiv1/users/1") and m != "POST"]
)
async def test_missing_objects_are_404(world: World, method: str, path: str) -> None:
    bodies = {"PUT": {"installs": []}, "PATCH": {"issuer": "builtin"}}
    reply = await world.operator(method, path, bodies.get(method))
    assert (reply.status, reply.key) == (404, "NOT_FOUND")


async def test_users_are_isolated(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    ca = world.plane.authorities.add(1, "ca")
    user = (await world.operator("POST", "/apiv1/users", {"name": "team b"})).data
    assert user == {"id": 2, "name": "team b"}
    assert (await world.operator("POST", "/apiv1/users", {"name": "team b"})).status == 409
    assert (await world.operator("POST", "/apiv1/users", {"name": "  "})).status == 400
    assert [u["id"] for u in (await world.operator("GET", "/apiv1/users")).data] == [1, 2]
    assert (await world.operator("GET", "/apiv1/users/2/devices")).data == []
    assert (await world.operator("GET", "/apiv1/users/3/devices")).status == 404
    for method, path, body in (
        ("GET", f"/devices/{device.id}", None), ("DELETE", f"/devices/{device.id}", None),
        ("POST", f"/devices/{device.id}/certificates", {"cert_id": row["id"]}),
        ("POST", f"/devices/{device.id}/cas", {"ca_id": ca["id"]}),
        ("POST", f"/certificates/{row['id']}/revoke", {}),
        ("POST", f"/certificates/{row['id']}/issues", {"action": "renew"}),
        ("POST", "/certificates", {"domain_name": "b.example", "device_ids": [device.id]}),
    ):  # fmt: skip
        assert (await world.operator(method, f"/apiv1/users/2{path}", body)).status == 404, path
    assert (await device.poll()).status == 200


@pytest.mark.parametrize("path", ["/apiv1/users/0/devices", "/apiv1/users/x/devices", "/apiv1/users/-1/devices"])
async def test_ids_are_numbers(world: World, path: str) -> None:
    assert (await world.operator("GET", path)).status == 400


async def test_405_lists_the_allowed_methods(world: World) -> None:
    reply = await world.operator("PATCH", "/apiv1/users/1/devices")
    assert (reply.status, reply.key) == (405, "METHOD_NOT_ALLOWED")
    assert set(reply.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert (await world.operator("GET", "/apiv1/nothing")).key == "NOT_FOUND"


async def test_device_verify_of_the_live_service_is_accepted(world: World) -> None:
    start = {"action": "device_start"}
    grant = (await world.stranger("POST", "/auth/device", start)).data
    body = {"action": "device_verify", "user_code": grant["user_code"], "approve": True}
    assert (await world.stranger("POST", "/auth/device", body)).status == 401
    assert (await world.operator("POST", "/auth/device", body)).data["status"] == "approved"
    assert (await world.operator("POST", "/auth/device", {"action": "nothing"})).status == 400


async def test_devices_are_shown_with_all_fields(world: World) -> None:
    device = await world.device()
    cursor = (await device.poll()).headers["etag"]
    await device.poll(cursor)
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    (row,) = (await world.operator("GET", "/apiv1/users/1/devices")).data
    assert (row["name"], row["status"], row["app_version"]) == ("web-1", "active", "0.1.0")
    assert (row["last_seen_at"], row["last_address"]) == ("2026-09-21T14:13:20Z", "192.0.2.7")
    assert row["signals_waiting"] == 1
    assert "session" not in row
    assert "public_key" not in row


async def test_tags_of_devices(world: World) -> None:
    tags, device = "/apiv1/users/1/device-tags", await world.device()
    changed = await world.operator(
        "POST", tags, {"device_ids": [device.id], "add": ["web", "env=prod"], "remove": ["db"]}
    )
    assert (changed.status, changed.data[0]["tags"], changed.data[0]["removed"]) == (200, ["env=prod", "web"], [])
    assert (await world.operator("GET", tags)).data == [{"tag": "env=prod", "devices": 1}, {"tag": "web", "devices": 1}]
    assert (await world.operator("GET", "/apiv1/users/9/device-tags")).status == 404
    for query, found in (("web", 1), ("web,env=prod", 1), ("db", 0), ("web,db", 0)):
        assert len((await world.operator("GET", f"/apiv1/users/1/devices?tag={query}")).data) == found
    assert "'' is not a tag" in (await world.operator("GET", "/apiv1/users/1/certificates?tag=")).what, (
        "not all of them"
    )
    bodies = [{"add": ["web"]}, {"device_ids": [device.id], "add": "web"}, {"device_ids": [device.id], "add": [7]},
              {"device_ids": [1] * 1001}, {"device_ids": ["1"]}, {"device_ids": [device.id], "add": ["x"] * 101}]  # fmt: skip
    for body in bodies:
        assert (await world.operator("POST", tags, body)).status == 400, body


async def test_polls_are_stored_by_housekeeping(world: World) -> None:
    device = await world.device()
    before = world.plane.database.one("PRAGMA data_version")[0], world.plane.database.one("SELECT total_changes()")[0]
    for _ in range(10):
        await device.poll()
    after = world.plane.database.one("PRAGMA data_version")[0], world.plane.database.one("SELECT total_changes()")[0]
    assert before == after
    world.plane.housekeeping.tidy()
    stored = world.plane.database.one("SELECT last_seen_at FROM devices")["last_seen_at"]
    assert stored == world.clock.wall
    (row,) = (await world.operator("GET", "/apiv1/users/1/devices")).data
    assert row["last_address"] == "192.0.2.7"


# --- CAs -----------------------------------------------------------------------------------------------------------


def some_ca() -> str:
    now = dt.datetime(2026, 9, 1, tzinfo=dt.UTC).timestamp()
    return new_root("private CA", not_before=now, not_after=now + 86_400).pem


async def test_a_private_ca_is_assigned_and_unassigned(world: World) -> None:
    device, pem = await world.device(), some_ca()
    ca = (await world.operator("POST", "/apiv1/users/1/cas", {"name": "lab", "ca_certificate_pem": pem})).data
    bundle_path = f"/apiv1/devices/self/cas/{ca['id']}/bundle"
    assert (await device("GET", bundle_path)).status == 404, "not assigned"
    for _ in range(2):
        reply = await world.operator("POST", f"{device.home}/cas", {"ca_id": ca["id"]})
        assert reply.data["device_ids"] == [device.id]
    bundle = (await device("GET", bundle_path)).data
    assert set(bundle) == {"id", "name", "serial_number", "status", "ca_certificate_pem"}
    assert bundle["ca_certificate_pem"] == pem
    ca_from_wire(bundle)
    (listed,) = (await device("GET", "/apiv1/devices/self/cas")).data
    assert listed == {name: value for name, value in bundle.items() if name != "ca_certificate_pem"}
    assert (await world.operator("DELETE", f"{device.home}/cas/{ca['id']}")).status == 204
    assert (await world.operator("DELETE", f"{device.home}/cas/{ca['id']}")).status == 404
    assert (await device("GET", bundle_path)).status == 404
    ref = {"ca_id": ca["id"], "serial": ca["serial_number"], "ca_name": "lab"}
    reported = [(s["type"], s["ref"]) for s in (await device.poll()).data["signals"]]
    assert reported == [("ca.assigned", ref), ("ca.unassigned", ref)]


async def test_the_default_ca_is_the_planes_root(world: World) -> None:
    ca = (await world.operator("POST", "/apiv1/users/1/cas", {"name": "own"})).data
    assert ca["ca_certificate_pem"] == world.plane.ca.root_pem


async def test_invalid_ca_certificates_are_refused(world: World) -> None:
    now = dt.datetime(2026, 9, 1, tzinfo=dt.UTC).timestamp()
    root = new_root("private CA", not_before=now, not_after=now + 86_400)
    leaf = pem_of(
        sign_leaf(root, new_key("ecdsa-p256").public_key(), ["a.example"], not_before=now, not_after=now + 3600)
    )
    for pem in ("x", leaf, root.pem + root.pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "é"):
        reply = await world.operator("POST", "/apiv1/users/1/cas", {"name": "x", "ca_certificate_pem": pem})
        assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert (await world.operator("POST", "/apiv1/users/1/cas", {"name": ""})).status == 400


# --- reports -------------------------------------------------------------------------------------------------------


def ack(cert_id: int = 1, ts_ms: int = 1_790_000_000_000, outcome: str = "applied", **more: object) -> dict[str, Any]:
    signal = {"type": "cert.renewed", "ts_ms": ts_ms, "ref": {"cert_id": cert_id}}
    return {"type": "signal.ack", "signal": signal, "outcome": outcome, "duration_ms": 12} | more


async def report(device: Device, *events: object) -> Any:
    return await device("POST", NOTIFY, {"schema": SCHEMA, "events": list(events)})


async def test_outcomes_are_stored_and_shown(world: World) -> None:
    device = await world.device()
    deployed = [{"cert_id": 1, "serial": "04:ab", "fingerprint_sha256": "aa", "targets": ["/etc/x"]}]
    events = [
        {"type": "agent_version", "version": "9.9", "features": ["csr", 7, "new\n" * 20, "a"]},
        ack(deployed=deployed, detail="served\nby \x1b[31mnginx"), ack(2, outcome="failed"), {"type": "news"},
    ]  # fmt: skip
    reply = await report(device, *events)
    assert (reply.status, reply.body) == (204, b"")
    rows = (await world.operator("GET", f"{device.home}/outcomes")).data
    by_cert = {row["signal"]["ref"]["cert_id"]: row for row in rows}
    assert by_cert[1]["deployed"] == deployed
    assert (by_cert[1]["outcome"], by_cert[1]["detail"], by_cert[1]["duration_ms"]) == (
        "applied", "served by [31mnginx", 12,
    )  # fmt: skip
    shown = (await world.operator("GET", device.home)).data
    assert (shown["app_version"], shown["outcomes"]) == ("9.9", {"applied": 1, "failed": 1})
    assert shown["features"][:2] == ["a", "csr"]
    assert len(shown["features"]) == 3


async def test_the_features_of_the_last_start_count(world: World) -> None:
    device = await world.device()
    assert (await world.operator("GET", device.home)).data["features"] == ["key-proof"], "from its registration"
    for announced in (["csr"], []):
        await report(device, {"type": "agent_version", "version": "9.9", "features": announced})
        assert (await world.operator("GET", device.home)).data["features"] == announced
    await report(device, {"type": "agent_version", "version": "0.1"})
    assert (await world.operator("GET", device.home)).data["features"] == [], "an older agent names none"


async def test_devices_show_the_outcomes_of_the_last_day(world: World) -> None:
    device = await world.device()
    await report(device, ack(1, outcome="failed"), ack(2, outcome="failed"))
    world.clock.advance(80_000)
    assert (await world.operator("GET", device.home)).data["outcomes"] == {"failed": 2}
    world.clock.advance(7000)
    assert (await world.operator("GET", device.home)).data["outcomes"] == {}


async def test_the_last_outcome_of_a_signal_counts(world: World) -> None:
    device = await world.device()
    await report(device, ack(outcome="failed", detail="no disk"))
    world.clock.advance(60)
    await report(device, ack(outcome="applied"), ack(ts_ms=1_790_000_000_001, outcome="unchanged"))
    rows = (await world.operator("GET", f"{device.home}/outcomes")).data
    assert [row["outcome"] for row in rows] == ["unchanged", "applied"]
    assert (await world.operator("GET", f"{device.home}/outcomes?limit=1")).data == rows[:1]
    assert (await world.operator("GET", f"{device.home}/outcomes?limit=0")).status == 400


async def test_outcomes_are_bounded_per_device(build: Callable[..., Any]) -> None:
    world = build(outcomes_kept=5)
    device = await world.device()
    for number in range(20):
        world.clock.advance(1)
        await report(device, ack(number))
    rows = (await world.operator("GET", f"{device.home}/outcomes")).data
    assert [row["signal"]["ref"]["cert_id"] for row in rows] == [19, 18, 17, 16, 15]


@pytest.mark.parametrize(
    "body",
    [
        [], {}, {"schema": "v0", "events": []}, {"schema": SCHEMA}, {"schema": SCHEMA, "events": {}},
        {"schema": SCHEMA, "events": [1]}, {"schema": SCHEMA, "events": [{}]},
        {"schema": SCHEMA, "events": [{"type": "signal.ack"}]},
        {"schema": SCHEMA, "events": [ack(outcome="perfect")]},
        {"schema": SCHEMA, "events": [ack(), {"type": "signal.ack", "signal": 1, "outcome": "applied"}]},
        {"schema": SCHEMA, "events": [ack(number) for number in range(101)]},
    ],
)  # fmt: skip
async def test_a_batch_is_stored_whole_or_not_at_all(world: World, body: object) -> None:
    device = await world.device()
    reply = await device("POST", NOTIFY, body)
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert (await world.operator("GET", f"{device.home}/outcomes")).data == []


async def test_odd_values_in_a_report_are_tolerated(world: World) -> None:
    device = await world.device()
    odd = ack(detail=["x"], duration_ms="soon", deployed={"a": 1})
    odd["signal"] = {"type": 7, "ts_ms": -5, "ref": {"cert_id": {"x": "y" * 9000}}}
    assert (await report(device, odd)).status == 204
    (row,) = (await world.operator("GET", f"{device.home}/outcomes")).data
    assert row["signal"] == {"type": "7", "ts_ms": 0, "ref": {}}
    assert (row["detail"], row["deployed"], row["duration_ms"]) == ("", [], 0)


@pytest.mark.parametrize("kind", ["devices", "certificates"])
async def test_lists_come_in_pages_or_all_at_once(world: World, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("certctrl.plane.http.listing.MAX_PAGE", 2)
    path = f"/apiv1/users/1/{kind}"
    bodies: list[dict[str, str]] = [
        {"device_public_id": f"{n:08}-0000-4000-8000-000000000000", "domain_name": f"n{n}.example"} for n in range(5)
    ]
    made = [(await world.operator("POST", path, body)).data["id"] for body in bodies]

    async def ids(query: str) -> list[int]:
        return [row["id"] for row in (await world.operator("GET", path + query)).data]

    assert await ids("") == made
    assert await ids("?after_id=" + str(made[1])) == made[2:]
    assert await ids("?limit=2") == made[:2]
    assert await ids(f"?after_id={made[3]}&limit=2") == made[4:]
    for query in ("?limit=0", "?limit=3", "?limit=x", "?after_id=-1"):
        assert (await world.operator("GET", path + query)).status == 400
