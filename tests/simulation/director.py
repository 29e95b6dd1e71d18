"""Cause seeded trouble through operators, network and host, then end it: the host must converge."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from simulation.host_faults import HostFaults
from simulation.journal import Violation
from simulation.network_faults import NetworkFaults
from simulation.operators import Operators
from simulation.world import World

LEAST_EVENTS, MOST_EVENTS = 4, 12
PEACE_STEPS = 40


class Director:
    """The trouble of one history, and the end of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = random.Random(world.chances.random())
        self.operators = Operators(world, self.chance)
        self.host_faults = HostFaults(world, self.chance)
        self.network_faults = NetworkFaults(world, self.chance)
        world.host.check_end = self.host_faults.check_end

    async def trouble(self) -> None:
        """Run random actions for the span of the setting."""
        setting = self.world.setting
        end = trio.current_time() + setting.span
        await self.operators.begin()
        actions = [*self.operators.actions(), *self.host_faults.actions(), *self.network_faults.actions()]
        calls = [call for _, call in actions]
        weights = [weight * setting.emphasis.get(call.__name__, 1.0) for weight, call in actions]
        moments = sorted(
            end - setting.span * self.chance.random() for _ in range(self.chance.randint(LEAST_EVENTS, MOST_EVENTS))
        )
        async with trio.open_nursery() as nursery:
            for moment in moments:
                await trio.sleep_until(moment)
                nursery.start_soon(self._do, self.chance.choices(calls, weights)[0])
                self.world.auditor.services()
            await trio.sleep_until(end)
            nursery.cancel_scope.cancel()

    async def _do(self, call: Callable[[], Awaitable[Any]]) -> None:
        self.world.journal.note("director", call.__name__)
        await call()

    async def peace(self) -> None:
        """End all trouble and wait until the host matches the plane. Raises Violation if it does not in time."""
        world, setting = self.world, self.world.setting
        self.network_faults.end()
        self.host_faults.end()
        await self.operators.tidy_up()
        world.journal.note("director", "peace")
        bound = 1.25 * setting.reconcile + 1.1 * 3600 + 2 * 900 + 3 * setting.interval
        end, reasons = trio.current_time() + bound, ["not checked yet"]
        while reasons:
            if trio.current_time() > end:
                raise Violation(f"not converged {bound:.0f} s after all trouble: {'; '.join(reasons)}")
            await trio.sleep(bound / PEACE_STEPS / 4)
            world.auditor.services()
            if world.host.parked:
                await self.host_faults.enrol()
            await self.answer()
            reasons = self.operators.differences() or world.auditor.undelivered()

    async def answer(self) -> None:
        """Let the operators answer what the agent asks."""
        process = self.world.host.process
        if process is None or process.agent is None or process.over.is_set() or "forget" not in process.operations:
            return

        async def ask(operation: str, **request: object) -> Any:
            self.world.auditor.excused = True
            return await process.operations[operation](request)

        await self.operators.answer(ask, process.agent)
