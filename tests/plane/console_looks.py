"""Looks at pages of the console in a real browser: each size and scheme, pictures, barriers, targets for fingers."""

from __future__ import annotations

import base64
import importlib.resources
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from browser import Person

PICTURES = os.environ.get("CERTCTRL_TEST_PICTURES", "")
"""A directory for screenshots, to be reviewed by hand."""
AXE = os.environ.get("CERTCTRL_TEST_AXE", "")
"""An axe.min.js that is newer than that of axe-core-python."""
LOOKS = ((1280, "light"), (390, "dark"), (1280, "dark"), (390, "light"))


def look_at(
    person: Person, url: str, pages: Mapping[str, str], pictures: Path, *, again: Collection[str] = ()
) -> list[str]:
    """Return what is wrong with pages: what axe-core finds, small targets; AssertionError for one that is too wide.

    ``again``: pages in which axe-core, which takes seconds, looks on a phone and in the dark, too.
    """
    browser, found = person.browser, list[str]()
    for width, scheme in LOOKS:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        schemes = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", schemes)
        for name, path in pages.items():
            person.open(url + path)
            wide = browser.execute_script("return document.documentElement.scrollWidth") - width
            assert wide <= 0, f"{name} at {width}: {wide} px are beyond the edge"
            picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            (pictures / f"{name}-{width}-{scheme}.png").write_bytes(base64.b64decode(picture["data"]))
            if (width, scheme) == (1280, "light") or ((width, scheme) == (390, "dark") and name in again):
                found += [f"{name} at {width}, {scheme}: {barrier}" for barrier in barriers(browser)]
            if width < 500:
                found += [f"{name}: small {target}" for target in small_targets(browser)]
    return found


def barriers(browser: Any) -> list[str]:
    """Return what axe-core finds, with the elements."""
    browser.set_script_timeout(300)  # of a busy machine
    browser.execute_script(axe_script())
    script = "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
    return [
        f"{one['impact']} {one['id']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in browser.execute_async_script(script)
    ]


def axe_script() -> str:
    """Return the text of axe-core."""
    if AXE:
        return Path(AXE).read_text()
    return (importlib.resources.files("axe_core_python") / "axe.min.js").read_text()


def small_targets(browser: Any) -> list[str]:
    """Return buttons and fields that are too small for a finger."""
    script = """return [...document.querySelectorAll("button, .button, select, input:not([type=hidden]):not([type=checkbox])")]
      .filter(e => e.getClientRects().length && e.closest("details:not([open])") === null && e.getBoundingClientRect().height < 43)
      .map(e => e.outerHTML.slice(0, 80))"""
    found: list[str] = browser.execute_script(script)
    return found
