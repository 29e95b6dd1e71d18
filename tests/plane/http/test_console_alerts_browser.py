"""The console's pages of alerts and operators in a real browser: sizes, dark and light, barriers, keyboard, no scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from browser import Person, wait_for
from console_looks import AXE, PICTURES, look_at
from large_fleet import fill

from certctrl.plane.access.roles import Role
from certctrl.plane.alerts.channels import NewChannel
from certctrl.plane.alerts.texts import test_message as message_of_test
from certctrl.plane.core import Plane
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import DAY

pytestmark = pytest.mark.integration

PAGES = {
    "alerts": "/fleet/alerts",
    "alerts-dead": "/fleet/alerts?state=dead&channel=on-call",
    "alerts-none": "/fleet/alerts?state=dismissed",
    "alerts-dismiss-all": "/fleet/alerts/dead/confirm?do=dismiss",
    "alert": "/fleet/alerts/2",
    "operators": "/fleet/operators",
    "operators-none": "/fleet/operators?q=nobody",
    "operator-disable": "/fleet/operators/ann@example.com/confirm?do=disable",
    "operator-role": "/fleet/operators/lin/confirm?do=role",
    "tokens": "/fleet/tokens?status=all",
    "token-withdraw": "/fleet/tokens/1/confirm",
    "token-new": "/fleet/operators/lin/token",
    "unknown": "/fleet/nothing/here",
}
AGAIN = ("alerts", "alert", "operators", "tokens", "token-new")
REASON = "hooks.chat.example answered with 503: upstream connect error or disconnect/reset before headers"


@attrs.frozen
class Served:
    """A plane with alerts and operators, and the token of an admin."""

    address: PlaneAddress
    token: str


def add_messages(plane: Plane) -> None:
    """Add channels, with messages in each state."""
    channels, outbox, now = plane.alerts.channels, plane.alerts.outbox, plane.wall_now()
    for name in ("on-call", "tickets"):
        settings = {"events": ["device-silent", "certificate-stuck"] if name == "on-call" else [], "repeat_seconds": 0}
        channels.put(
            NewChannel(name=name, kind="slack", settings=settings, secrets={"url": "https://chat.invalid/hook"})
        )
    first = channels.named("on-call").id
    for number in range(60):
        body = message_of_test("on-call", now) | {
            "title": f"device silent: {number + 3} (web-fra-001, web-fra-002, web-fra-003, …)",
            "severity": "warning",
            "cause": "the device does not contact the control plane",
            "fix": "check the host, its network, and cert-ctrl doctor there",
            "conditions": [{"key": "7", "name": "web-fra-001", "what": "device 7 (web-fra-001) was last heard from"}],
            "more": number,
        }
        added = outbox.add(first, body)  # type: ignore[arg-type]
        state = "dead" if number % 3 == 1 else "sent"
        sql = "UPDATE alert_messages SET state = ?, problem = ?, attempts = ?, ended_at = ? WHERE id = ?"
        plane.database.run(sql, state, REASON if state == "dead" else "", 31 if state == "dead" else 1, now, added)
    plane.database.run("DELETE FROM jobs WHERE kind = 'alert'")


@asynccontextmanager
async def served(data: Path) -> AsyncIterator[Served]:
    """Serve a plane with devices, alerts and operators."""
    with Plane.open(data) as plane:
        await fill(plane, 160)
        await plane.work(add_messages, plane)
        accounts = plane.access.accounts
        for name, role in (("ann@example.com", Role.VIEWER), ("lin", Role.OPERATOR), ("root", Role.ADMIN)):
            await plane.work(accounts.add, name, role)
            token = (await plane.work(accounts.create_token, name, "laptop", None, 30 * DAY))["token"]
        await plane.work(accounts.create_token, "lin", "ci", Role.VIEWER, DAY)
        await plane.work(accounts.revoke_token, 4)
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, data))
        yield Served(address, token)
        nursery.cancel_scope.cancel()


def sign_in(browser: Any, site: Served, pictures: Path, mode: str) -> Person:
    person = Person(browser, pictures, mode)
    person.open(f"{site.address.url}/fleet/alerts")
    assert person.heading() == "Sign in"
    person.type(site.token)
    assert "now" in person.heading()
    return person


@pytest.mark.timeout(900)
async def test_every_page_in_every_size_and_scheme(
    start_browser: Callable[..., Any], need_module: Callable[[str], None], tmp_path: Path
) -> None:
    if not AXE:
        need_module("axe_core_python")
    browser = await trio.to_thread.run_sync(start_browser)
    async with served(tmp_path / "plane") as site:
        await trio.to_thread.run_sync(look, browser, site, Path(PICTURES) if PICTURES else tmp_path)


def look(browser: Any, site: Served, pictures: Path) -> None:
    person = sign_in(browser, site, pictures, "alerts")
    assert look_at(person, site.address.url, PAGES, pictures, again=AGAIN) == []
    person.open(f"{site.address.url}/fleet/operators/lin/token")
    browser.find_element("id", "name").send_keys("backup")
    person.press("Make it")
    assert "This is the only time" in person.text()
    person.picture("token-made")
    assert [line for line in person.complaints() if "404" not in line] == []


@pytest.mark.parametrize("scripts", [True, False])
async def test_by_keyboard_and_without_scripts(
    start_browser: Callable[..., Any], tmp_path: Path, scripts: bool
) -> None:
    flags = () if scripts else ("--blink-settings=scriptEnabled=false",)
    browser = await trio.to_thread.run_sync(partial(start_browser, *flags))
    async with served(tmp_path / "plane") as site:
        await trio.to_thread.run_sync(keys_only if scripts else click_only, browser, site, tmp_path)


def keys_only(browser: Any, site: Served, pictures: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    person = sign_in(browser, site, pictures, "keys")

    def press(key: str) -> None:
        browser.switch_to.active_element.send_keys(key)

    def tab_to(text: str) -> None:
        for _ in range(120):
            press(Keys.TAB)
            focused = browser.switch_to.active_element
            if focused.text.strip().startswith(text):
                assert focused.value_of_css_property("outline-style") == "solid", f"{text}: the focus can be seen"
                return
        raise AssertionError(f"no way to {text}")

    person.open(f"{site.address.url}/fleet/alerts?state=dead")
    for button, says in (("Dismiss", "Dismissed. It can still be sent again."), ("Send again", "It is sent again")):
        tab_to(button)
        with person._new_page():
            press(Keys.ENTER)
        assert says in person.text()
    person.open(f"{site.address.url}/fleet/operators")
    tab_to("Disable…")
    with person._new_page():
        press(Keys.ENTER)
    assert person.heading() == "Disable ann@example.com?"
    tab_to("Disable them")
    with person._new_page():
        press(Keys.ENTER)
    assert person.heading() == "Operators" and "disabled" in person.text()


def click_only(browser: Any, site: Served, pictures: Path) -> None:
    from selenium.webdriver.common.by import By

    def says(words: str) -> None:
        wait_for(lambda: words in browser.find_element(By.TAG_NAME, "main").text)

    browser.get(f"{site.address.url}/fleet/tokens?operator=lin")
    browser.find_element(By.ID, "key").send_keys(f"{site.token}\n")
    says("API tokens of lin")
    browser.find_element(By.PARTIAL_LINK_TEXT, "Withdraw").click()
    says("There is no undo")
    browser.find_element(By.CSS_SELECTOR, "main form button").click()
    says("Withdrawn: the token is refused from now on")
    browser.get(f"{site.address.url}/fleet/alerts?state=dead")
    browser.find_element(By.XPATH, "//button[starts-with(normalize-space(), 'Dismiss')]").click()
    says("Dismissed. It can still be sent again.")
