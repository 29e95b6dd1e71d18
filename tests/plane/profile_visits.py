"""Visits to the pages of profiles and to the form for rollouts: what is sent, and what comes back."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

from console_visits import Tags
from page_browser import Browser
from plane_world import World

from certctrl.plane.audit.log import Filter
from certctrl.plane.profiles.profiles import ProfileChange

ITEM = {"id": "reload", "type": "exec", "cmd_argv": ["/bin/true"], "env": {"TOKEN": "tell-no-one"}}
OTHER = ITEM | {"cmd_argv": ["/bin/echo"]}
CHANGE, NEW, LIST = "/fleet/profiles/nginx/change", "/fleet/rollouts/new", "/fleet/profiles"
RULES = {"waves": "1, 50%", "canary": "", "max_failures": "0", "pause": "0s", "windows": "", "serial": ""}


def fields(*items: Any, **more: str) -> dict[str, str]:
    """Return the fields of a profile as a browser sends them, with its line ends."""
    text = json.dumps(list(items), indent=2).replace("\n", "\r\n")
    return {"devices": "web", "order": "10", "installs": text, "note": ""} | more


def of_page(reply: Any) -> dict[str, str]:
    """Return the hidden fields of a page's last form."""
    form = reply.body.decode().rpartition('<form method="post" action="/fleet')[2]
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)
    return {name: unescape(value) for name, value in found}


async def added(world: World, number: int) -> int:
    """Add a device, and return its id."""
    return (await world.device(f"{number:08x}-0000-4000-8000-000000000000", f"web-{number}")).id


async def three(world: World, *items: Any) -> None:
    """Add three devices with the tag web and, with items, the profile nginx for them."""
    ids = [await added(world, number) for number in (1, 2, 3)]
    await world.plane.work(lambda: world.plane.devices.tags.change(1, ids, add=["web"]))
    if items:
        change = ProfileChange(devices="web", order=10, installs=list(items), note="first")
        await world.plane.profiles.put(1, "nginx", change)


async def preview(browser: Browser, path: str, **values: Any) -> Any:
    """Ask for a preview with a form of the page."""
    await browser.get(path)
    return await browser.post(path, do="preview", **values)


def versions(world: World) -> list[int]:
    """Return the versions of the profile nginx that are stored."""
    return [row["version"] for row in world.plane.profiles.history(1, "nginx")]


def entries(world: World, what: str) -> list[dict[str, Any]]:
    """Return the changes of alice in the audit log."""
    return world.plane.audit.page(Filter(who="alice", what=what), 0, 9)


def well_formed(reply: Any, path: str) -> None:
    """Check that tags are closed in order, and that nothing runs but the script of the console."""
    assert reply.status in (200, 400, 404, 409), (path, reply.status)
    checker = Tags()
    checker.feed(reply.body.decode())
    assert (checker.open, checker.scripts) == ([], 1), path
    assert b"alert(1)</script>" not in reply.body and b"<b>" not in reply.body, path
