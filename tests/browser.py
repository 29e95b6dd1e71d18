"""A user at a real browser: Chromium, driven from a thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--ignore-certificate-errors",
    "--window-size=900,1000",
)  # fmt: skip


def start(chromium: str, driver: str, profile: Path, *more: str) -> Any:
    """Return a started browser with a new profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, *more, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    browser.set_page_load_timeout(30)
    return browser


class Person:
    """Drives one browser and reads its page. All calls block: use it in a thread."""

    def __init__(self, browser: Any, pictures: Path, mode: str, patience: float = 20.0) -> None:
        self.browser = browser
        self._patience = patience
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
        """Wait until the body of the block has replaced the page and the new one is complete.

        The old page carries a mark. Its nodes are not used while it is replaced, because Chromium then fails with
        errors such as "Node with given id does not belong to the document".
        """
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.wait import WebDriverWait

        self.browser.execute_script("window.leftBehind = true")
        yield
        WebDriverWait(self.browser, self._patience, ignored_exceptions=[WebDriverException]).until(
            lambda browser: browser.execute_script("return !window.leftBehind && document.readyState === 'complete'")
        )

    def picture(self, name: str) -> None:
        path = self._pictures / f"{name}-{self._mode}.png"
        assert self.browser.save_screenshot(str(path))
        assert path.stat().st_size > 5000

    def colour(self, selector: str, which: str) -> str:
        return str(self.browser.find_element("css selector", selector).value_of_css_property(which))

    def complaints(self) -> list[str]:
        """Return what the browser blocked or failed to load."""
        return [entry["message"] for entry in self.browser.get_log("browser") if "favicon.ico" not in entry["message"]]


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
