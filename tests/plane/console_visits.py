"""Visits to the console in tests: who signs in, what there is to see, and the texts of its pages."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

from page_browser import Browser
from plane_world import World

from certctrl.plane.access.roles import Role
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.settings import DAY

HOSTILE = "<script>alert(1)</script>\"'&\x00\u202e{csrf}"
ITEM = {"id": 1, "name": "nginx", "type": "exec", "cmd_argv": ["/bin/true"]}
PAGES = (
    "/fleet", "/fleet/devices", "/fleet/devices?state=stuck&q=web-*&tag=web&sort=ends", "/fleet/devices/1",
    "/fleet/certificates", "/fleet/certificates?state=valid&sort=name", "/fleet/certificates/1", "/fleet/rollouts",
    "/fleet/rollouts/1", "/fleet/rollouts/1/confirm?do=pause", "/fleet/rollouts/1/confirm?do=abort",
    "/fleet/devices/1/confirm?do=revoke", "/fleet/audit", "/fleet/devices?q=nothing-has-this", "/fleet/nothing",
)  # fmt: skip


async def signed_in(world: World, role: Role = Role.OPERATOR, name: str = "alice") -> Browser:
    """Return a browser in which an operator with this role has signed in."""
    accounts = world.plane.access.accounts
    await world.plane.work(accounts.add, name, role)
    token = (await world.plane.work(accounts.create_token, name, "laptop", None, DAY))["token"]
    browser = Browser(world.stranger)
    assert (await browser.sign_in(token)).status == 303
    return browser


async def rollout(world: World, **rules: Any) -> int:
    """Start a rollout over the devices with the tag web, and return its id."""
    plane = world.plane
    await plane.profiles.put(1, "nginx", ProfileChange(devices="web", order=10, installs=[ITEM], note=""))
    change = ProfileChange(devices="web", order=10, installs=[ITEM | {"cmd_argv": ["/bin/echo"]}], note="try")
    return int((await plane.rollouts.start(1, "nginx", change, RolloutRules(**rules)))["id"])


def text_of(reply: Any) -> str:
    """Return the text of a page's content, white space collapsed."""
    main = reply.body.decode().partition("<main")[2]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", main)).replace("\u202f", " ").split())


def csrf_of(reply: Any) -> str:
    found = re.search(rb'name="csrf" value="([0-9a-f]+)"', reply.body)
    assert found is not None
    return found[1].decode()


class Tags(HTMLParser):
    """Checks that tags are closed in order, and that nothing is inline that the policy forbids."""

    VOID = frozenset({"meta", "link", "input", "img", "path", "circle", "rect", "use", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        assert not [name for name in names if name == "style" or name.startswith("on")], (tag, attrs)
        self.scripts += tag == "script"
        assert tag != "script" or dict(attrs) == {"src": "/fleet/console.js", "defer": None}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
