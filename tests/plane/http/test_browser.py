"""The approval page in a real browser: sign in, enter the code, check the device, approve."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from browser import Person

from certctrl.plane.serve import PlaneAddress, serve_plane

pytestmark = pytest.mark.integration

PICTURES = os.environ.get("CERTCTRL_TEST_PICTURES", "")
"""A directory for screenshots, to be reviewed by hand."""


@pytest.mark.parametrize("mode", ["light", "dark"])
async def test_an_operator_approves_a_device(start_browser: Callable[..., Any], tmp_path: Path, mode: str) -> None:
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
    assert person.heading() == "Approve this device?"
    for fact in (grant["user_code"], "web-1.example.com", "Debian GNU/Linux 12", "127.0.0.1"):
        assert fact in person.text()
    assert re.search(r" UTC \(\d+ seconds? ago\)", person.text())
    person.picture("4-decide")
    person.press("Approve")
    assert person.heading() == "web-1.example.com is approved"
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
