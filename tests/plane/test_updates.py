"""GET /apiv1/devices/self/updates: the spec's polling endpoint, status by status."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from device_polls import UPDATES, issue
from plane_world import Device, World


async def test_204_without_new_signals_has_the_cursor(world: World) -> None:
    device = await world.device()
    reply = await device.poll()
    assert reply.status == 204
    assert reply.body == b""
    assert reply.headers["cache-control"] == "no-store"
    assert "content-type" not in reply.headers
    again = await device.poll(reply.headers["etag"])
    assert (again.status, again.headers["etag"]) == (204, reply.headers["etag"])


async def test_200_with_new_signals(world: World) -> None:
    device = await world.device()
    start = (await device.poll()).headers["etag"]
    row = await issue(world, device)
    reply = await device.poll(start)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["etag"] == reply.data["cursor"] != start
    (signal,) = reply.data["signals"]
    assert signal["type"] == "cert.renewed"
    assert signal["ref"] == {"cert_id": row["id"], "serial": row["serial_number"]}
    assert isinstance(signal["ts_ms"], int)
    assert (await device.poll(reply.data["cursor"])).status == 204


async def test_the_cursor_may_be_sent_as_if_none_match(world: World) -> None:
    device = await world.device()
    await issue(world, device)
    last = (await device.poll()).headers["etag"]
    for dress in (last, f'"{last}"', f'W/"{last}"'):
        reply = await device("GET", UPDATES, headers={"if-none-match": dress})
        assert reply.status == 204, dress
    both = await device("GET", f"{UPDATES}?cursor={last}", headers={"if-none-match": '"1-1"'})
    assert both.status == 204, "the query takes precedence"


async def test_without_a_cursor_all_kept_signals_are_returned(world: World) -> None:
    device = await world.device()
    await issue(world, device, "a.example")
    await issue(world, device, "b.example")
    assert len((await device.poll()).data["signals"]) == 2


async def test_limit_pages(world: World) -> None:
    device = await world.device()
    for number in range(5):
        await issue(world, device, f"n{number}.example")
    first = await device.poll(limit=3)
    assert len(first.data["signals"]) == 3
    assert len((await device.poll(first.data["cursor"], limit=3)).data["signals"]) == 2
    assert "cert-ctrl-next-page" not in first.headers, "small pages are never free"


async def test_a_backlog_is_read_without_rate_limit(build: Callable[..., Any]) -> None:
    world = build()  # with the spec's rate
    device = await world.device()
    cursor = (await device.poll()).headers["etag"]
    with world.plane.database.transaction():
        for number in range(450):
            world.plane.stream.append(device.id, "future.kind", {"cert_id": number + 1})
    seen: list[int] = []
    for _ in range(23):
        reply = await device.poll(cursor, limit=20)
        assert reply.status == 200, "more polls than the rate limit has tokens"
        cursor = reply.data["cursor"]
        seen += [signal["ref"]["cert_id"] for signal in reply.data["signals"]]
        assert reply.headers.get("cert-ctrl-next-page", "") == ("free" if len(reply.data["signals"]) == 20 else "")
    assert seen == list(range(1, 451))


async def test_a_repeated_full_page_counts_against_the_rate(build: Callable[..., Any]) -> None:
    world = build()
    device = await world.device()
    cursor = (await device.poll()).headers["etag"]
    with world.plane.database.transaction():
        for number in range(40):
            world.plane.stream.append(device.id, "future.kind", {"cert_id": number + 1})
    statuses = [(await device.poll(cursor, limit=20)).status for _ in range(6)]
    assert statuses == [200] * 4 + [429] * 2, "a repeated page counts against the rate"


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "limit=1.0", "limit=%2B1", "wait=-1", "wait=31",
        "wait=1e1", "wait=%D9%A1", "limit=99999999999999999999",
    ],
)  # fmt: skip
async def test_400_out_of_bounds(world: World, query: str) -> None:
    device = await world.device()
    reply = await device("GET", f"{UPDATES}?{query}")
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert reply.json["error"]["params"]["field"] in ("limit", "wait")


@pytest.mark.parametrize("query", ["limit=1", "limit=100", "wait=0", "unknown=7"])
async def test_limits_are_inclusive(world: World, query: str) -> None:
    device = await world.device()
    assert (await device("GET", f"{UPDATES}?{query}")).status == 204


async def test_409_for_a_trimmed_or_foreign_cursor(build: Callable[..., Any]) -> None:
    world = build(poll_rate=1000.0, poll_burst=1000, stream_length=2)
    device = await world.device()
    start = (await device.poll()).headers["etag"]
    for number in range(3):
        await issue(world, device, f"n{number}.example")
    for cursor in (start, "1736900000-5", "junk", "%00"):
        reply = await device.poll(cursor)
        assert (reply.status, reply.key) == (409, "CURSOR_EXPIRED")
        assert reply.json["error"] == {
            "code": 40901, "what": "Cursor expired. Reset required.", "key": "CURSOR_EXPIRED", "params": {},
        }  # fmt: skip
    assert len((await device.poll()).data["signals"]) == 2, "polling without a cursor works"


async def test_429_beyond_one_a_second_with_a_burst_of_five(build: Callable[..., Any]) -> None:
    world = build()
    device, other = await world.device(), await world.device("device-number-2", "web-2")
    assert [(await device.poll()).status for _ in range(6)] == [204] * 5 + [429]
    reply = await device.poll()
    assert reply.key == "RATE_LIMITED"
    assert reply.headers["retry-after"] == "1"
    assert reply.json["error"]["code"] == 4029
    assert reply.json["error"]["params"] == {"retry_after": 1, "allowed_rate": "1 req/sec, burst 5"}
    assert (await other.poll()).status == 204, "each device has its own bucket"
    world.clock.advance(1)
    assert [(await device.poll()).status for _ in range(2)] == [204, 429]


async def test_the_rate_is_measured_on_the_steady_clock(build: Callable[..., Any]) -> None:
    world = build(access_token_seconds=10**9)
    device = await world.device()
    for _ in range(5):
        await device.poll()
    world.clock.wall += 3600
    assert (await device.poll()).status == 429
    world.clock.wall -= 7200
    world.clock.steady += 5
    assert (await device.poll()).status == 204


# --- 401 and 403 ------------------------------------------------------------------------------------------------


async def test_401_when_the_token_has_expired(world: World) -> None:
    device = await world.device()
    expires_at = int(world.clock.wall) + 900
    world.clock.advance(899)
    assert (await device.poll()).status == 204
    world.clock.advance(1)
    reply = await device.poll()
    assert (reply.status, reply.key) == (401, "TOKEN_EXPIRED")
    assert reply.json["error"]["code"] == 4001
    assert reply.json["error"]["params"] == {"expired_at": expires_at}
    assert reply.headers["www-authenticate"].startswith("Bearer")


def forged(device: Device, **changes: object) -> str:
    claims = jwt.decode(device.token, options={"verify_signature": False}) | changes
    return jwt.encode(claims, b"x" * 32, algorithm="HS256")


async def test_401_for_foreign_and_malformed_tokens(world: World) -> None:
    device = await world.device()
    head, claims, signature = device.token.split(".")
    unsigned = jwt.encode(jwt.decode(device.token, options={"verify_signature": False}), None, algorithm="none")
    for token in (
        "x", "a.b.c", f"{head}.{claims}.", f"{head}.{claims}.{signature[::-1]}", f"{head}..{signature}", unsigned,
        forged(device), forged(device, exp=10**12), forged(device, device_id="1"), "x" * 5000, world.plane.operator_key,
    ):  # fmt: skip
        device.token = token
        reply = await device.poll()
        assert (reply.status, reply.key) == (401, "INVALID_TOKEN"), token
    device.token = ""
    assert (await device.poll()).status == 401
    assert (await device("GET", UPDATES, headers={"authorization": "Basic eA=="})).status == 401


async def test_the_claims_of_an_access_token(world: World) -> None:
    device = await world.device()
    claims = jwt.decode(device.token, options={"verify_signature": False})
    now = int(world.clock.wall)
    assert jwt.get_unverified_header(device.token) == {"alg": "HS256", "typ": "JWT"}
    assert (claims["sub"], claims["device_id"]) == ("1", device.id)
    assert (claims["iat"], claims["exp"]) == (now, now + 900)
    assert claims["iss"] == claims["aud"] == "certctrl-plane"


async def test_403_for_a_revoked_device_everywhere(world: World) -> None:
    device = await world.device()
    await issue(world, device)
    reply = await world.operator("DELETE", f"{device.home}?reason=Compromised%20device")
    assert reply.data["status"] == "revoked"
    refresh = {"refresh_token": device.refresh_token, "device_public_id": device.public_id}
    asked = [
        ("GET", UPDATES, None), ("POST", "/apiv1/devices/self/notify", {"schema": "x"}),
        ("GET", "/apiv1/devices/self/certificates", None), ("GET", "/apiv1/devices/self/certificates/1", None),
        ("GET", "/apiv1/devices/self/certificates/1/deploy-materials", None),
        ("GET", "/apiv1/devices/self/install-config", None), ("GET", f"{device.home}/install-config", None),
        ("GET", "/apiv1/devices/self/cas", None), ("GET", "/apiv1/devices/self/cas/1/bundle", None),
        ("POST", "/apiv1/users/1/certificates/1/issues", {"action": "renew"}),
        ("POST", "/auth/token/refresh", refresh),
    ]  # fmt: skip
    for method, path, body in asked:
        reply = await device(method, path, body)
        assert (reply.status, reply.key) == (403, "DEVICE_REVOKED"), path
        error = reply.json["error"]
        assert error["code"] == 4003
        assert error["params"] == {"revoked_at": int(world.clock.wall), "reason": "Compromised device"}
    world.clock.advance(901)
    assert (await device.poll()).key == "DEVICE_REVOKED", "even with an expired token"


async def test_registering_again_ends_the_old_session(world: World, form: Callable[..., dict[str, Any]]) -> None:
    old = await world.device()
    cursor = (await old.poll()).headers["etag"]
    token = world.plane.enrolment.new_token(1)["token"]
    body = form(old.public_id, old.secret) | {"enrolment_token": token}
    reply = await world.register(body)
    assert reply.data["device"]["id"] == old.id, "registered again as the same device"
    assert (await old.poll()).key == "INVALID_TOKEN"
    refused = await old(
        "POST", "/auth/token/refresh", {"refresh_token": old.refresh_token, "device_public_id": old.public_id}
    )
    assert (refused.status, refused.key) == (401, "INVALID_TOKEN")
    old.token = reply.data["session"]["access_token"]
    assert (await old.poll(cursor)).status == 204, "the stream continues"


# --- resync --------------------------------------------------------------------------------------------------------


async def test_an_operator_can_request_a_full_resync(world: World) -> None:
    device = await world.device()
    assert (await world.operator("POST", f"{device.home}/resync", {"reason": "restored"})).status == 202
    (signal,) = (await device.poll()).data["signals"]
    assert (signal["type"], signal["ref"]) == ("state.resync_required", {"reason": "restored"})


async def test_responses_are_compact_json_without_escapes(world: World) -> None:
    device = await world.device()
    ca = world.plane.authorities.add(1, "Prüfstelle")
    await world.plane.authorities.assign(1, device.id, ca["id"])
    reply = await device.poll()
    assert "Prüfstelle".encode() in reply.body
    assert json.loads(reply.body)["data"]["signals"][0]["ref"]["ca_name"] == "Prüfstelle"
