"""Changes from the console in a real browser: sizes, dark and light, barriers, keyboard only, without scripts."""

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
from certctrl.plane.core import Plane
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import DAY

pytestmark = pytest.mark.integration

FAILING = "reason=command-failed&tag=web"
PAGES = {
    "filtered": f"/fleet/devices?{FAILING}&done=retry&n=6",
    "retry": "/fleet/devices/confirm?do=retry&tag=web",
    "tags": f"/fleet/devices/confirm?do=tags&{FAILING}",
    "tags-preview": f"/fleet/devices/confirm?do=tags&{FAILING}&add=env%3Dprod&remove=site%3Dfra",
    "rotate": f"/fleet/devices/confirm?do=rotate-key&{FAILING}",
    "decommission": f"/fleet/devices/confirm?do=decommission&{FAILING}",
    "renew": "/fleet/certificates/confirm?do=renew&q=shop",
    "none": "/fleet/devices/confirm?do=retry&state=expected",
    "device": "/fleet/devices/49?done=renamed",
    "replace": "/fleet/devices/49/confirm?do=replace",
    "certificate": "/fleet/certificates/5",
    "revoke": "/fleet/certificates/1/confirm?do=revoke",
}
AGAIN = ("filtered", "tags-preview", "decommission", "revoke")


@attrs.frozen
class Served:
    """A plane with a fleet, and the token of an operator."""

    address: PlaneAddress
    token: str


@asynccontextmanager
async def fleet(data: Path) -> AsyncIterator[Served]:
    """Serve a plane with devices in all states."""
    with Plane.open(data) as plane:
        await fill(plane, 160)
        accounts = plane.access.accounts
        await plane.work(accounts.add, "lin", Role.OPERATOR)
        token = (await plane.work(accounts.create_token, "lin", "laptop", None, DAY))["token"]
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, data))
        yield Served(address, token)
        nursery.cancel_scope.cancel()


@pytest.mark.timeout(1200)
async def test_every_page_of_changes_in_every_size_and_scheme(
    start_browser: Callable[..., Any], need_module: Callable[[str], None], tmp_path: Path
) -> None:
    if not AXE:
        need_module("axe_core_python")
    browser = await trio.to_thread.run_sync(start_browser)
    async with fleet(tmp_path / "plane") as served:
        await trio.to_thread.run_sync(partial(look, browser, served, Path(PICTURES) if PICTURES else tmp_path))


def look(browser: Any, served: Served, pictures: Path) -> None:
    person = Person(browser, pictures, "all")
    person.open(f"{served.address.url}/fleet")
    person.type(served.token)
    assert look_at(person, served.address.url, PAGES, pictures, again=AGAIN) == []
    assert person.complaints() == []


async def test_many_by_keyboard_only(start_browser: Callable[..., Any], tmp_path: Path) -> None:
    browser = await trio.to_thread.run_sync(start_browser)
    async with fleet(tmp_path / "plane") as served:
        await trio.to_thread.run_sync(type_only, browser, served, tmp_path)


def type_only(browser: Any, served: Served, pictures: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    person = Person(browser, pictures, "keys")
    person.open(f"{served.address.url}/fleet/devices?{FAILING}")
    person.type(served.token)

    def follow(text: str) -> None:
        for _ in range(60):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            focused = browser.switch_to.active_element
            if focused.text.strip() == text or focused.get_attribute("name") == text:
                assert focused.value_of_css_property("outline-style") == "solid", f"{text}: the focus can be seen"
                return
        raise AssertionError(f"no way to {text}")

    def enter() -> None:
        with person._new_page():
            browser.switch_to.active_element.send_keys(Keys.ENTER)

    follow("Decommission…")
    enter()
    assert person.heading() == "Decommission 6 devices?"
    follow("count")
    person.type("5")
    assert "'5' is not how many there are. Nothing was changed." in person.text()
    follow("count")
    person.type("6")
    assert "Decommissioned 6 devices." in person.text()


async def test_changes_and_undo_without_scripts(start_browser: Callable[..., Any], tmp_path: Path) -> None:
    browser = await trio.to_thread.run_sync(start_browser, "--blink-settings=scriptEnabled=false")
    async with fleet(tmp_path / "plane") as served:
        await trio.to_thread.run_sync(click_only, browser, served)


def click_only(browser: Any, served: Served) -> None:
    def shows(text: str) -> None:
        wait_for(lambda: text in browser.find_element("tag name", "main").text)

    def press(label: str) -> None:
        browser.find_element("xpath", f"//main//button[normalize-space()='{label}']").click()

    browser.get(f"{served.address.url}/fleet/devices?{FAILING}")
    browser.find_element("id", "key").send_keys(f"{served.token}\n")
    shows("Try again on these 6…")
    browser.find_element("partial link text", "Try again on these 6").click()
    shows("Try again on 6 devices?")
    press("Try again on 6 devices")
    shows("Asked 6 devices to try again")
    browser.get(f"{served.address.url}/fleet/devices/49")
    shows("Change it")
    name = browser.find_element("id", "new-name")
    name.clear()
    name.send_keys("shop-1\n")
    shows("Renamed.")
    press("Undo")
    shows("Undone: it is as before.")
    assert browser.find_element("tag name", "h1").text.startswith("web-fra-003")
