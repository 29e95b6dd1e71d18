"""What happens to a host: kills, power cuts, disks, clocks, sleep, services, and whoever is logged in."""

from __future__ import annotations

import errno
import random
from typing import Any

import trio
from simulation.machine import Life, ending
from simulation.operators import Doing
from simulation.world import DEVICE, World, enrol_again

from certctrl.errors import DiskError
from certctrl.model.status import StopReason

CLOCK_ERRORS = (3600.0, -3600.0, 315_360_000.0, -315_360_000.0, -2e9)
LONGEST = 3 * 3600.0
SLEEP = 8 * 3600.0


class HostFaults:
    """Bad luck, each kind for a while."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.machine = world.machine

    def doings(self) -> list[Doing]:
        """Return what may happen, with weights."""
        return [
            (2, self.kill_now), (4, self.kill_soon), (1.5, self.terminate), (2, self.disk_trouble), (1, self.rot),
            (3, self.clock_jump), (1, self.suspend), (0.7, self.freeze), (2, self.reload_fails), (1, self.slow_reload),
            (1, self.poll_now), (0.5, self.hang_up), (0.5, self.apply), (2, self.write_back),
        ]  # fmt: skip

    def end(self) -> None:
        """Let there be none of it."""
        self.machine.disk.trouble, self.machine.disk.rotten = 0, 0.0
        self.machine.disk.cut_in = -1
        self.world.time.error = 0.0
        self.machine.services.failing = lambda: False
        self.machine.services.seconds = lambda: 0.05
        self.poke()

    def _a_while(self) -> float:
        setting = self.world.setting
        return min(setting.interval * self.chance.choice((0.5, 2, 5, 15)), setting.span / 6, LONGEST)

    # --- the process --------------------------------------------------------------------------------------------

    async def kill_now(self) -> None:
        self.machine.kill(power=self.chance.random() < 0.5)

    async def kill_soon(self) -> None:
        """Kill at one of the next disk operations."""
        self.machine.kill_within(self.chance.choice((1, 3, 10, 40, 150)), power=self.chance.random() < 0.6)

    async def terminate(self) -> None:
        await self.machine.stop()

    def check_end(self, life: Life) -> None:
        """Judge how a process ended that nobody killed."""
        auditor, stop = self.world.auditor, life.stop
        if isinstance(life.error, DiskError) and auditor.disk_was_ill:
            return
        if stop is not None and stop.reason is StopReason.ASKED and life.asked:
            return
        if stop is not None and stop.reason is StopReason.REVOKED and auditor.device_revoked:
            return
        if stop is not None and stop.reason is StopReason.REFRESH_REFUSED and (
            auditor.device_revoked or auditor.lost_session
        ):  # fmt: skip
            return
        auditor.fail(f"the agent ended without reason: {ending(life)}")

    async def enrol(self) -> None:
        """Register the host again after its session ended: a person approves it."""
        world, auditor = self.world, self.world.auditor
        if not self.machine.parked or world.network.app is None:
            return
        world.database.run("UPDATE devices SET status = 'active' WHERE id = ?", DEVICE)
        before, world.network.before = world.network.before, lambda exchange: None
        after, world.network.after = world.network.after, lambda exchange: None
        try:
            await enrol_again(world.layout, self.machine.disk, world.plane, world.network, world.time.host_now)
        finally:
            world.network.before, world.network.after = before, after
        auditor.enrolled()
        self.machine.unpark.set()

    # --- the disk -----------------------------------------------------------------------------------------------

    async def disk_trouble(self) -> None:
        """Full, over quota, or read-only."""
        self.machine.disk.trouble = self.chance.choice((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
        self.world.auditor.disk_was_ill = True
        await trio.sleep(self._a_while())
        self.machine.disk.trouble = 0

    async def rot(self) -> None:
        """Some reads and syncs fail."""
        self.machine.disk.rotten = self.chance.choice((0.02, 0.3))
        self.world.auditor.disk_was_ill = True
        await trio.sleep(self._a_while())
        self.machine.disk.rotten = 0.0

    async def write_back(self) -> None:
        self.machine.disk.write_back()

    # --- time -----------------------------------------------------------------------------------------------------

    async def clock_jump(self) -> None:
        """The wall clock is wrong for a while; nobody's monotonic clock is."""
        self.world.time.error = self.chance.choice(CLOCK_ERRORS)
        self.world.journal.note("host", f"clock wrong by {self.world.time.error:g} s")
        await trio.sleep(self._a_while())
        self.world.time.error = 0.0

    async def suspend(self) -> None:
        """Close the lid: the host's clocks stand still, the world's go on, connections are gone."""
        self.world.time.slept += SLEEP
        self.world.network.break_connections()

    async def freeze(self) -> None:
        """Stop the process (SIGSTOP, a frozen container): all its timers are due at once."""
        self.machine.freezes += 1
        trio.lowlevel.current_clock().jump(min(SLEEP, self.world.setting.span / 4))  # type: ignore[attr-defined]

    # --- services and people ----------------------------------------------------------------------------------------

    async def reload_fails(self) -> None:
        share = self.chance.choice((0.4, 1.0))
        self.machine.services.failing = lambda: self.chance.random() < share
        await trio.sleep(self._a_while())
        self.machine.services.failing = lambda: False

    async def slow_reload(self) -> None:
        self.machine.services.seconds = lambda: 10 * self.chance.random()
        await trio.sleep(self._a_while())
        self.machine.services.seconds = lambda: 0.05

    def poke(self) -> None:
        """Ask for a poll now."""
        life = self.machine.life
        if life is not None and life.on is not None and not life.over.is_set():
            self.world.auditor.excused = True
            life.on.poll_now()

    async def poll_now(self) -> None:
        self.poke()

    async def hang_up(self) -> None:
        """SIGHUP."""
        life = self.machine.life
        if life is not None and life.on is not None and not life.over.is_set():
            life.on.reload()

    async def apply(self) -> None:
        """``cert-ctrl apply`` by somebody who is logged in."""
        life: Any = self.machine.life
        if life is not None and life.operations and not life.over.is_set():
            try:
                await life.operations["apply"]({"now": True})
            except Exception as error:  # told to whoever asked; what must hold is seen elsewhere
                self.world.journal.note("person", f"apply: {type(error).__name__}: {error}")
