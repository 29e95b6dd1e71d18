"""Enrolment tokens and their uses; refresh tokens and their expiry (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nacl.public import PrivateKey
from plane_world import Device, World

PUBLIC_ID = "23229bf7-5172-02c7-59a2-76d5b4a40090"
REFRESH = "/auth/token/refresh"

# --- enrolment tokens -----------------------------------------------------------------------------------------------


async def token_for(world: World, **options: object) -> dict[str, Any]:
    reply = await world.operator("POST", "/apiv1/users/1/enrolment-tokens", options)
    assert reply.status == 201
    data: dict[str, Any] = reply.data
    return data


async def enrol(world: World, body: dict[str, Any], token: str) -> Any:
    return await world.register(body | {"enrolment_token": token})


async def test_a_token_is_valid_once_by_default(world: World, form: Callable[..., dict[str, Any]]) -> None:
    token = await token_for(world, label="rack 7")
    assert (token["label"], token["max_uses"], token["uses"]) == ("rack 7", 1, 0)
    assert (await enrol(world, form("device-a", PrivateKey.generate()), token["token"])).status == 200
    reply = await enrol(world, form("device-b", PrivateKey.generate()), token["token"])
    assert (reply.status, reply.key) == (401, "INVALID_TOKEN")
    (row,) = (await world.operator("GET", "/apiv1/users/1/enrolment-tokens")).data
    assert row["uses"] == 1
    assert "token" not in row


async def test_a_device_may_reuse_its_token_after_a_lost_response(
    world: World, form: Callable[..., dict[str, Any]]
) -> None:
    token, secret = (await token_for(world))["token"], PrivateKey.generate()
    first = await enrol(world, form("device-a", secret), token)
    second = await enrol(world, form("device-a", secret), token)
    assert first.data["device"] == second.data["device"]
    assert first.data["session"]["access_token"] != second.data["session"]["access_token"]


async def test_tokens_with_several_uses_unlimited_uses_and_ended(
    world: World, form: Callable[..., dict[str, Any]]
) -> None:
    two, free = (await token_for(world, uses=2)), (await token_for(world, uses=None))
    for number in range(3):
        reply = await enrol(world, form(f"device-a{number}", PrivateKey.generate()), two["token"])
        assert reply.status == (200 if number < 2 else 401)
        assert (await enrol(world, form(f"device-b{number}", PrivateKey.generate()), free["token"])).status == 200
    assert (await world.operator("DELETE", f"/apiv1/users/1/enrolment-tokens/{free['id']}")).status == 204
    assert (await enrol(world, form("device-b9", PrivateKey.generate()), free["token"])).status == 401


async def test_a_token_expires(world: World, form: Callable[..., dict[str, Any]]) -> None:
    token = (await token_for(world, expires_in=60))["token"]
    world.clock.advance(60)
    expired = await enrol(world, form("device-a", PrivateKey.generate()), token)
    assert (expired.status, expired.what.partition(" at ")[0]) == (401, "Enrolment token expired")
    unknown = await enrol(world, form("device-a", PrivateKey.generate()), "et_guess")
    assert (unknown.status, unknown.what) == (401, "Enrolment token is unknown")


@pytest.mark.parametrize("options", [{"uses": 0}, {"uses": "1"}, {"expires_in": 0}, {"expires_in": 10**12}])
async def test_invalid_token_options_are_refused(world: World, options: dict[str, Any]) -> None:
    assert (await world.operator("POST", "/apiv1/users/1/enrolment-tokens", options)).status == 400


async def test_a_token_neither_restores_a_revoked_device_nor_replaces_a_key(
    world: World, form: Callable[..., dict[str, Any]]
) -> None:
    device = await world.device()
    token = (await token_for(world, uses=None))["token"]
    reply = await enrol(world, form(device.public_id, PrivateKey.generate()), token)
    assert (reply.status, reply.key) == (409, "KEY_MISMATCH")
    assert (await device.poll()).status == 204, "the registered device is unchanged"
    world.plane.devices.revoke(1, device.id, "stolen")
    assert (await enrol(world, form(device.public_id, device.secret), token)).key == "DEVICE_REVOKED"


async def test_a_refused_registration_uses_nothing_up(world: World, form: Callable[..., dict[str, Any]]) -> None:
    device = await world.device()
    token = (await token_for(world))["token"]
    await enrol(world, form(device.public_id, PrivateKey.generate()), token)
    assert (await enrol(world, form("device-new", PrivateKey.generate()), token)).status == 200


async def test_a_device_can_be_added_before_it_registers(world: World, form: Callable[..., dict[str, Any]]) -> None:
    """An operator adds a host before it exists; its certificates are ready when it registers."""
    row = (await world.operator("POST", "/apiv1/users/1/devices", {"device_public_id": PUBLIC_ID, "name": "db-1"})).data
    assert (row["status"], row["name"]) == ("expected", "db-1")
    again = await world.operator("POST", "/apiv1/users/1/devices", {"device_public_id": PUBLIC_ID})
    assert again.status == 409
    await world.plane.certificates.issue(1, ["db.example"], device_ids=[row["id"]])
    device = await world.device(PUBLIC_ID)
    assert device.id == row["id"]
    assert [s["type"] for s in (await device.poll()).data["signals"]] == ["cert.renewed"]


# --- refresh --------------------------------------------------------------------------------------------------------


async def refresh(device: Device, token: str = "", public_id: str = "") -> Any:
    body = {"refresh_token": token or device.refresh_token, "device_public_id": public_id or device.public_id}
    return await device("POST", REFRESH, body)


async def test_refresh_gives_an_access_token_and_keeps_the_refresh_token(world: World) -> None:
    device = await world.device()
    world.clock.advance(1000)
    assert (await device.poll()).key == "TOKEN_EXPIRED"
    first, second = (await refresh(device)).data, (await refresh(device)).data
    assert set(first) == {"access_token", "expires_in", "features", "token_type"}
    assert first["access_token"] != second["access_token"], "two tokens of the same second differ"
    device.token = first["access_token"]
    assert (await device.poll()).status == 204


async def test_refresh_tokens_rotate_if_enabled(build: Callable[..., Any]) -> None:
    world = build(rotate_refresh_tokens=True)
    device = await world.device()
    data = (await refresh(device)).data
    assert data["refresh_token"] != device.refresh_token
    assert (await refresh(device)).status == 401, "the old token is void"
    assert (await refresh(device, data["refresh_token"])).status == 200


async def test_an_invalid_refresh_is_refused(world: World) -> None:
    device, other = await world.device(), await world.device("device-number-2")
    name, _, secret = device.refresh_token.partition(".")
    for token in ("x", name, f"{name}.", f"{name}.{secret[::-1]}", f"{other.refresh_token.partition('.')[0]}.{secret}"):
        reply = await refresh(device, token)
        assert (reply.status, reply.key) == (401, "INVALID_TOKEN"), token
    assert (await refresh(device, public_id=other.public_id)).key == "INVALID_TOKEN"
    assert (await refresh(device)).status == 200


async def test_an_unused_refresh_token_expires(world: World) -> None:
    device = await world.device()
    for _ in range(3):
        world.clock.advance(89 * 86_400)
        assert (await refresh(device)).status == 200
    world.clock.advance(90 * 86_400)
    reply = await refresh(device)
    assert (reply.key, reply.what.partition(" at ")[0]) == ("INVALID_TOKEN", "Refresh token expired")
    world.plane.housekeeping.tidy()
    assert (await refresh(device)).what == reply.what, "kept for a while, to be distinguished from an unknown one"
    world.clock.advance(30 * 86_400)
    world.plane.housekeeping.tidy()
    assert (await refresh(device)).what == "Refresh token is unknown or was used already"
    assert world.plane.database.one("SELECT count(*) AS n FROM refresh_tokens")["n"] == 0
