"""The console in a real browser with 10 000 devices: sizes, dark and light, barriers, keyboard only, without scripts, live."""

from __future__ import annotations

import json
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from browser import Person
from console_looks import AXE, PICTURES, look_at
from large_fleet import fill

from certctrl.plane.access.roles import Role
from certctrl.plane.core import Plane
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import DAY

pytestmark = pytest.mark.integration

ITEM = {"id": 1, "name": "nginx", "type": "exec", "cmd_argv": ["/bin/true"]}
PAGES = {
    "overview": "/fleet",
    "devices": "/fleet/devices",
    "devices-filtered": "/fleet/devices?reason=command-failed&tag=web",
    "devices-none": "/fleet/devices?q=nothing-has-this",
    "device": "/fleet/devices/49",
    "certificates": "/fleet/certificates",
    "certificate": "/fleet/certificates/1",
    "rollouts": "/fleet/rollouts",
    "rollout": "/fleet/rollouts/1",
    "confirm": "/fleet/rollouts/1/confirm?do=abort",
    "shut-out": "/fleet/devices/49/confirm?do=revoke",
    "audit": "/fleet/audit",
    "not-found": "/fleet/devices/999999",
}
AGAIN = ("overview", "devices", "device", "rollout")
"""Pages in which axe-core, which takes seconds, looks on a phone and in the dark, too."""


@attrs.frozen
class Served:
    """A plane with a fleet, and the token of an operator."""

    address: PlaneAddress
    token: str

    def post(self, path: str) -> None:
        """Change something as the operator, elsewhere."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        request = urllib.request.Request(f"{self.address.url}{path}", b"{}", headers)
        context = ssl.create_default_context(cafile=str(self.address.ca_file))
        with urllib.request.urlopen(request, context=context, timeout=30) as reply:
            assert reply.status == 200


@asynccontextmanager
async def fleet(data: Path, devices: int) -> AsyncIterator[Served]:
    """Serve a plane with so many devices and a rollout."""
    with Plane.open(data) as plane:
        await fill(plane, devices)
        accounts = plane.access.accounts
        await plane.work(accounts.add, "lin", Role.OPERATOR)
        token = (await plane.work(accounts.create_token, "lin", "laptop", None, DAY))["token"]
        await plane.profiles.put(1, "nginx", ProfileChange(devices="web", order=10, installs=[ITEM], note=""))
        change = ProfileChange(devices="web", order=10, installs=[ITEM | {"cmd_argv": ["/bin/echo"]}], note="")
        await plane.rollouts.start(1, "nginx", change, RolloutRules(waves=("3", "10%")))
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, data))
        yield Served(address, token)
        nursery.cancel_scope.cancel()


def sign_in(person: Person, served: Served) -> None:
    person.open(f"{served.address.url}/fleet")
    assert person.heading() == "Sign in"
    person.type(served.token)
    assert "need you" in person.heading()


@pytest.mark.timeout(1200)
async def test_every_page_in_every_size_and_scheme(
    start_browser: Callable[..., Any], need_module: Callable[[str], None], tmp_path: Path
) -> None:
    if not AXE:
        need_module("axe_core_python")
    browser = await trio.to_thread.run_sync(start_browser)
    async with fleet(tmp_path / "plane", 10_000) as served:
        await trio.to_thread.run_sync(partial(look, browser, served, Path(PICTURES) if PICTURES else tmp_path))


def look(browser: Any, served: Served, pictures: Path) -> None:
    person = Person(browser, pictures, "all")
    sign_in(person, served)
    assert "13 of 10\u202f004 devices" in person.heading()
    found = look_at(person, served.address.url, PAGES, pictures, again=AGAIN)
    assert found == []
    assert [line for line in person.complaints() if "404" not in line] == []


async def test_by_keyboard_only(start_browser: Callable[..., Any], tmp_path: Path) -> None:
    browser = await trio.to_thread.run_sync(start_browser)
    async with fleet(tmp_path / "plane", 160) as served:
        await trio.to_thread.run_sync(type_only, browser, served, tmp_path)


def type_only(browser: Any, served: Served, pictures: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    person = Person(browser, pictures, "keys")
    sign_in(person, served)

    def press(key: str) -> None:
        browser.switch_to.active_element.send_keys(key)

    def tab_to(text: str) -> None:
        for _ in range(80):
            press(Keys.TAB)
            focused = browser.switch_to.active_element
            if focused.text.strip() == text:
                outline = focused.value_of_css_property("outline-style")
                assert outline == "solid", f"{text}: where the focus is can be seen"
                return
        raise AssertionError(f"no way to {text}")

    press(Keys.TAB)
    assert browser.switch_to.active_element.text == "To the content"
    press(Keys.ENTER)
    press("/")
    assert person.focused() == "q"
    person.type("web-fra-003")
    assert person.heading() == "Devices"
    tab_to("web-fra-003")
    with person._new_page():
        press(Keys.ENTER)
    assert person.heading().startswith("web-fra-003")
    tab_to("Shut out…")
    with person._new_page():
        press(Keys.ENTER)
    for _ in range(30):
        press(Keys.TAB)
        if person.focused() == "name":
            break
    person.type("web-fra-003")
    assert "revoked" in person.heading() and "Shut out: all its requests are refused" in person.text()


async def test_without_scripts(start_browser: Callable[..., Any], tmp_path: Path) -> None:
    browser = await trio.to_thread.run_sync(start_browser, "--blink-settings=scriptEnabled=false")
    async with fleet(tmp_path / "plane", 160) as served:
        await trio.to_thread.run_sync(click_only, browser, served)


def click_only(browser: Any, served: Served) -> None:
    from selenium.webdriver.common.by import By

    def text() -> str:
        return str(browser.find_element(By.TAG_NAME, "main").text)

    def follow(words: str) -> None:
        browser.find_element(By.PARTIAL_LINK_TEXT, words).click()

    browser.get(f"{served.address.url}/fleet/rollouts/1")
    browser.find_element(By.ID, "key").send_keys(f"{served.token}\n")
    wait_for(lambda: "Waves" in text())
    follow("Pause…")
    wait_for(lambda: "What it does" in text())
    browser.find_element(By.CSS_SELECTOR, "main form button").click()
    wait_for(lambda: "Paused by an operator" in text())
    assert "Live: on" not in text(), "a control that needs the script"
    follow("Devices")
    wait_for(lambda: "164 devices" in text())
    follow("stale")
    wait_for(lambda: "4 of 164" in text() or "4 devices" in text())


async def test_a_rollout_page_follows_the_rollout(start_browser: Callable[..., Any], tmp_path: Path) -> None:
    browser = await trio.to_thread.run_sync(start_browser)
    async with fleet(tmp_path / "plane", 160) as served:
        await trio.to_thread.run_sync(watch, browser, served, tmp_path)


def watch(browser: Any, served: Served, pictures: Path) -> None:
    person = Person(browser, pictures, "live")
    sign_in(person, served)
    person.open(f"{served.address.url}/fleet/rollouts/1")
    assert "running" in person.heading()
    browser.execute_script("window.same = true")
    served.post("/apiv1/users/1/rollouts/1/pause")
    wait_for(lambda: "paused" in person.heading())
    assert "Paused by an operator" in person.text() and "Resume…" in person.text()
    assert browser.execute_script("return window.same"), "the page is the same"
    served.post("/apiv1/users/1/rollouts/1/abort")
    wait_for(lambda: "aborted" in person.heading())
    assert json.loads(browser.execute_script("return JSON.stringify(document.querySelectorAll('#acts a').length)")) == 0


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds; a page that is being replaced has nothing to read."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except WebDriverException:
            pass
        time.sleep(0.2)
    raise AssertionError("it does not come")
