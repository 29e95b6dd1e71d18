"""A history that is written down: one agent in its world, and what a scenario asks, waits for and looks at."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from simulation.clockwork import run_seeded
from simulation.history import heard, stand_ins
from simulation.network import Exchange
from simulation.operators import Operators
from simulation.world import DEVICE, USER, Setting, Template, World, template

DAY = 86_400.0
QUIET = Setting(span=0.0, interval=60.0)


class Scene:
    """A world with one agent in it, and what a test looks at."""

    def __init__(self, setting: Setting, environ: dict[str, str], made: Template | None = None) -> None:
        self.world = World(1, setting, made)
        self.operators = Operators(self.world, random.Random(1))
        self.machine, self.network, self.plane = self.world.machine, self.world.network, self.world.plane
        self.machine.environ |= {"CERTCTRL_FIRST_POLL_SPREAD_SECONDS": "0", **environ}
        self.sent: list[Exchange] = []
        audit = self.network.before

        def before(exchange: Exchange) -> None:
            self.sent.append(exchange)
            audit(exchange)

        self.network.before = before

    @property
    def agent(self) -> Any:
        """Return the Agent of the process that runs; None before it is ready."""
        return self.machine.life and self.machine.life.agent

    @property
    def polls(self) -> list[Exchange]:
        return [exchange for exchange in self.sent if exchange.is_poll]

    @property
    def log(self) -> str:
        return self.world.journal.text(4000)

    async def issue(self, domain: str, validity: float = 200 * DAY) -> dict[str, Any]:
        row: dict[str, Any] = await self.plane.certificates.issue(
            USER, [domain], validity_seconds=int(validity), device_ids=[DEVICE]
        )
        return row

    async def until(self, condition: Callable[[], Any], within: float = 3600.0) -> None:
        """Wait for a condition; what never comes true fails here, with the journal."""
        end = trio.current_time() + within
        while not (self.agent is not None and condition()):
            assert trio.current_time() < end, f"not within {within:g} s\n{self.log}"
            await trio.sleep(max(1.0, within / 3600))

    def record(self, cert_id: int) -> Any:
        return self.agent.installer.records.get(cert_id)

    def live(self, cert_id: int) -> bool:
        record = self.record(cert_id)
        return record is not None and bool(record.generation)

    async def ask(self, operation: str, **request: Any) -> Any:
        """Ask as a one-shot command does, over the control socket."""
        assert self.machine.life is not None
        self.world.auditor.excused = True
        return await self.machine.life.operations[operation](request)

    def outcomes(self) -> list[tuple[str, str]]:
        """Return what the plane was told, the newest first."""
        return [(row["signal"]["type"], row["outcome"]) for row in self.plane.reports.outcomes(DEVICE)]


def play(
    scenario: Callable[[Scene], Awaitable[None]],
    setting: Setting = QUIET,
    environ: dict[str, str] | None = None,
    made: Template | None = None,
    prepare: Callable[[Scene], None] = lambda scene: None,
) -> None:
    """Run a scenario next to the agent, checked by the auditor of the random histories.

    ``made`` is the host to begin with, ``prepare`` is called before the agent starts.
    """

    async def run() -> None:
        scene = Scene(setting, environ or {}, made)
        prepare(scene)
        try:
            with heard(scene.world), scene.world.auditor.over:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(scene.machine.run_forever)
                    await scenario(scene)
                    nursery.cancel_scope.cancel()
            if scene.world.auditor.violation is not None:
                raise scene.world.auditor.violation
        finally:
            scene.world.close()

    template()
    with stand_ins():
        run_seeded(1, run)
