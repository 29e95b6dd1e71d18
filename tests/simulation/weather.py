"""Trouble on the way to the plane: outages, gateways, portals, floods of refusals, and whoever edits pages."""

from __future__ import annotations

import random
from typing import Any

import attrs
import trio
from simulation.network import NOTIFY_PATH, REFRESH_PATH, Weather
from simulation.operators import Doing
from simulation.world import World

from certctrl.protocol.wire.poll import UPDATES_PATH

RETRY_AFTERS: tuple[tuple[str, float | None], ...] = (
    ("0", 0.0), ("1", 1.0), ("7.5", 7.5), ("120", 120.0), ("3600", 3600.0), ("1e9", 3600.0), ("1e400", 3600.0),
    ("-1", 0.0), ("junk", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ("Fri, 21 Oct 2089 07:28:00 GMT", 3600.0),
)  # fmt: skip
LONGEST = 3 * 3600.0
LOSING = ("lost", "slow", "truncated", "reset")
"""A refresh that meets these may have been spent."""


class WayFaults:
    """Weather and mischief, each for a while."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.app: Any = None

    def doings(self) -> list[Doing]:
        """Return what may happen, with weights."""
        return [(9, self.bad_weather), (3, self.bad_answers), (3, self.mischief), (2, self.plane_down), (1, self.cut)]

    def end(self) -> None:
        """Let there be none of it."""
        self.world.network.clear()
        if self.world.network.app is None:
            self.world.network.app = self.app

    def _a_while(self) -> float:
        setting = self.world.setting
        return min(setting.interval * self.chance.choice((0.5, 2, 5, 15)), setting.span / 6, LONGEST)

    async def bad_weather(self) -> None:
        """No connection, no answer, half an answer."""
        kind = self.chance.choice(("refused", "blackhole", "reset", "lost", "slow", "truncated"))
        await self._blow(Weather(kind=kind, seconds=self.chance.choice((1.0, 8.0, 29.0, 60.0))))

    async def bad_answers(self) -> None:
        """Answers of gateways and portals, with every kind of Retry-After."""
        kind = self.chance.choice(
            ("status", "status", "html", "empty", "junk", "expired-cursor", "unauthorized", "challenge", "redirect",
             "no-etag", "etag-weak")
        )  # fmt: skip
        status = self.chance.choice((400, 403, 404, 409, 429, 429, 500, 502, 503, 503))
        asked, means = self.chance.choice(RETRY_AFTERS) if self.chance.random() < 0.7 else (None, None)
        means = means if kind in ("status", "html", "empty") and (status == 429 or status >= 500) else None
        await self._blow(Weather(kind=kind, status=status, retry_after=asked, asks=means))

    async def _blow(self, weather: Weather) -> None:
        paths = ("", "", UPDATES_PATH, NOTIFY_PATH, REFRESH_PATH)
        path, share = self.chance.choice(paths), self.chance.choice((0.3, 1.0))
        if weather.kind == "expired-cursor":
            path = UPDATES_PATH
        if weather.kind in LOSING and self.world.setting.rotate and path in ("", REFRESH_PATH):
            path = UPDATES_PATH  # a rotating plane that loses its own answers ends sessions, and nothing helps
        weather = attrs.evolve(weather, path=path, share=share)
        self.world.journal.note("weather", f"{weather}")
        self.world.network.weather.append(weather)
        try:
            await trio.sleep(self._a_while())
        finally:
            if weather in self.world.network.weather:
                self.world.network.weather.remove(weather)

    async def plane_down(self) -> None:
        """Nobody listens; who was being answered is cut off."""
        network = self.world.network
        if network.app is None:
            return
        self.app, network.app = network.app, None
        network.break_connections()
        try:
            await trio.sleep(self._a_while())
        finally:
            network.app = network.app or self.app

    async def cut(self) -> None:
        """Every connection breaks."""
        self.world.network.break_connections()

    async def mischief(self) -> None:
        """Pages are reordered, doubled, thinned out, repeated, or mixed with nonsense."""
        kept: list[Any] = []

        def edit(page: dict[str, Any]) -> dict[str, Any]:
            signals = list(page["data"]["signals"])
            match self.chance.choice(("shuffle", "double", "thin", "thin", "repeat", "nonsense")):
                case "shuffle":
                    self.chance.shuffle(signals)
                case "double":
                    signals += signals
                case "thin":
                    signals = [one for one in signals if self.chance.random() < 0.5]
                case "repeat":
                    signals += kept[-5:]
                case "nonsense":
                    signals.append(self.chance.choice([7, None, {}, {"type": "cert.renewed"}, {"type": 5, "ref": []}]))
            kept.extend(page["data"]["signals"])
            return {**page, "data": {**page["data"], "signals": signals}}

        self.world.network.mischief = edit
        await trio.sleep(self._a_while())
        self.world.network.mischief = lambda page: page
