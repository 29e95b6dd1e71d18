"""A person who watches the page of a rollout: what it says at each moment, and whether that is consistent."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from browser import Person
from watched_hosts import until

READ = """
const text = (e) => e ? e.innerText.trim().replace(/\\s+/g, " ") : "";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
return {
  same: window.watched === true, tab: document.title, heading: text(document.querySelector("h1")),
  state: text(document.getElementById("state")), below: text(document.getElementById("below")),
  tone: document.getElementById("say").className, says: text(document.querySelector("#say h2")), explains: text(document.querySelector("#say p")),
  waves: all("#waves tr").map((row) => ({
    name: text(row.children[0]), state: text(row.children[1]), devices: Number(text(row.children[2])),
    progress: text(row.children[3]), what: text(row.children[4]),
    bar: all("rect", row).map((part) => [part.className.baseVal, Number(part.getAttribute("width"))]),
  })),
  key: all(".key li").map(text),
  devices: all("#devices tbody tr").map((row) => [...row.children].map(text)), buttons: all("#acts a").map(text),
};
"""
COLOURS = {"proven": "f-good", "failed": "f-bad", "released": "f-info", "accepted": "f-soft", "skipped": "f-soft"}
TONES = {"running": "need need-info", "halted": "need need-bad", "paused": "need need-warn", "done": "need need-good"}
UNDER_WAY = ("held", "released")
SIZES = ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"))


@attrs.frozen(kw_only=True)
class Wave:
    """A row of the table of waves."""

    name: str
    state: str
    devices: int
    progress: str
    what: str
    bar: list[list[Any]]

    @property
    def counts(self) -> dict[str, int]:
        """The number of devices in each state, as the words below the bar say."""
        return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", self.progress)}


@attrs.frozen(kw_only=True)
class View:
    """What the page says at one moment."""

    same: bool
    tab: str
    heading: str
    state: str
    below: str
    tone: str
    says: str
    explains: str
    waves: list[Wave]
    key: list[str]
    devices: list[list[str]]
    buttons: list[str]

    def total(self, word: str) -> int:
        """Return the number of devices in a state."""
        return sum(wave.counts.get(word, 0) for wave in self.waves)

    def names(self, word: str) -> set[str]:
        """Return the devices that the page lists in a state."""
        return {device[0] for device in self.devices if device[1] == word}

    def check(self) -> None:
        """Check that the parts of the page say the same, and that no wave is ahead of one before it."""
        assert self.same, "the page was loaded anew"
        assert self.tone == TONES[self.state]
        assert self.tab.startswith(self.heading.removesuffix(self.state).strip()) and f", {self.state} " in self.tab
        assert f"{self.total('proven')} of {sum(wave.devices for wave in self.waves)} devices proven" in self.below
        for word in ("failed", "released", "accepted", "skipped"):
            assert len(self.names(word)) == self.total(word), word
        for wave in self.waves:
            counts, wide = wave.counts, 1000 / wave.devices
            assert sum(counts.values()) == wave.devices
            bar = [(COLOURS[word], counts[word] * wide) for word in COLOURS if word in counts]
            assert {css for css, _ in bar} == {css for css, _ in wave.bar}
            assert abs(sum(width for _, width in bar) - sum(width for _, width in wave.bar)) < 1
        shown = {word for wave in self.waves for word in wave.counts if word in COLOURS}
        assert {line.partition(":")[0] for line in self.key} == shown, "the key explains the colours of the bars"
        for before, after in zip(self.waves, self.waves[1:], strict=False):
            if set(after.counts) != {"held"}:
                assert not any(before.counts.get(word) for word in UNDER_WAY), f"{after.name} is ahead of {before.name}"


class Watcher:
    """Looks at one page, which refreshes itself, and keeps all that it has said."""

    def __init__(self, person: Person, pictures: Path, name: str, url: str) -> None:
        self.person, self._pictures, self._name, self._url = person, pictures, name, url
        self._began, self._last, self._taken = time.monotonic(), "", 0
        self._said = pictures / f"{name}.txt"
        self._said.write_text("")

    def open(self) -> None:
        """Open the page, and mark it: it must not be loaded anew."""
        self.person.open(self._url)
        self.mark()

    def mark(self) -> None:
        """Watch the page that is open now."""
        self.person.browser.execute_script("window.watched = true")

    def look(self) -> View:
        """Return what the page says, after checking it."""
        read: Mapping[str, Any] = self.person.browser.execute_script(READ)
        view = View(**{**read, "waves": [Wave(**wave) for wave in read["waves"]]})
        self._write(view)
        view.check()
        return view

    def _write(self, view: View) -> None:
        waves = [f"  {wave.name} ({wave.state}): {wave.progress}" for wave in view.waves]
        devices = [f"  {' | '.join(device[:4])}" for device in view.devices if device[1] in ("failed", "accepted")]
        said = "\n".join([f"{view.state}. {view.says}. {view.explains}", *waves, *devices])
        if said != self._last:
            self._last = said
            with self._said.open("a") as file:
                file.write(f"after {time.monotonic() - self._began:.0f} s: {said}\n")

    def sees(self, what: Callable[[View], bool], name: str) -> View:
        """Wait until the page says something."""
        found: list[View] = []

        def is_there() -> bool:
            view = self.look()
            if what(view):
                found.append(view)
            return bool(found)

        until(is_there, f"{self._name}: {name}; the page said {self._last}")
        return found[0]

    def pictures(self, name: str) -> None:
        """Take pictures of the whole page, at a desk and on a phone, light and dark."""
        self._taken += 1
        for width, scheme in SIZES:
            self._show(width, scheme)
            beyond = self.person.browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert beyond <= 0, f"{name} at {width}: {beyond} px are beyond the edge"
            picture = self.person.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            file = self._pictures / f"{self._name}-{self._taken}-{name}-{width}-{scheme}.png"
            file.write_bytes(base64.b64decode(picture["data"]))
        self._show(*SIZES[0])

    def _show(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.person.browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        self.person.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        schemes = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.person.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", schemes)
