"""Requests and the database: one unit of work each (``World`` fails statements outside of them)."""

from __future__ import annotations

from typing import Any

import pytest
from issued import issue
from plane_world import UPDATES, World

SELF = "/apiv1/devices/self"


async def test_a_request_of_a_device_is_one_unit_of_work(world: World) -> None:
    device = await world.device()
    cert_id = (await issue(world, "a.example", device_ids=[device.id]))["id"]
    ca = (await world.operator("POST", "/apiv1/users/1/cas", {"name": "root"})).data["id"]
    await world.operator("POST", f"{device.home}/cas", {"ca_id": ca})
    events: dict[str, Any] = {"schema": "certctrl.device.notify.v1", "events": []}
    fresh = {"refresh_token": device.refresh_token, "device_public_id": device.public_id}
    requests: list[tuple[str, str, Any]] = [
        ("GET", UPDATES, None), ("POST", f"{SELF}/notify", events), ("POST", "/auth/token/refresh", fresh),
        ("GET", f"{SELF}/certificates", None), ("GET", f"{SELF}/certificates/{cert_id}", None),
        ("GET", f"{SELF}/certificates/{cert_id}/deploy-materials", None), ("GET", f"{SELF}/install-config", None),
        ("GET", f"{SELF}/cas", None), ("GET", f"{SELF}/cas/{ca}/bundle", None),
    ]  # fmt: skip
    world.units.of.clear()
    for method, path, body in requests:
        assert (await device(method, path, body)).status in (200, 204), path
    assert world.units.of == {f"{method} {path}": 1 for method, path, _ in requests}


async def test_a_report_of_many_outcomes_is_a_long_unit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    device, long = await world.device(), []
    work_long = world.plane.work_long

    async def noted(*args: Any) -> Any:
        long.append(args)
        return await work_long(*args)

    monkeypatch.setattr(world.plane, "work_long", noted)
    world.units.of.clear()
    for count in (5, 6):
        signal = {"type": "cert.renewed", "ts_ms": 1, "ref": {"cert_id": 1}}
        events = [{"type": "signal.ack", "signal": signal, "outcome": "applied"}] * count
        body = {"schema": "certctrl.device.notify.v1", "events": events}
        assert (await device("POST", f"{SELF}/notify", body)).status == 204
        assert len(long) == count - 5
    assert world.units.of == {f"POST {SELF}/notify": 2}


async def test_a_request_of_an_operator_is_one_unit_of_work_after_its_sign_in(world: World) -> None:
    device = await world.device()
    user = "/apiv1/users/1"
    cert_id = (await issue(world, "a.example", device_ids=[device.id]))["id"]
    requests: list[tuple[str, str, Any]] = [
        ("GET", f"{user}/devices", None), ("GET", device.home, None), ("GET", f"{device.home}/outcomes", None),
        ("POST", f"{device.home}/resync", {}), ("PUT", f"{device.home}/install-config", {"installs": []}),
        ("GET", f"{user}/certificates", None), ("GET", f"{user}/enrolment-tokens", None),
        ("DELETE", f"{device.home}/certificates/{cert_id}", None),
        ("POST", f"{device.home}/certificates", {"cert_id": cert_id}),
        ("POST", f"{user}/certificates/{cert_id}/revoke", {}), ("DELETE", device.home, None),
    ]  # fmt: skip
    world.units.of.clear()
    for method, path, body in requests:
        assert (await world.operator(method, path, body)).status < 300, path
    assert world.units.of == {f"{method} {path}": 2 for method, path, _ in requests}, "one reads whether the key is on"
    world.units.of.clear()
    assert (await world.operator("POST", f"{user}/certificates/{cert_id}/issues", {"action": "renew"})).status == 202
    assert set(world.units.of.values()) == {4}, (
        "let in, checked, then signed by the intermediate that is stored now, then stored"
    )
