"""Sign-in at an OpenID provider in a real browser, whose rules about cookies and redirects count."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from browser import Person

from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import OidcSettings, PlaneSettings

pytestmark = pytest.mark.integration

PICTURES = os.environ.get("CERTCTRL_TEST_PICTURES", "")
"""A directory for screenshots, to be reviewed by hand."""


async def test_an_operator_signs_in(start_browser: Callable[..., Any], issuer: str, tmp_path: Path) -> None:
    oidc = OidcSettings(issuer=issuer, client_id="plane", client_secret="s3cret", roles={"ops": "operator"})
    browser = await trio.to_thread.run_sync(start_browser)
    person = Person(browser, Path(PICTURES) if PICTURES else tmp_path, "light")
    async with trio.open_nursery() as nursery:
        serving = partial(serve_plane, tmp_path / "plane", settings=PlaneSettings(oidc=oidc))
        address: PlaneAddress = await nursery.start(serving)
        await trio.to_thread.run_sync(walk, person, address.url)
        nursery.cancel_scope.cancel()


def walk(person: Person, url: str) -> None:
    person.open(f"{url}/device?user_code=BCDF-GHJK")
    person.picture("1-sign-in")
    follow(person, "Sign in with single sign-on")
    assert person.heading() == "Authorize Client"
    person.press("u-alice")
    for _ in range(100):
        if person.heading() != "Signed in":
            break
        time.sleep(0.1)
    assert person.heading() == "Approve a device"
    assert "No device shows this code" in person.text(), "the code is still known, and so is the operator"
    person.press("Sign out")
    assert person.heading() == "Sign in"
    assert {cookie["name"] for cookie in person.browser.get_cookies()} == {"__Host-certctrl-form"}
    assert [line for line in person.complaints() if "404" not in line and "jsdelivr" not in line] == []


def follow(person: Person, text: str) -> None:
    from selenium.webdriver.common.by import By

    person.browser.find_element(By.PARTIAL_LINK_TEXT, text).click()
