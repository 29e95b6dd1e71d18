"""Sign-in at a real OpenID provider, from the page and back; a lasting one, and one that ends."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trio
from audit_cases import grant
from page_browser import FORM
from plane_world import World

from certctrl.plane.audit.log import Filter
from certctrl.plane.settings import OidcSettings

ROLES = {"ops": "operator", "admins": "admin"}


class SsoBrowser:
    """A browser that follows the redirects of both sides."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cookies: dict[str, str] = {}

    async def get(self, path: str) -> Any:
        return await self._ask("GET", path)

    async def post(self, path: str, **fields: str) -> Any:
        body = httpx.QueryParams(fields).__str__().encode()
        return await self._ask("POST", path, body, FORM)

    async def _ask(self, method: str, path: str, body: bytes | None = None, headers: Any = None) -> Any:
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        reply = await self.world.stranger(method, path, body=body, headers=cookie | (headers or {}))
        for line in reply.headers.get("set-cookie", "").splitlines():
            assert re.search(r"; HttpOnly; .*Path=/; SameSite=(strict|lax); Secure$", line), line
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
            if "Max-Age=0" in line:
                del self.cookies[name]
        return reply

    async def to_provider(self, path: str = "/device/oidc") -> str:
        """Return the URL at the provider to which the plane sends the browser."""
        reply = await self.get(path)
        assert reply.status == 303, reply.body
        return str(reply.headers["location"])

    async def signed_in_there(self, url: str, **form: str) -> str:
        """Sign in at the provider; return the path and query with which it sends the browser back."""
        reply = await trio.to_thread.run_sync(lambda: httpx.post(url, data=form, timeout=60))
        assert reply.status_code == 302, reply.text
        target = urlsplit(reply.headers["location"])
        assert f"{target.scheme}://{target.netloc}" == "https://plane.test"
        return f"{target.path}?{target.query}"

    async def sign_in(self, sub: str, path: str = "/device/oidc") -> Any:
        return await self.get(await self.signed_in_there(await self.to_provider(path), sub=sub))


@pytest.fixture
def world(build: Callable[..., World], issuer: str) -> World:
    settings = OidcSettings(issuer=issuer, client_id="plane", client_secret="s3cret", roles=ROLES, label="Example ID")
    made = build(oidc=settings, public_url="https://plane.test")
    made.clock.wall = time.time()
    return made


@pytest.mark.parametrize("path", ["/fleet/rollouts/1?done=paused", "/fleet/devices?q=" + "a" * 480])
async def test_who_asked_for_the_console_gets_there(world: World, path: str) -> None:
    browser = SsoBrowser(world)
    sent = await browser.get(path)
    first = await browser.get(sent.headers["location"])
    link = re.search(rb'href="(/device/oidc[^"]*)">Sign in with Example ID', first.body)
    assert link is not None
    reply = await browser.sign_in("u-alice", link[1].decode())
    assert (reply.status, reply.headers["refresh"]) == (200, f"0; url={path}")


async def test_an_operator_signs_in_and_approves_a_device(world: World) -> None:
    browser, code = SsoBrowser(world), await grant(world)
    first = await browser.get(f"/device?user_code={code}")
    link = re.search(rb'href="(/device/oidc[^"]*)">Sign in with Example ID', first.body)
    assert link is not None
    reply = await browser.sign_in("u-alice", link[1].decode())
    assert (reply.status, reply.headers["refresh"]) == (200, f"0; url=/device?user_code={code}")
    assert b"signed in as alice@example.com" in reply.body
    shown = await browser.get(f"/device?user_code={code}")
    csrf = re.search(rb'name="csrf" value="([0-9a-f]+)"', shown.body)
    assert csrf is not None and b"Approve this device?" in shown.body
    done = await browser.post("/device/decide", csrf=csrf[1].decode(), user_code=code, decision="approve")
    assert done.status == 200
    rows = world.plane.audit.page(Filter(who="alice@example.com"), 0, 9)
    assert [row["action"] for row in rows] == ["grant.decide", "session.sign-in"]
    assert rows[0]["via"] == "page, single sign-on"
    (listed,) = (await world.operator("GET", "/apiv1/operators")).data
    assert (listed["name"], listed["role"]) == ("alice@example.com", "operator")


async def test_the_role_is_checked_at_each_sign_in(world: World) -> None:
    browser = SsoBrowser(world)
    await browser.sign_in("u-alice")
    await world.operator("PATCH", "/apiv1/operators/alice@example.com", {"role": "admin"})
    await SsoBrowser(world).sign_in("u-alice")
    (row, *_) = world.plane.audit.page(Filter(what="session"), 0, 9)
    (changed,) = [each for each in row["objects"] if each["kind"] == "operator"]
    assert (changed["before"], changed["after"]) == ({"role": "admin"}, {"role": "operator"})


async def test_who_has_no_role_does_not_get_in(world: World) -> None:
    browser = SsoBrowser(world)
    refused = await browser.sign_in("u-bob")
    assert refused.status == 403 and b"bob@example.com has no role here" in refused.body
    assert (await world.operator("GET", "/apiv1/operators")).data == []
    assert world.plane.audit.page(Filter(), 0, 9) == []


async def test_disabled_operators_lose_their_sessions(world: World) -> None:
    browser = SsoBrowser(world)
    await browser.sign_in("u-alice")
    assert b"Approve a device" in (await browser.get("/device")).body
    await world.operator("PATCH", "/apiv1/operators/alice@example.com", {"disabled": True})
    assert b"Sign in" in (await browser.get("/device")).body
    refused = await browser.sign_in("u-alice")
    assert refused.status == 403 and b"is disabled" in refused.body


async def test_another_account_cannot_take_a_name(world: World) -> None:
    await SsoBrowser(world).sign_in("u-alice")
    refused = await SsoBrowser(world).sign_in("u-mallory")
    assert refused.status == 409 and b"There is an operator alice@example.com already" in refused.body
    await world.operator("POST", "/apiv1/operators", {"name": "carol", "role": "admin"})


async def test_answers_to_other_sign_ins_are_refused(world: World) -> None:
    browser, other = SsoBrowser(world), SsoBrowser(world)
    back = await browser.signed_in_there(await browser.to_provider(), sub="u-alice")
    assert b"no sign-in under way" in (await other.get(back)).body
    await other.to_provider()
    assert b"the answer to another sign-in" in (await other.get(back)).body
    denied = await browser.signed_in_there(await browser.to_provider(), action="deny")
    assert (await browser.get(denied)).status == 400
    assert world.plane.audit.page(Filter(), 0, 9) == []

    late = SsoBrowser(world)
    back = await late.signed_in_there(await late.to_provider(), sub="u-alice")
    world.clock.advance(601)
    assert b"took too long" in (await late.get(back)).body
    world.clock.advance(-601)
    once = SsoBrowser(world)
    back = await once.signed_in_there(await once.to_provider(), sub="u-alice")
    kept = dict(once.cookies)
    assert (await once.get(back)).status == 200
    once.cookies = kept
    assert (await once.get(back)).status == 403, "the code is used up"
    for _ in range(20):
        assert (await SsoBrowser(world).get("/device/oidc/callback?code=x&state=y")).status == 400, "not counted"
    guesses = 0
    while (await (guessing := SsoBrowser(world)).get("/device/oidc")).status == 303:
        (state,) = parse_qs(urlsplit(await guessing.to_provider()).query)["state"]
        assert (await guessing.get(f"/device/oidc/callback?code=x&state={state}")).status == 403
        guesses += 1
    assert 0 < guesses <= world.plane.settings.sign_in_attempts


async def test_a_provider_that_is_away(build: Callable[..., World]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    world = build(oidc=OidcSettings(issuer=url, client_id="plane", client_secret="s3cret", roles=ROLES))
    away = await SsoBrowser(world).get("/device/oidc")
    assert away.status == 503 and b"The sign-in at the provider failed" in away.body
    without = build()
    assert (await SsoBrowser(without).get("/device/oidc")).status == 404
    assert b"oidc" not in (await SsoBrowser(without).get("/device")).body


async def test_the_request_has_state_nonce_and_pkce(world: World) -> None:
    browser = SsoBrowser(world)
    query = parse_qs(urlsplit(await browser.to_provider()).query)
    again = parse_qs(urlsplit(await browser.to_provider()).query)
    for name in ("state", "nonce", "code_challenge"):
        assert len(query[name][0]) >= 32 and query[name] != again[name]
    assert query["redirect_uri"] == ["https://plane.test/device/oidc/callback"]
