"""Device grants, registration, enrolment tokens, refresh (api.md §1, §2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from nacl.public import PrivateKey

START = {"action": "device_start", "scopes": ["updates"], "name": "web-1", "platform": "linux"}
REGISTER = "/apiv1/device/registration"
REFRESH = "/auth/token/refresh"
PUBLIC_ID = "23229bf7-5172-02c7-59a2-76d5b4a40090"


async def start(world: Any, **more: Any) -> dict[str, Any]:
    reply = await world.stranger("POST", "/auth/device", START | more)
    data: dict[str, Any] = reply.data
    return data


async def poll(world: Any, grant: dict[str, Any]) -> dict[str, Any]:
    body = {"action": "device_poll", "device_code": grant["device_code"]}
    data: dict[str, Any] = (await world.stranger("POST", "/auth/device", body)).data
    return data


async def decide(world: Any, grant: dict[str, Any], approve: bool = True) -> Any:
    return await world.operator("POST", f"/apiv1/device-grants/{grant['user_code']}", {"approve": approve})


async def test_the_whole_device_grant(world: Any, form: Callable[..., dict[str, Any]]) -> None:
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
    reply = await world.stranger(
        "POST", REGISTER, form(PUBLIC_ID, secret) | {"user_id": 1, "registration_code": ready["registration_code"]}
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
    assert await poll(world, grant) == {"status": "expired"}, "a grant is good for one registration"


async def test_denied(world: Any) -> None:
    grant = await start(world)
    await decide(world, grant, approve=False)
    assert await poll(world, grant) == {"status": "access_denied"}


async def test_expired(world: Any) -> None:
    grant = await start(world)
    world.clock.advance(600)
    assert await poll(world, grant) == {"status": "expired"}
    assert (await decide(world, grant)).status == 404
    assert await poll(world, {"device_code": "nobody's"}) == {"status": "expired"}


async def test_decided_once(world: Any) -> None:
    grant = await start(world)
    await decide(world, grant)
    reply = await decide(world, grant, approve=False)
    assert (reply.status, reply.key) == (409, "ALREADY_DECIDED")
    assert (await poll(world, grant))["status"] == "ready"


async def test_who_polls_too_fast_is_slowed_down_for_good(world: Any) -> None:
    grant = await start(world)
    assert (await poll(world, grant))["status"] == "authorization_pending"
    world.clock.advance(4.6)
    assert (await poll(world, grant))["status"] == "authorization_pending", "a little early is on time"
    world.clock.advance(3)
    assert (await poll(world, grant))["status"] == "slow_down"
    world.clock.advance(5)
    assert (await poll(world, grant))["status"] == "slow_down", "the interval is 10 s now"
    world.clock.advance(15)
    assert (await poll(world, grant))["status"] == "authorization_pending"


async def test_a_clock_that_steps_back_slows_nobody_down(world: Any) -> None:
    grant = await start(world)
    await poll(world, grant)
    world.clock.wall -= 60
    assert (await poll(world, grant))["status"] == "authorization_pending"


async def test_user_codes_are_read_however_they_are_typed(world: Any) -> None:
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
    await start(world, name="web-2")
    reply = await world.stranger("POST", "/auth/device", START)
    assert (reply.status, reply.key, reply.headers["retry-after"]) == (503, "SERVICE_UNAVAILABLE", "60")
    rows = (await world.operator("GET", "/apiv1/device-grants")).data
    assert [row["name"] for row in rows] == ["web-1", "web-2"]
    await decide(world, first)
    await start(world)


async def test_one_address_may_not_start_grants_without_end(world: Any) -> None:
    statuses = [(await world.stranger("POST", "/auth/device", START)).status for _ in range(21)]
    assert statuses == [200] * 20 + [429]
    world.stranger.address = "198.51.100.9"
    assert (await world.stranger("POST", "/auth/device", START)).status == 200


async def test_the_registration_code_fits_one_device_one_user_and_a_while(
    world: Any, form: Callable[..., dict[str, Any]]
) -> None:
    secret = PrivateKey.generate()
    grant = await start(world, device_public_id=PUBLIC_ID)
    await decide(world, grant)
    code = (await poll(world, grant))["registration_code"]
    newest = (await poll(world, grant))["registration_code"]

    async def register(public_id: str, user_id: int, code: str) -> Any:
        body = form(public_id, secret) | {"user_id": user_id, "registration_code": code}
        return await world.stranger("POST", REGISTER, body)

    assert (await register(PUBLIC_ID, 1, code)).key == "INVALID_TOKEN", "each answer replaces the code"
    assert (await register("another-device", 1, newest)).key == "INVALID_TOKEN"
    assert (await register(PUBLIC_ID, 2, newest)).key == "INVALID_TOKEN"
    assert (await register(PUBLIC_ID, 1, "guess")).key == "INVALID_TOKEN"
    world.clock.advance(301)
    assert (await register(PUBLIC_ID, 1, newest)).key == "INVALID_TOKEN"
    newest = (await poll(world, grant))["registration_code"]
    assert (await register(PUBLIC_ID, 1, newest)).status == 200
    assert (await register(PUBLIC_ID, 1, newest)).key == "INVALID_TOKEN"


async def test_a_person_may_bring_back_a_revoked_device_and_give_it_a_new_key(
    world: Any, form: Callable[..., dict[str, Any]]
) -> None:
    device = await world.device()
    world.plane.devices.revoke(1, device.id, "lost")
    grant = await start(world)
    await decide(world, grant)
    code = (await poll(world, grant))["registration_code"]
    other = PrivateKey.generate()
    reply = await world.stranger(
        "POST", REGISTER, form(device.public_id, other) | {"user_id": 1, "registration_code": code}
    )
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
async def test_a_registration_that_does_not_fit_is_told_so(
    world: Any, form: Callable[..., dict[str, Any]], change: dict[str, Any]
) -> None:
    body = form(PUBLIC_ID, PrivateKey.generate()) | {"user_id": 1, "registration_code": "x"} | change
    reply = await world.stranger("POST", REGISTER, body)
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert reply.json["error"]["params"]["field"] == next(iter(change))


async def test_names_are_kept_as_one_clean_line(world: Any) -> None:
    await world.device(name="web\n-1\x1b[31m \u202eevil" + "x" * 500)
    row = (await world.operator("GET", "/apiv1/users/1/devices")).data[0]
    assert row["name"].startswith("web -1[31m evilxxx")
    assert len(row["name"]) == 100


# --- enrolment tokens -----------------------------------------------------------------------------------------------


async def token_for(world: Any, **options: Any) -> dict[str, Any]:
    reply = await world.operator("POST", "/apiv1/users/1/enrolment-tokens", options)
    assert reply.status == 201
    data: dict[str, Any] = reply.data
    return data


async def enrol(world: Any, body: dict[str, Any], token: str) -> Any:
    return await world.stranger("POST", REGISTER, body | {"enrolment_token": token})


async def test_a_token_is_good_once_unless_told_otherwise(world: Any, form: Callable[..., dict[str, Any]]) -> None:
    token = await token_for(world, label="rack 7")
    assert (token["label"], token["max_uses"], token["uses"]) == ("rack 7", 1, 0)
    assert (await enrol(world, form("device-a", PrivateKey.generate()), token["token"])).status == 200
    reply = await enrol(world, form("device-b", PrivateKey.generate()), token["token"])
    assert (reply.status, reply.key) == (401, "INVALID_TOKEN")
    (row,) = (await world.operator("GET", "/apiv1/users/1/enrolment-tokens")).data
    assert row["uses"] == 1
    assert "token" not in row


async def test_the_same_device_may_come_again_when_the_answer_was_lost(
    world: Any, form: Callable[..., dict[str, Any]]
) -> None:
    token, secret = (await token_for(world))["token"], PrivateKey.generate()
    first = await enrol(world, form("device-a", secret), token)
    second = await enrol(world, form("device-a", secret), token)
    assert first.data["device"] == second.data["device"]
    assert first.data["session"]["access_token"] != second.data["session"]["access_token"]


async def test_tokens_with_many_uses_without_bound_and_ended(world: Any, form: Callable[..., dict[str, Any]]) -> None:
    two, free = (await token_for(world, uses=2)), (await token_for(world, uses=None))
    for number in range(3):
        reply = await enrol(world, form(f"device-a{number}", PrivateKey.generate()), two["token"])
        assert reply.status == (200 if number < 2 else 401)
        assert (await enrol(world, form(f"device-b{number}", PrivateKey.generate()), free["token"])).status == 200
    assert (await world.operator("DELETE", f"/apiv1/users/1/enrolment-tokens/{free['id']}")).status == 204
    assert (await enrol(world, form("device-b9", PrivateKey.generate()), free["token"])).status == 401


async def test_a_token_expires(world: Any, form: Callable[..., dict[str, Any]]) -> None:
    token = (await token_for(world, expires_in=60))["token"]
    world.clock.advance(60)
    assert (await enrol(world, form("device-a", PrivateKey.generate()), token)).status == 401
    assert (await enrol(world, form("device-a", PrivateKey.generate()), "et_guess")).status == 401


@pytest.mark.parametrize("options", [{"uses": 0}, {"uses": "1"}, {"expires_in": 0}, {"expires_in": 10**12}])
async def test_a_token_that_makes_no_sense_is_refused(world: Any, options: dict[str, Any]) -> None:
    assert (await world.operator("POST", "/apiv1/users/1/enrolment-tokens", options)).status == 400


async def test_a_token_brings_back_no_revoked_device_and_replaces_no_key(
    world: Any, form: Callable[..., dict[str, Any]]
) -> None:
    device = await world.device()
    token = (await token_for(world, uses=None))["token"]
    reply = await enrol(world, form(device.public_id, PrivateKey.generate()), token)
    assert (reply.status, reply.key) == (409, "KEY_MISMATCH")
    assert (await device.poll()).status == 204, "the device in place is untouched"
    world.plane.devices.revoke(1, device.id, "stolen")
    assert (await enrol(world, form(device.public_id, device.secret), token)).key == "DEVICE_REVOKED"


async def test_nothing_is_used_up_by_a_refused_registration(world: Any, form: Callable[..., dict[str, Any]]) -> None:
    device = await world.device()
    token = (await token_for(world))["token"]
    await enrol(world, form(device.public_id, PrivateKey.generate()), token)
    assert (await enrol(world, form("device-new", PrivateKey.generate()), token)).status == 200


async def test_a_device_can_be_expected(world: Any, form: Callable[..., dict[str, Any]]) -> None:
    """An operator prepares a host before it exists; the host finds its certificates waiting."""
    row = (await world.operator("POST", "/apiv1/users/1/devices", {"device_public_id": PUBLIC_ID, "name": "db-1"})).data
    assert (row["status"], row["name"]) == ("expected", "db-1")
    again = await world.operator("POST", "/apiv1/users/1/devices", {"device_public_id": PUBLIC_ID})
    assert again.status == 409
    await world.plane.certificates.issue(1, ["db.example"], device_ids=[row["id"]])
    device = await world.device(PUBLIC_ID)
    assert device.id == row["id"]
    assert [s["type"] for s in (await device.poll()).data["signals"]] == ["cert.renewed"]


# --- refresh --------------------------------------------------------------------------------------------------------


async def refresh(device: Any, token: str = "", public_id: str = "") -> Any:
    body = {"refresh_token": token or device.refresh_token, "device_public_id": public_id or device.public_id}
    return await device("POST", REFRESH, body)


async def test_refresh_gives_an_access_token_and_keeps_the_refresh_token(world: Any) -> None:
    device = await world.device()
    world.clock.advance(1000)
    assert (await device.poll()).key == "TOKEN_EXPIRED"
    first, second = (await refresh(device)).data, (await refresh(device)).data
    assert set(first) == {"access_token", "expires_in", "token_type"}
    assert first["access_token"] != second["access_token"], "two tokens of one second differ"
    device.token = first["access_token"]
    assert (await device.poll()).status == 204


async def test_refresh_tokens_rotate_where_told_to(build: Callable[..., Any]) -> None:
    world = build(rotate_refresh_tokens=True)
    device = await world.device()
    data = (await refresh(device)).data
    assert data["refresh_token"] != device.refresh_token
    assert (await refresh(device)).status == 401, "the old one is spent"
    assert (await refresh(device, data["refresh_token"])).status == 200


async def test_a_refresh_that_does_not_fit_is_refused(world: Any) -> None:
    device, other = await world.device(), await world.device("device-number-2")
    name, _, secret = device.refresh_token.partition(".")
    for token in ("x", name, f"{name}.", f"{name}.{secret[::-1]}", f"{other.refresh_token.partition('.')[0]}.{secret}"):
        reply = await refresh(device, token)
        assert (reply.status, reply.key) == (401, "INVALID_TOKEN"), token
    assert (await refresh(device, public_id=other.public_id)).key == "INVALID_TOKEN"
    assert (await refresh(device)).status == 200


async def test_a_refresh_token_ends_when_it_is_not_used(world: Any) -> None:
    device = await world.device()
    for _ in range(3):
        world.clock.advance(89 * 86_400)
        assert (await refresh(device)).status == 200
    world.clock.advance(90 * 86_400)
    assert (await refresh(device)).key == "INVALID_TOKEN"
    world.plane.tidy()
    assert world.plane.database.one("SELECT count(*) AS n FROM refresh_tokens")["n"] == 0
