"""Faults of the network and the plane: outages, gateways, portals, error answers, and changed pages."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import trio
from simulation.network import NOTIFY_PATH, REFRESH_PATH, NetworkFault
from simulation.operators import Action
from simulation.world import World

from certctrl.model.features import ATOMIC_BATCH, PLANE_FEATURES
from certctrl.protocol.wire.poll import UPDATES_PATH

RETRY_AFTERS: tuple[tuple[str, float | None], ...] = (
    ("0", 0.0), ("1", 1.0), ("7.5", 7.5), ("120", 120.0), ("3600", 3600.0), ("1e9", 3600.0), ("1e400", 3600.0),
    ("-1", 0.0), ("junk", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ("Fri, 21 Oct 2089 07:28:00 GMT", 3600.0),
)  # fmt: skip
LONGEST = 3 * 3600.0
LOSING = ("lost", "slow", "truncated", "reset")
"""Faults after which a refresh token may have been used."""


class NetworkFaults:
    """Network faults, each for a while."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.app: Callable[..., Any] | None = None

    def actions(self) -> list[Action]:
        """Return the possible actions with their weights."""
        return [
            (9, self.bad_connections),
            (3, self.bad_answers),
            (3, self.mischief),
            (2, self.plane_down),
            (1, self.plane_restarts),
            (1, self.cut),
            (2, self.lag),
            *(
                [(2, self.half_open), (2, self.block_upgrades), (2, self.cut)]
                if self.world.setting.mode == "push" or self.world.setting.changing
                else []
            ),
            *([(3, self.change_release)] if self.world.setting.changing else []),
        ]

    def end(self) -> None:
        """End all network faults."""
        self.world.network.clear()
        self.world.lacking.clear()
        if self.world.network.app is None:
            self.world.network.app = self.app

    async def change_release(self) -> None:
        """Restart the plane with a release that lacks some features; agents know until their next token refresh."""
        lacking = self.world.lacking
        lacking.clear()
        lacking.update(one for one in sorted(PLANE_FEATURES) if self.chance.random() < 0.4)
        self.world.journal.note("plane", f"lacks {', '.join(sorted(lacking)) or 'nothing'}")
        self.world.network.cut_sockets()
        if ATOMIC_BATCH in lacking:
            self.world.batches.clear()

    def _a_while(self) -> float:
        setting = self.world.setting
        return min(setting.interval * self.chance.choice((0.5, 2, 5, 15)), setting.span / 6, LONGEST)

    async def bad_connections(self) -> None:
        """Give no connection, no answer, or half an answer."""
        kind = self.chance.choice(("refused", "blackhole", "reset", "lost", "slow", "truncated"))
        await self._apply(NetworkFault(kind=kind, seconds=self.chance.choice((1.0, 8.0, 29.0, 60.0))))

    async def bad_answers(self) -> None:
        """Give answers of gateways and portals, with every kind of Retry-After."""
        kind = self.chance.choice(
            ("status", "status", "html", "empty", "junk", "expired-cursor", "unauthorized", "challenge", "redirect",
             "no-etag", "etag-weak")
        )  # fmt: skip
        status = self.chance.choice((400, 403, 404, 409, 429, 429, 500, 502, 503, 503))
        asked, means = self.chance.choice(RETRY_AFTERS) if self.chance.random() < 0.7 else (None, None)
        means = means if kind in ("status", "html", "empty") and (status == 429 or status >= 500) else None
        await self._apply(NetworkFault(kind=kind, status=status, retry_after=asked, asks=means))

    async def _apply(self, fault: NetworkFault) -> None:
        paths = ("", "", UPDATES_PATH, NOTIFY_PATH, REFRESH_PATH)
        path, share = self.chance.choice(paths), self.chance.choice((0.3, 1.0))
        if fault.kind == "expired-cursor":
            path = UPDATES_PATH
        if fault.kind in LOSING and self.world.setting.rotate and path in ("", REFRESH_PATH):
            path = UPDATES_PATH  # a rotating plane that loses its own answers ends the session
        fault = attrs.evolve(fault, path=path, share=share)
        self.world.journal.note("network", f"{fault}")
        self.world.network.faults.append(fault)
        try:
            await trio.sleep(self._a_while())
        finally:
            if fault in self.world.network.faults:
                self.world.network.faults.remove(fault)

    async def plane_down(self) -> None:
        """Take the plane down; open connections break."""
        network = self.world.network
        if network.app is None:
            return
        self.app, network.app = network.app, None
        network.break_connections()
        try:
            await trio.sleep(self._a_while())
        finally:
            network.app = network.app or self.app  # type: ignore[redundant-expr]  # it may have been set meanwhile

    async def plane_restarts(self) -> None:
        """Stop the plane in order, which answers its polls, and start it again."""
        world, network = self.world, self.world.network
        if network.app is None:
            return
        world.plane.stop_polls()
        try:
            await trio.sleep(1)
            self.app, network.app = network.app, None
            network.break_connections()
            await trio.sleep(self.chance.choice((1.0, 10.0, 60.0)))
        finally:
            if world.plane.polls.draining:
                world.plane = world.open_plane(world.image())
            network.app = network.app or self.app

    async def cut(self) -> None:
        """Break all connections."""
        self.world.network.break_connections()

    async def half_open(self) -> None:
        """Lose everything on the open push sockets from now on, without a sign."""
        for socket in self.world.network.sockets:
            socket.silent = True

    async def block_upgrades(self) -> None:
        """Put a proxy in between that lets no upgrade pass."""
        network = self.world.network
        network.blocks_upgrades = True
        network.cut_sockets()
        try:
            await trio.sleep(self._a_while())
        finally:
            network.blocks_upgrades = False

    async def lag(self) -> None:
        """Answer requests for resources from a copy of the plane that lags behind its signals."""
        self.world.lag()
        await trio.sleep(self._a_while())
        self.world.network.replica = None

    async def mischief(self) -> None:
        """Reorder, duplicate, drop or repeat signals of pages, or add invalid ones."""
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
