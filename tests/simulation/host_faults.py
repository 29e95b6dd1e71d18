"""Faults of a host: kills, power cuts, disk, clock, suspension, services, and operators logged in on it."""

from __future__ import annotations

import errno
import random
from typing import Any

import trio
from simulation.host import AgentProcess, ending
from simulation.operators import Action
from simulation.world import DEVICE, World, enrol_again

from certctrl.errors import DiskError
from certctrl.model.status import StopReason

CLOCK_ERRORS = (3600.0, -3600.0, 315_360_000.0, -315_360_000.0, -2e9)
LONGEST = 3 * 3600.0
SLEEP = 8 * 3600.0


class HostFaults:
    """Host faults, each for a while."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.host = world.host

    def actions(self) -> list[Action]:
        """Return the possible actions with their weights."""
        return [
            (2, self.kill_now), (4, self.kill_soon), (1.5, self.terminate), (2, self.report_disk_problem), (1, self.rot),
            (3, self.clock_jump), (1, self.suspend), (0.7, self.freeze), (2, self.reload_fails), (1, self.slow_reload),
            (1, self.poll_now), (0.5, self.hang_up), (0.5, self.apply), (2, self.write_back),
            *([(3, self.change_mode)] if self.world.setting.changing else []),
        ]  # fmt: skip

    def end(self) -> None:
        """End all host faults."""
        self.host.disk.trouble, self.host.disk.rotten = 0, 0.0
        self.host.disk.cut_in = -1
        self.world.clock.error = 0.0
        self.host.services.failing = lambda: False
        self.host.services.seconds = lambda: 0.05
        self.poke()

    def _a_while(self) -> float:
        setting = self.world.setting
        return min(setting.interval * self.chance.choice((0.5, 2, 5, 15)), setting.span / 6, LONGEST)

    # --- the process --------------------------------------------------------------------------------------------

    async def kill_now(self) -> None:
        self.host.kill(power=self.chance.random() < 0.5)

    async def kill_soon(self) -> None:
        """Kill the agent at one of the next disk operations."""
        self.host.kill_within(self.chance.choice((1, 3, 10, 40, 150)), power=self.chance.random() < 0.6)

    async def terminate(self) -> None:
        await self.host.stop()

    def check_end(self, process: AgentProcess) -> None:
        """Check how a process ended that was not killed."""
        auditor, stop = self.world.auditor, process.stop
        if isinstance(process.error, DiskError) and auditor.disk_was_ill:
            return
        if stop is not None and stop.reason is StopReason.ASKED and process.asked:
            return
        if stop is not None and stop.reason is StopReason.REVOKED and auditor.device_revoked:
            return
        if stop is not None and stop.reason is StopReason.REFRESH_REFUSED and (
            auditor.device_revoked or auditor.lost_session
        ):  # fmt: skip
            return
        auditor.fail(f"the agent ended without a reason: {ending(process)}")

    async def enrol(self) -> None:
        """Register the host again after its session ended, as an operator does."""
        world, auditor = self.world, self.world.auditor
        if not self.host.parked or world.network.app is None:
            return
        world.database.run("UPDATE devices SET status = 'active' WHERE id = ?", DEVICE)
        before, world.network.before = world.network.before, lambda exchange: None
        after, world.network.after = world.network.after, lambda exchange: None
        try:
            await enrol_again(world.layout, self.host.disk, world.plane, world.network, world.clock.host_now)
        finally:
            world.network.before, world.network.after = before, after
        auditor.enrolled()
        self.host.unpark.set()

    # --- the disk -----------------------------------------------------------------------------------------------

    async def report_disk_problem(self) -> None:
        """Make the disk full, over quota, or read-only."""
        self.host.disk.trouble = self.chance.choice((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
        self.world.auditor.disk_was_ill = True
        await trio.sleep(self._a_while())
        self.host.disk.trouble = 0

    async def rot(self) -> None:
        """Let some reads and syncs fail."""
        self.host.disk.rotten = self.chance.choice((0.02, 0.3))
        self.world.auditor.disk_was_ill = True
        await trio.sleep(self._a_while())
        self.host.disk.rotten = 0.0

    async def write_back(self) -> None:
        self.host.disk.write_back()

    # --- time -----------------------------------------------------------------------------------------------------

    async def clock_jump(self) -> None:
        """Set the wall clock wrong for a while; the monotonic clock is right."""
        self.world.clock.error = self.chance.choice(CLOCK_ERRORS)
        self.world.journal.note("host", f"clock wrong by {self.world.clock.error:g} s")
        await trio.sleep(self._a_while())
        self.world.clock.error = 0.0

    async def suspend(self) -> None:
        """Suspend the host: its clocks stand still while true time passes, and its connections break."""
        self.world.clock.slept += SLEEP
        self.world.network.break_connections()

    async def freeze(self) -> None:
        """Freeze the process (SIGSTOP, a frozen container): afterwards all its timers are due together."""
        self.host.freezes += 1
        trio.lowlevel.current_clock().jump(min(SLEEP, self.world.setting.span / 4))  # type: ignore[attr-defined]

    # --- services and operators -------------------------------------------------------------------------------------

    async def reload_fails(self) -> None:
        share = self.chance.choice((0.4, 1.0))
        self.host.services.failing = lambda: self.chance.random() < share
        await trio.sleep(self._a_while())
        self.host.services.failing = lambda: False

    async def slow_reload(self) -> None:
        self.host.services.seconds = lambda: 10 * self.chance.random()
        await trio.sleep(self._a_while())
        self.host.services.seconds = lambda: 0.05

    def poke(self) -> None:
        """Request a poll, as SIGUSR1 does."""
        process = self.host.process
        if process is not None and process.on is not None and not process.over.is_set():
            self.world.auditor.excused = True
            process.on.poll_now()

    async def poll_now(self) -> None:
        self.poke()

    async def hang_up(self) -> None:
        """Send SIGHUP."""
        process = self.host.process
        if process is not None and process.on is not None and not process.over.is_set():
            process.on.reload()

    async def change_mode(self) -> None:
        """Change ``poll_mode`` and send SIGHUP."""
        mode = self.chance.choice(("interval", "long-poll", "adaptive", "push", "push"))
        self.world.journal.note("operator", f"poll_mode: {mode}")
        self.host.environ["CERTCTRL_POLL_MODE"] = mode
        await self.hang_up()

    async def apply(self) -> None:
        """Run ``cert-ctrl apply --now`` as an operator on the host."""
        process: Any = self.host.process
        if process is not None and process.operations and not process.over.is_set():
            try:
                await process.operations["apply"]({"now": True})
            except Exception as error:  # reported to the operator; the auditor checks the rest
                self.world.journal.note("operator", f"apply: {type(error).__name__}: {error}")
