"""Device grants and registration: decided once, rate-limited, for one device and one user (docs/protocol.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from nacl.public import PrivateKey
from plane_world import World

REGISTER = "/apiv1/device/registration"
PUBLIC_ID = "23229bf7-5172-02c7-59a2-76d5b4a40090"

START = {"action": "device_start", "scopes": ["updates"], "name": "web-1", "platform": "linux"}


async def start(world: World, **more: object) -> dict[str, Any]:
    reply = await world.stranger("POST", "/auth/device", START | more)
    data: dict[str, Any] = reply.data
    return data


async def poll(world: World, grant: dict[str, Any]) -> dict[str, Any]:
    body = {"action": "device_poll", "device_code": grant["device_code"]}
    data: dict[str, Any] = (await world.stranger("POST", "/auth/device", body)).data
    return data


async def decide(world: World, grant: dict[str, Any], approve: bool = True) -> Any:
    return await world.operator("POST", f"/apiv1/device-grants/{grant['user_code']}", {"approve": approve})


async def test_the_whole_device_grant(world: World, form: Callable[..., dict[str, Any]]) -> None:
    grant = await start(world)
    assert grant["interval"] == 5
    assert grant["expires_in"] == 600
    assert grant["verification_uri"] == "https://plane.test/device"
    assert grant["verification_uri_complete"] == f"https://plane.test/device?user_code={grant['user_code']}"
    assert await poll(world, grant) == {"status": "authorization_pending"}
    shown = (await decide(world, grant)).data
    assert (shown["status"], shown["name"], shown["platform"], shown["address"]) == (
        "approved", "web-1", "linux", "192.0.2.7",
    )  # fmt: skip
    ready = await poll(world, grant)
    assert (ready["status"], ready["user_id"], ready["registration_code_ttl"]) == ("ready", 1, 300)
    secret = PrivateKey.generate()
    reply = await world.register(
        form(PUBLIC_ID, secret) | {"user_id": 1, "registration_code": ready["registration_code"]}
    )
    assert reply.data["device"] == {
        "id": 1, "user_id": 1, "device_public_id": PUBLIC_ID, "status": "active", "name": "web-1",
    }  # fmt: skip
    session = reply.data["session"]
    assert (session["token_type"], session["expires_in"]) == ("Bearer", 900)
    assert session["refresh_token"].startswith("rt_")
    row = (await world.operator("GET", "/apiv1/users/1/devices/1")).data
    digest = hashlib.blake2b(bytes(secret.public_key), digest_size=32).hexdigest()
    assert row["key_fingerprint"] == digest
    assert await poll(world, grant) == {"status": "expired"}, "a grant is valid for one registration"


async def test_denied(world: World) -> None:
    grant = await start(world)
    await decide(world, grant, approve=False)
    assert await poll(world, grant) == {"status": "access_denied"}


async def test_expired(world: World) -> None:
    grant = await start(world)
    world.clock.advance(600)
    assert await poll(world, grant) == {"status": "expired"}
    assert (await decide(world, grant)).status == 404
    assert await poll(world, {"device_code": "nobody's"}) == {"status": "expired"}


async def test_decided_once(world: World) -> None:
    grant = await start(world)
    await decide(world, grant)
    reply = await decide(world, grant, approve=False)
    assert (reply.status, reply.key) == (409, "ALREADY_DECIDED")
    assert (await poll(world, grant))["status"] == "ready"


async def test_polling_too_fast_increases_the_interval_permanently(world: World) -> None:
    grant = await start(world)
    assert (await poll(world, grant))["status"] == "authorization_pending"
    world.clock.advance(4.6)
    assert (await poll(world, grant))["status"] == "authorization_pending", "polls may be slightly early"
    world.clock.advance(3)
    assert (await poll(world, grant))["status"] == "slow_down"
    world.clock.advance(5)
    assert (await poll(world, grant))["status"] == "slow_down", "the interval is 10 s now"
    world.clock.advance(15)
    assert (await poll(world, grant))["status"] == "authorization_pending"


async def test_the_interval_grows_to_a_minute_at_most(world: World) -> None:
    grant = await start(world)
    await poll(world, grant)
    for _ in range(30):
        world.clock.advance(2)
        assert (await poll(world, grant))["status"] == "slow_down"
    world.clock.advance(60)
    assert (await poll(world, grant))["status"] == "authorization_pending"


async def poll_until_limited(world: World, device_code: str, most: int) -> Any:
    """Poll without a pause until the answer is 429; return it."""
    for _ in range(most):
        reply = await world.stranger("POST", "/auth/device", {"action": "device_poll", "device_code": device_code})
        if reply.status != 200:
            return reply
    raise AssertionError(f"{most} polls were all answered")


async def test_a_device_code_is_polled_at_a_limited_rate(world: World) -> None:
    grant, other = await start(world), await start(world)
    await decide(world, grant)
    reply = await poll_until_limited(world, grant["device_code"], 11)
    assert (reply.status, reply.key, reply.headers["retry-after"]) == (429, "RATE_LIMITED", "1")
    assert (await poll(world, other))["status"] == "authorization_pending", "another device behind the same address"
    world.clock.advance(1)
    assert (await poll(world, grant))["status"] == "ready"


async def test_an_address_tries_device_codes_at_a_limited_rate(world: World) -> None:
    grant = await start(world)
    reply = await poll_until_limited(world, "nobody's", 61)
    assert (reply.status, reply.key, reply.headers["retry-after"]) == (429, "RATE_LIMITED", "1")
    assert (await poll(world, grant))["status"] == "authorization_pending", "the right code is not kept out"
    world.stranger.address = "198.51.100.7"
    assert await poll(world, {"device_code": "nobody's"}) == {"status": "expired"}


async def test_a_clock_step_back_does_not_slow_polls_down(world: World) -> None:
    grant = await start(world)
    await poll(world, grant)
    world.clock.wall -= 60
    assert (await poll(world, grant))["status"] == "authorization_pending"


async def test_user_codes_are_accepted_in_any_spelling(world: World) -> None:
    grant = await start(world)
    code: str = grant["user_code"]
    letters = code.replace("-", "")
    assert len(letters) == 8
    assert not set(letters) & set("AEIOUY0123456789")
    for typed in (code.lower(), letters, f"%20{letters[:4]}%20{letters[4:]}", letters.lower()):
        reply = await world.operator("GET", f"/apiv1/device-grants/{typed.replace('%20', ' ')}")
        assert reply.data["user_code"] == code


async def test_pending_grants_are_listed_and_bounded(build: Callable[..., Any]) -> None:
    world = build(pending_grants=2)
    first = await start(world)
    world.stranger.address = "198.51.100.7"
    await start(world, name="web-2")
    world.stranger.address = "198.51.100.8"
    reply = await world.stranger("POST", "/auth/device", START)
    assert (reply.status, reply.key, reply.headers["retry-after"]) == (503, "SERVICE_UNAVAILABLE", "60")
    rows = (await world.operator("GET", "/apiv1/device-grants")).data
    assert [row["name"] for row in rows] == ["web-1", "web-2"]
    await decide(world, first)
    await start(world)


@pytest.mark.parametrize(
    ("addresses", "other"),
    [(["192.0.2.7"] * 3, "192.0.2.8"), (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"], "2001:db8:0:1::1")],
)
async def test_one_address_may_have_a_tenth_of_the_pending_grants(
    build: Callable[..., Any], addresses: list[str], other: str
) -> None:
    world = build(pending_grants=20)
    grants = []
    for world.stranger.address in addresses[:2]:
        grants.append(await start(world))
    world.stranger.address = addresses[2]
    reply = await world.stranger("POST", "/auth/device", START)
    assert (reply.status, reply.key, reply.headers["retry-after"]) == (429, "RATE_LIMITED", "60")
    assert reply.what == "Too many devices of this address are waiting for approval"
    world.stranger.address = other
    await start(world)
    await decide(world, grants[0])
    world.stranger.address = addresses[2]
    await start(world)


async def test_refusals_of_an_address_with_too_many_pending_grants_are_rate_limited(build: Callable[..., Any]) -> None:
    world = build(pending_grants=10)
    replies = [await world.stranger("POST", "/auth/device", START) for _ in range(21)]
    assert [reply.status for reply in replies] == [200] + [429] * 20
    assert "waiting for approval" in replies[19].what
    assert replies[20].what == "Rate limit exceeded"


async def test_grants_are_rate_limited_per_address(world: World) -> None:
    statuses = [(await world.stranger("POST", "/auth/device", START)).status for _ in range(21)]
    assert statuses == [200] * 20 + [429]
    world.stranger.address = "198.51.100.9"
    assert (await world.stranger("POST", "/auth/device", START)).status == 200


async def test_a_registration_code_is_for_one_device_one_user_and_a_limited_time(
    world: World, form: Callable[..., dict[str, Any]]
) -> None:
    secret = PrivateKey.generate()
    grant = await start(world, device_public_id=PUBLIC_ID)
    await decide(world, grant)
    code = (await poll(world, grant))["registration_code"]
    newest = (await poll(world, grant))["registration_code"]

    async def register(public_id: str, user_id: int, code: str) -> Any:
        return await world.register(form(public_id, secret) | {"user_id": user_id, "registration_code": code})

    assert (await register(PUBLIC_ID, 1, code)).key == "INVALID_TOKEN", "each response replaces the code"
    assert (await register("another-device", 1, newest)).key == "INVALID_TOKEN"
    assert (await register(PUBLIC_ID, 2, newest)).key == "INVALID_TOKEN"
    assert (await register(PUBLIC_ID, 1, "guess")).key == "INVALID_TOKEN"
    world.clock.advance(301)
    assert (await register(PUBLIC_ID, 1, newest)).key == "INVALID_TOKEN"
    newest = (await poll(world, grant))["registration_code"]
    assert (await register(PUBLIC_ID, 1, newest)).status == 200
    assert (await register(PUBLIC_ID, 1, newest)).key == "INVALID_TOKEN"


async def test_an_approval_restores_a_revoked_device_with_a_new_key(
    world: World, form: Callable[..., dict[str, Any]]
) -> None:
    device = await world.device()
    world.plane.devices.revoke(1, device.id, "lost")
    world.clock.advance(1)
    grant = await start(world, device_public_id=device.public_id)
    await decide(world, grant)
    code = (await poll(world, grant))["registration_code"]
    other = PrivateKey.generate()
    reply = await world.register(form(device.public_id, other) | {"user_id": 1, "registration_code": code})
    assert (reply.data["device"]["id"], reply.data["device"]["status"]) == (device.id, "active")
    device.token = reply.data["session"]["access_token"]
    assert (await device.poll()).status == 204


@pytest.mark.parametrize(
    "change",
    [
        {"dev_pk": "!"}, {"dev_pk": "AAAA"}, {"dev_pk": "A" * 43 + "="}, {"dev_pk": None}, {"dev_pk": 7},
        {"device_public_id": ""}, {"device_public_id": "../../etc"}, {"device_public_id": "a b c d e f"},
        {"device_public_id": "x" * 65}, {"name": 7}, {"platform": ["linux"]}, {"user_id": "1"}, {"user_id": True},
        {"registration_code": ""},
    ],
)  # fmt: skip
async def test_an_invalid_registration_names_the_field(
    world: World, form: Callable[..., dict[str, Any]], change: dict[str, Any]
) -> None:
    body = form(PUBLIC_ID, PrivateKey.generate()) | {"user_id": 1, "registration_code": "x"} | change
    reply = await world.stranger("POST", REGISTER, body)
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert reply.json["error"]["params"]["field"] == next(iter(change))


async def test_names_are_kept_as_one_clean_line(world: World) -> None:
    await world.device(name="web\n-1\x1b[31m \u202eevil" + "x" * 500)
    row = (await world.operator("GET", "/apiv1/users/1/devices")).data[0]
    assert row["name"].startswith("web -1[31m evilxxx")
    assert len(row["name"]) == 100
