"""The approval page: sign-in, contents, and refusal of forged or stale forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_browser import Browser
from plane_world import World

from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.http.pages.html import Html, fill
from certctrl.plane.http.pages.views import moment


@pytest.fixture
def browser(world: World) -> Browser:
    return Browser(world.stranger)


async def start(world: World, **more: object) -> dict[str, Any]:
    body = {"action": "device_start", "name": "web-1", "platform": "linux", **more}
    data: dict[str, Any] = (await world.stranger("POST", "/auth/device", body)).data
    return data


async def test_an_operator_approves_a_device(world: World, browser: Browser) -> None:
    grant = await start(world)
    browser.client.address = "198.51.100.20"
    first = await browser.get("/device")
    assert b"Operator key" in first.body
    signed_in = await browser.sign_in(world.plane.operator_key)
    assert (signed_in.status, signed_in.headers["location"]) == (303, "/device")
    assert set(browser.cookies) == {"__Host-certctrl-operator"}
    assert b"Enter the code" in (await browser.get("/device")).body
    shown = (await browser.get(f"/device?user_code={grant['user_code'].lower().replace('-', '+')}")).body.decode()
    for fact in (grant["user_code"], "web-1", "linux", "192.0.2.7", "2026-09-21 14:13 UTC (0 seconds ago)"):
        assert fact in shown
    assert "198.51.100.20" not in shown, "the device's address, not the browser's"
    done = await browser.post("/device/decide", user_code=grant["user_code"], decision="approve")
    assert (done.status, b"web-1 is approved" in done.body) == (200, True)
    poll = {"action": "device_poll", "device_code": grant["device_code"]}
    assert (await world.stranger("POST", "/auth/device", poll)).data["status"] == "ready"


async def test_an_operator_denies_a_device(world: World, browser: Browser) -> None:
    grant = await start(world)
    await browser.sign_in(world.plane.operator_key)
    await browser.get(f"/device?user_code={grant['user_code']}")
    done = await browser.post("/device/decide", user_code=grant["user_code"], decision="deny")
    assert b"is denied" in done.body
    poll = {"action": "device_poll", "device_code": grant["device_code"]}
    assert (await world.stranger("POST", "/auth/device", poll)).data["status"] == "access_denied"
    again = await browser.get(f"/device?user_code={grant['user_code']}")
    assert b"already decided" in again.body


async def test_a_link_with_the_code_survives_signing_in(world: World, browser: Browser) -> None:
    grant = await start(world)
    reply = await browser.sign_in(world.plane.operator_key, f"/device?user_code={grant['user_code']}")
    assert reply.headers["location"] == f"/device?user_code={grant['user_code']}"
    shown = await browser.get(reply.headers["location"])
    assert b"Approve this device?" in shown.body, "approval still needs a click"


async def test_sign_in_redirects_to_the_device_page_only(world: World, browser: Browser) -> None:
    await browser.get("/device")
    reply = await browser.post("/device/sign-in", key=world.plane.operator_key, user_code="\r\nX: y//evil.example/&a=b")
    assert reply.headers["location"].startswith("/device?user_code=")
    assert not set(reply.headers["location"]) & set("\r\n&")


async def test_five_wrong_keys_lock_the_address_out(world: World, browser: Browser) -> None:
    for attempt in range(5):
        reply = await browser.sign_in("ok_wrong")
        assert (reply.status, b"not the operator key" in reply.body) == (403, True), attempt
        assert "__Host-certctrl-operator" not in browser.cookies
    locked = await browser.sign_in("ok_wrong")
    assert (locked.status, locked.headers["retry-after"]) == (429, "900")
    assert b"Try again in 15 minutes" in locked.body
    browser.client.address = "198.51.100.7"
    assert (await browser.sign_in("ok_wrong")).status == 403, "others are not locked out"
    world.clock.advance(900)
    browser.client.address = "192.0.2.7"
    assert (await Browser(browser.client).sign_in("ok_wrong")).status == 403


async def test_the_right_key_is_never_locked_out(world: World, browser: Browser) -> None:
    for _ in range(6):
        locked = await browser.sign_in("ok_wrong")
    assert locked.status == 429
    assert (await Browser(browser.client).sign_in(world.plane.operator_key)).status == 303
    assert (await Browser(browser.client).sign_in("ok_wrong")).status == 403, "its failures are forgotten"


async def test_a_session_ends_by_expiry_sign_out_or_a_new_key(world: World, browser: Browser) -> None:
    await browser.sign_in(world.plane.operator_key)
    assert b"Enter the code" in (await browser.get("/device")).body
    out = await browser.post("/device/sign-out")
    assert (out.status, browser.cookies) == (303, {})
    assert b"Operator key" in (await browser.get("/device")).body
    await browser.sign_in(world.plane.operator_key)
    world.clock.advance(3600)
    assert b"Operator key" in (await browser.get("/device")).body
    world.plane.housekeeping.tidy()
    assert world.plane.database.one("SELECT count(*) AS n FROM page_sessions")["n"] == 0
    await browser.sign_in(world.plane.operator_key)
    world.plane.keyring.operator_key = "ok_" + "n" * 43
    assert b"Operator key" in (await browser.get("/device")).body, "a new key ends the sessions of the old one"


async def test_forged_and_stale_forms_do_nothing(world: World, browser: Browser) -> None:
    grant = await start(world)
    await browser.sign_in(world.plane.operator_key)
    await browser.get(f"/device?user_code={grant['user_code']}")
    good = {"user_code": grant["user_code"], "decision": "approve", "csrf": browser.csrf}
    stranger = Browser(browser.client)
    await stranger.get("/device")
    path = "/device/decide"
    tries = [
        await browser.post(path, **good | {"csrf": "0" * 64}),
        await browser.post(path, **good | {"csrf": ""}),
        await browser.post(path, **good | {"csrf": "é"}),
        await browser.post(path, **good | {"csrf": stranger.csrf}),
        await browser.post(path, **good, headers={"sec-fetch-site": "cross-site"}),
        await browser.post(path, **good, headers={"sec-fetch-site": "same-site"}),
        await stranger.post(path, **good | {"csrf": stranger.csrf}),
        await browser.post(path, **good, headers={"content-type": "text/plain"}),
        await browser.post(path, **good | {"decision": "perhaps"}),
        await browser.post(path, **good | {"user_id": "9"}),
    ]
    assert [reply.status for reply in tries] == [403, 403, 403, 403, 403, 403, 403, 400, 400, 404]
    assert all(reply.headers["content-type"].startswith("text/html") for reply in tries)
    assert world.plane.grants.show(grant["user_code"])["status"] == "pending"
    await stranger.get("/device")
    signed = await stranger.post("/device/sign-in", key=world.plane.operator_key, user_code="", csrf="0" * 64)
    assert (signed.status, set(stranger.cookies)) == (403, {"__Host-certctrl-form"})


async def test_an_invented_session_cookie_is_ignored(world: World, browser: Browser) -> None:
    browser.cookies["__Host-certctrl-operator"] = "made-up"
    assert b"Operator key" in (await browser.get("/device")).body


async def test_wrong_codes_are_reported_and_counted(world: World, browser: Browser) -> None:
    await browser.sign_in(world.plane.operator_key)
    for _ in range(10):
        reply = await browser.get("/device?user_code=ZZZZ-ZZZZ")
        assert (reply.status, b"No device shows this code" in reply.body) == (404, True)
    locked = await browser.get("/device?user_code=ZZZZ-ZZZZ")
    assert (locked.status, locked.headers["retry-after"]) == (429, "900")


async def test_device_texts_are_escaped(world: World, browser: Browser) -> None:
    nasty = "<script>alert(1)</script>\"'&{body}"
    grant = await start(world, name=nasty, platform=nasty)
    await browser.sign_in(world.plane.operator_key)
    shown = (await browser.get(f"/device?user_code={grant['user_code']}")).body.decode()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;{body}" in shown
    typed = (await browser.get("/device?user_code=%22%3E%3Cscript%3E")).body.decode()
    assert "<script" not in typed


async def test_known_and_revoked_devices_are_named(world: World, browser: Browser) -> None:
    device = await world.device()
    grant = await start(world, device_public_id=device.public_id)
    await browser.sign_in(world.plane.operator_key)
    path = f"/device?user_code={grant['user_code']}"
    assert b"This is device 1 (web-1). Approving replaces its current session" in (await browser.get(path)).body
    world.plane.devices.revoke(1, device.id, "lost")
    assert b"<strong>revoked</strong>" in (await browser.get(path)).body


async def test_devices_of_other_users_or_with_the_same_name_are_named(world: World, browser: Browser) -> None:
    world.plane.devices.add_user("team")
    world.plane.devices.expect(2, DeviceFacts(device_public_id="device-of-team", name="web-1"))
    world.plane.devices.revoke(2, 1, "stolen")
    grant, other = await start(world, device_public_id="device-of-team"), await start(world)
    await browser.sign_in(world.plane.operator_key)
    shown = (await browser.get(f"/device?user_code={grant['user_code']}")).body
    assert b"This is device 1 (web-1) of team, which is <strong>revoked</strong>. Approving restores" in shown
    assert b'<option value="2" selected>team</option>' in shown
    assert b"device-of-team" in shown
    shown = (await browser.get(f"/device?user_code={other['user_code']}")).body
    assert b"Device 1 of team, another one, is <strong>revoked</strong> and has the same name (web-1)" in shown
    assert b"not named; only a new device can register" in shown
    assert b" selected" not in shown


async def test_with_several_users_the_page_asks_for_the_owner(world: World, browser: Browser) -> None:
    world.plane.devices.add_user("team <b>")
    grant = await start(world)
    await browser.sign_in(world.plane.operator_key)
    shown = await browser.get(f"/device?user_code={grant['user_code']}")
    assert b'<option value="2">team &lt;b&gt;</option>' in shown.body
    await browser.post("/device/decide", user_code=grant["user_code"], decision="approve", user_id="2")
    assert world.plane.grants.show(grant["user_code"])["user_id"] == 2


async def test_pages_have_security_headers(world: World, browser: Browser) -> None:
    for path in ("/device", "/device/style.css", "/device/icon.svg"):
        reply = await browser.get(path)
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-frame-options"] == "DENY"
    assert (await browser.get("/device/style.css")).headers["content-type"] == "text/css; charset=utf-8"
    assert (await browser.get("/device/icon.svg")).headers["content-type"] == "image/svg+xml"
    assert (await browser.get("/device/decide")).status == 405


async def test_all_pages_are_valid_and_accessible(world: World, browser: Browser) -> None:
    grant = await start(world)
    pages = [await browser.get("/device"), await browser.sign_in("wrong")]
    await browser.sign_in(world.plane.operator_key)
    pages += [
        await browser.get("/device"), await browser.get("/device?user_code=ZZZZ"),
        await browser.get(f"/device?user_code={grant['user_code']}"),
        await browser.post("/device/decide", user_code=grant["user_code"], decision="approve"),
    ]  # fmt: skip
    pages.append(await browser.post("/device/decide", user_code=grant["user_code"], decision="approve"))
    assert len({page.body for page in pages}) == 7
    for page in pages:
        check = Soundness()
        check.feed(page.body.decode())
        assert check.problems() == []


class Soundness(HTMLParser):
    """Checks a page: a language, one heading, a label per field, closed tags, nothing inline."""

    VOID = ("meta", "link", "input", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes nothing")

    def problems(self) -> list[str]:
        tags = [tag for tag, _ in self.seen]
        labelled = {found.get("for") for tag, found in self.seen if tag == "label"}
        wrong = self.wrong + [f"<{tag}> left open" for tag in self.open]
        for tag, found in self.seen:
            is_hidden = found.get("type") == "hidden" or "hidden" in found
            if tag in ("input", "select") and not is_hidden and found.get("id") not in labelled:
                wrong.append(f"field {found.get('name')} has no label")
            if tag == "img" and "alt" not in found:
                wrong.append("image without alt")
            wrong += [f"inline {name}" for name in found if name == "style" or name.startswith("on")]
            wrong += [f"from elsewhere: {v}" for v in found.values() if v and re.match(r"(https?:)?//", v)]
        if dict(self.seen)["html"].get("lang") != "en":
            wrong.append("no language")
        wrong += [f"{tags.count(tag)} <{tag}>" for tag in ("h1", "main", "title") if tags.count(tag) != 1]
        return wrong + (["script"] if "script" in tags else [])


@given(st.text(), st.text())
def test_templates_escape_everything_but_html(one: str, two: str) -> None:
    text = fill('<p title="{one}">{two}</p>', one=one, two=two)
    inner = text.removeprefix('<p title="').removesuffix("</p>")
    assert inner.count('"') == 1
    assert "<" not in inner
    assert fill("{x}", x=Html("<b>")) == "<b>"


@pytest.mark.parametrize(
    ("later", "shown"),
    [(0, "0 seconds ago"), (1, "1 second ago"), (89, "89 seconds ago"), (90, "2 minutes ago"), (-5, "0 seconds ago")],
)
def test_displayed_times(later: int, shown: str) -> None:
    assert moment("2026-09-21T14:13:20Z", 1_790_000_000 + later) == f"2026-09-21 14:13 UTC ({shown})"


def test_the_style_sheet_is_legible_in_both_modes() -> None:
    """Text, hints, buttons and warnings have the contrast that WCAG AA requires (4.5), in light and dark mode."""
    from pathlib import Path

    from certctrl.plane.http import pages

    css = (Path(pages.__file__).parent / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", css, re.DOTALL)[:2]
    pairs: list[tuple[str, str]] = [
        ("text", "card"), ("text", "ground"), ("soft", "card"), ("accent-text", "accent"), ("bad", "card"),
        ("bad", "bad-ground"), ("text", "note-ground"), ("accent", "card"),
    ]  # fmt: skip
    for mode in (light, dark):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", mode))
        for front, back in pairs:
            assert contrast(colours[front], colours[back]) >= 4.5, (front, back)


def contrast(one: str, two: str) -> float:
    channel: Callable[[float], float] = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4  # noqa: E731

    def luminance(colour: str) -> float:
        r, g, b = (channel(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)
