"""The console in a real browser with 10 000 devices: sizes, dark and light, barriers, keyboard only, without scripts, live."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from browser import Person, wait_for
from console_looks import AXE, PICTURES, barriers, look_at, small_targets
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
    "profiles": "/fleet/profiles",
    "profile": "/fleet/profiles/nginx",
    "profile-change": "/fleet/profiles/nginx/change",
    "rollouts": "/fleet/rollouts",
    "rollout-new": "/fleet/rollouts/new",
    "rollout-form": "/fleet/rollouts/new?profile=nginx",
    "rollout-renewals": "/fleet/rollouts/new?certificates=1",
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


async def test_a_profile_and_a_rollout_without_scripts(start_browser: Callable[..., Any], tmp_path: Path) -> None:
    browser = await trio.to_thread.run_sync(start_browser, "--blink-settings=scriptEnabled=false")
    async with fleet(tmp_path / "plane", 160) as served:
        await trio.to_thread.run_sync(make_and_roll_out, browser, served)


def make_and_roll_out(browser: Any, served: Served) -> None:
    """Make a profile by the form, correct a mistake, and give its second version out in waves."""
    from selenium.webdriver.common.by import By

    def text() -> str:
        return str(browser.find_element(By.TAG_NAME, "main").text)

    def press(label: str) -> None:
        browser.find_element(By.XPATH, f"//main//button[normalize-space()='{label}']").click()

    def write(field: str, value: str) -> None:
        browser.find_element(By.ID, field).clear()
        browser.find_element(By.ID, field).send_keys(value)

    browser.get(f"{served.address.url}/fleet/profiles")
    browser.find_element(By.ID, "key").send_keys(f"{served.token}\n")
    wait_for(lambda: "New profile…" in text())
    write("new", "edge\n")
    wait_for(lambda: "New profile edge" in text())
    write("devices", "edge and not site=muc")
    write("installs", '[{"id": "x", "type": "exce", "cmd_argv": ["/bin/true"]}]')
    press("Preview…")
    wait_for(lambda: "did you mean exec?" in text())
    wrong = browser.find_element(By.ID, "installs")
    assert wrong.get_attribute("aria-invalid") == "true" and "exce" in wrong.get_attribute("value")
    write("installs", '[{"id": "x", "type": "exec", "cmd_argv": ["/bin/true"]}]')
    press("Preview…")
    wait_for(lambda: "Profile edge would have version 1 on 30 devices" in text())
    press("Give it to all 30 devices at once")
    wait_for(lambda: "Stored: the devices whose config changes are notified." in text())
    browser.find_element(By.PARTIAL_LINK_TEXT, "Change in waves").click()
    wait_for(lambda: "Change profile edge in waves" in text())
    write("installs", '[{"id": "x", "type": "exec", "cmd_argv": ["/bin/echo"]}]')
    write("pause", "10m")
    press("Preview…")
    wait_for(lambda: "A rollout of profile edge would have 3 waves of 1, 3, 26 devices" in text())
    assert "when wave 1 has proven it, 10m later" in text() and "~ x (cmd_argv)" in text()
    press("Start it")
    wait_for(lambda: "Started: the first wave is released within seconds." in text())
    assert "edge v2 running" in browser.find_element(By.TAG_NAME, "h1").text


async def test_a_preview_has_no_barriers_and_the_keyboard_suffices(
    start_browser: Callable[..., Any], need_module: Callable[[str], None], tmp_path: Path
) -> None:
    if not AXE:
        need_module("axe_core_python")
    browser = await trio.to_thread.run_sync(start_browser)
    async with fleet(tmp_path / "plane", 160) as served:
        await trio.to_thread.run_sync(preview_by_keyboard, browser, served, tmp_path)


def preview_by_keyboard(browser: Any, served: Served, pictures: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    person, found = Person(browser, pictures, "preview"), []
    sign_in(person, served)
    person.open(f"{served.address.url}/fleet/rollouts/new?certificates=1")

    def tab_to(text: str) -> None:
        for _ in range(80):
            browser.switch_to.active_element.send_keys(Keys.TAB)
            if browser.switch_to.active_element.text.strip() == text:
                return
        raise AssertionError(f"no way to {text}")

    for label, heading in (
        ("Preview…", "Start a rollout: renew 1 certificate?"),
        ("Change it", "Renew 1 certificate in waves"),
    ):
        tab_to(label)
        with person._new_page():
            browser.switch_to.active_element.send_keys(Keys.ENTER)
        assert person.heading() == heading
        for width in (1280, 390):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            found += [f"{heading} at {width}: {barrier}" for barrier in barriers(browser)]
            assert browser.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
        found += small_targets(browser)
    assert found == []


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
