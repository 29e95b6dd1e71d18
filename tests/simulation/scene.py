"""Scenarios: one agent in its world, with helpers that act, wait and read."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from simulation.batchauditor import watch_batches
from simulation.clock import run_seeded
from simulation.history import logged_to_journal, stand_ins
from simulation.network import Exchange
from simulation.operators import Operators
from simulation.world import DEVICE, USER, Setting, Template, World, template

from certctrl.agent.context import Agent
from certctrl.model.records import CertRecord, Retry, RetryKind
from certctrl.plane.core import Plane

DAY = 86_400.0
QUIET = Setting(span=0.0, interval=60.0)


class Scene:
    """A world with one agent, for a scenario."""

    def __init__(self, setting: Setting, environ: dict[str, str], made: Template | None = None) -> None:
        self.world = World(1, setting, made)
        watch_batches(self.world)
        self.operators = Operators(self.world, random.Random(1))
        self.host, self.network = self.world.host, self.world.network
        self.host.environ |= {"CERTCTRL_FIRST_POLL_SPREAD_SECONDS": "0", **environ}
        self.sent: list[Exchange] = []
        audit = self.network.before

        def before(exchange: Exchange) -> None:
            self.sent.append(exchange)
            audit(exchange)

        self.network.before = before

    @property
    def ready(self) -> bool:
        """Whether the agent is running."""
        return self.host.process is not None and self.host.process.agent is not None

    @property
    def agent(self) -> Agent:
        """The running agent."""
        assert self.host.process is not None and self.host.process.agent is not None
        return self.host.process.agent

    @property
    def plane(self) -> Plane:
        """The running plane; a restore replaces it."""
        return self.world.plane

    @property
    def polls(self) -> list[Exchange]:
        return [exchange for exchange in self.sent if exchange.is_poll]

    @property
    def log(self) -> str:
        return self.world.journal.text(4000)

    async def issue(self, domain: str, validity: float = 200 * DAY) -> dict[str, Any]:
        return await self.plane.certificates.issue(USER, [domain], validity_seconds=int(validity), device_ids=[DEVICE])

    async def until(self, condition: Callable[[], Any], within: float = 3600.0) -> None:
        """Wait until the agent is ready and a condition is true. Raises AssertionError with the journal otherwise."""
        end = trio.current_time() + within
        while not (self.ready and condition()):
            assert trio.current_time() < end, f"not true within {within:g} s\n{self.log}"
            await trio.sleep(max(1.0, within / 3600))

    def record(self, cert_id: int) -> CertRecord:
        """Return the record of a certificate that this host has."""
        return self.agent.installer.records[cert_id]

    def retry(self, cert_id: int) -> Retry:
        """Return the retry of a certificate; one without attempts if there is none."""
        resource = f"cert:{cert_id}"
        blank = Retry(resource=resource, kind=RetryKind.WAITING, failures=0)
        return self.agent.installer.retries.of(resource) or blank

    def live(self, cert_id: int) -> bool:
        """Return whether a certificate is live."""
        record = self.agent.installer.records.get(cert_id)
        return record is not None and bool(record.generation)

    async def ask(self, operation: str, **request: object) -> Any:
        """Call an operation of the control socket, as a one-shot command does."""
        assert self.host.process is not None
        self.world.auditor.excused = True
        return await self.host.process.operations[operation](request)

    def outcomes(self) -> list[tuple[str, str]]:
        """Return type and outcome of the reports at the plane, newest first."""
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
            with logged_to_journal(scene.world), scene.world.auditor.over:
                async with trio.open_nursery() as nursery:
                    scene.network.nursery = nursery
                    nursery.start_soon(scene.host.run_forever)
                    await scenario(scene)
                    nursery.cancel_scope.cancel()
            if scene.world.auditor.violation is not None:
                raise scene.world.auditor.violation
        finally:
            scene.world.close()

    template()
    with stand_ins():
        run_seeded(1, run)
