"""The approval page in a real browser: a person signs in, types the code, reads who asks, approves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from certctrl.plane.serve import PlaneAddress, serve_plane

pytestmark = pytest.mark.integration

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--ignore-certificate-errors",
    "--window-size=900,1000",
)  # fmt: skip
PICTURES = os.environ.get("CERTCTRL_TEST_PICTURES", "")
"""A directory to leave screenshots in, for a person to look at."""


@pytest.fixture
def start_browser(
    need: Callable[[str], str], need_module: Callable[[str], None], tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    need_module("selenium")
    chromium, driver = need("chromium"), need("chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    started: list[Any] = []

    def start(*more: str) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*FLAGS, *more, f"--user-data-dir={tmp_path / f'profile-{len(started)}'}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(driver))
        browser.set_page_load_timeout(30)
        started.append(browser)
        return browser

    yield start
    for browser in started:
        browser.quit()


class Person:
    """Drives one browser and looks at what it shows; every call blocks, so it runs in a thread."""

    def __init__(self, browser: Any, pictures: Path, mode: str) -> None:
        self.browser = browser
        self._pictures = pictures
        self._mode = mode

    def open(self, url: str) -> None:
        self.browser.get(url)

    def heading(self) -> str:
        return str(self.browser.find_element("tag name", "h1").text)

    def text(self) -> str:
        return str(self.browser.find_element("tag name", "main").text)

    def focused(self) -> str:
        return str(self.browser.switch_to.active_element.get_attribute("name"))

    def type(self, text: str) -> None:
        field = self.browser.switch_to.active_element
        field.clear()
        with self._new_page():
            field.send_keys(text + "\n")

    def press(self, label: str) -> None:
        with self._new_page():
            self.browser.find_element("xpath", f"//button[normalize-space()='{label}']").click()

    @contextmanager
    def _new_page(self) -> Iterator[None]:
        """Wait until what happens inside has replaced the page by another that is complete."""
        from selenium.webdriver.support.expected_conditions import staleness_of
        from selenium.webdriver.support.wait import WebDriverWait

        wait, old = WebDriverWait(self.browser, 20), self.browser.find_element("tag name", "html")
        yield
        wait.until(staleness_of(old))
        wait.until(lambda browser: browser.execute_script("return document.readyState") == "complete")

    def picture(self, name: str) -> None:
        path = self._pictures / f"{name}-{self._mode}.png"
        assert self.browser.save_screenshot(str(path))
        assert path.stat().st_size > 5000

    def colour(self, selector: str, which: str) -> str:
        return str(self.browser.find_element("css selector", selector).value_of_css_property(which))

    def complaints(self) -> list[str]:
        """Return what the browser refused or failed to load (blocked by the policy, missing, not found)."""
        return [entry["message"] for entry in self.browser.get_log("browser") if "favicon.ico" not in entry["message"]]


@pytest.mark.parametrize("mode", ["light", "dark"])
async def test_a_person_approves_a_device(start_browser: Callable[..., Any], tmp_path: Path, mode: str) -> None:
    pictures = Path(PICTURES) if PICTURES else tmp_path
    browser = await trio.to_thread.run_sync(
        start_browser, *(["--blink-settings=preferredColorScheme=0"] if mode == "dark" else [])
    )
    person = Person(browser, pictures, mode)

    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane"))
        grant = await start_grant(address)
        key = address.operator_key_file.read_text().strip()
        await trio.to_thread.run_sync(walk, person, address.url, key, grant, mode)
        assert (await poll_grant(address, grant))["status"] == "ready"
        nursery.cancel_scope.cancel()


def walk(person: Person, url: str, key: str, grant: dict[str, Any], mode: str) -> None:
    person.open(f"{url}/device")
    assert person.heading() == "Sign in"
    assert person.focused() == "key"
    assert person.colour("body", "background-color") == (
        "rgba(15, 21, 19, 1)" if mode == "dark" else "rgba(243, 245, 244, 1)"
    )
    person.picture("1-sign-in")
    person.type("ok_not-the-key")
    assert "This is not the operator key" in person.text()
    person.picture("2-wrong-key")
    assert [line for line in person.complaints() if "403" not in line] == []
    person.type(key)
    assert person.heading() == "Approve a device"
    assert person.focused() == "user_code"
    person.picture("3-code")
    person.type("zzzz-zzzz")
    assert "No device shows this code" in person.text()
    assert person.focused() == "user_code"
    person.type(grant["user_code"].lower())
    assert person.heading() == "Let this device in?"
    for fact in (grant["user_code"], "web-1.example.com", "Debian GNU/Linux 12", "127.0.0.1", "UTC", "seconds ago"):
        assert fact in person.text()
    person.picture("4-decide")
    person.press("Approve")
    assert person.heading() == "web-1.example.com may join"
    person.picture("5-done")
    person.press("Sign out")
    assert person.heading() == "Sign in"
    cookies = {cookie["name"] for cookie in person.browser.get_cookies()}
    assert "__Host-certctrl-operator" not in cookies
    assert [line for line in person.complaints() if "404" not in line] == []


async def ask(address: PlaneAddress, body: dict[str, Any]) -> dict[str, Any]:
    import json
    import ssl
    import urllib.request

    def post() -> dict[str, Any]:
        request = urllib.request.Request(
            f"{address.url}/auth/device", json.dumps(body).encode(),
            {"content-type": "application/json", "user-agent": "cert-ctrl/0.1.0"},
        )  # fmt: skip
        context = ssl.create_default_context(cafile=str(address.ca_file))
        with urllib.request.urlopen(request, context=context, timeout=10) as reply:
            data: dict[str, Any] = json.loads(reply.read())["data"]
            return data

    return await trio.to_thread.run_sync(post)


async def start_grant(address: PlaneAddress) -> dict[str, Any]:
    return await ask(
        address, {"action": "device_start", "name": "web-1.example.com", "platform": "Debian GNU/Linux 12"}
    )


async def poll_grant(address: PlaneAddress, grant: dict[str, Any]) -> dict[str, Any]:
    return await ask(address, {"action": "device_poll", "device_code": grant["device_code"]})
