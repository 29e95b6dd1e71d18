"""The simulated host: a disk that outlives processes, and one agent process after the other, as systemd runs it.

A kill takes a picture of the disk in that instant and hands it to the next process. What is left of the killed one
goes on unseen: its disk is nobody's any more, its network and its commands are dead.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attrs
import trio
from simulation.clockwork import WorldTime
from simulation.disk import SimulatedDisk
from simulation.journal import Journal, Violation
from simulation.network import Network, SimulatedHttp
from simulation.service import Services, SimulatedProc

from certctrl.agent.os_signals import OnSignal
from certctrl.agent.run import run_agent
from certctrl.agent.setup import Seams
from certctrl.errors import CertctrlError, ExitStatus, NotRegisteredError
from certctrl.model.status import StopReason
from certctrl.model.stop import Stop

RESTART_SECONDS = 5.0
FAILED_START_SECONDS = 60.0
"""In life these are 5 s as well: an hour of a broken disk would be 720 starts that all fail alike."""
STOP_SECONDS = 10.0 + 5.0 + 5.0 + 2.0 + 2.0 + 1.0
"""Grace, a refresh under way, ack flush, client, tokens, and a second: the longest that an orderly stop may take."""
DELAYS = 0.05
"""Share of disk work that takes a while."""

current: ContextVar[Life] = ContextVar("current")


@attrs.define(eq=False)
class Life:
    """One agent process."""

    number: int
    services: Services
    disk: SimulatedDisk
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    over: trio.Event = attrs.field(factory=trio.Event)
    dead: bool = False
    agent: Any = None
    on: OnSignal | None = None
    operations: Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]] = attrs.field(factory=dict)
    stop: Stop | None = None
    error: CertctrlError | None = None
    asked: bool = False
    """SIGTERM was sent."""


class Machine:
    """The host."""

    def __init__(
        self, root: Path, disk: SimulatedDisk, time: WorldTime, network: Network, services: Services,
        journal: Journal, chance: random.Random, environ: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.root, self.disk, self.time, self.network = root, disk, time, network
        self.services, self.journal, self.chance, self.environ = services, journal, chance, dict(environ)
        self.life: Life | None = None
        self.lives = 0
        self.crashes = 0
        self.freezes = 0
        self.parked: str = ""
        """Why the agent is down for good; empty: it is not."""
        self.unpark = trio.Event()
        self.check_end: Callable[[Life], None] = lambda life: None
        self.check_start: Callable[[], None] = lambda: None

    # --- one process ----------------------------------------------------------------------------------------

    async def _offload(self, call: Callable[..., Any], *args: Any) -> Any:
        """Stand in for a thread: other tasks run before and after, and a cancel does not cut it short."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.chance.random() < DELAYS:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.chance.random() * 0.3)
        result = call(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    def _seams(self, life: Life) -> Seams:
        return Seams(
            fs=life.disk,
            http=lambda config, layout: SimulatedHttp(self.network, lambda: life.dead),
            wall_now=self.time.host_now,
            offload=self._offload,
            random=self.chance.random,
            proc=SimulatedProc(self.services, lambda: life.dead),  # type: ignore[arg-type]
            probe=self.services,
            environ=self.environ,
        )

    async def _live(self, life: Life) -> None:
        current.set(life)
        try:
            with life.scope:
                life.stop = await run_agent(self.root, seams=self._seams(life), task_status=_Started(life))
        except CertctrlError as error:
            life.error = error
        except (Exception, BaseExceptionGroup) as error:
            if not life.dead:
                error.add_note(f"process {life.number} ended by an exception, which is none of its ends")
                raise
        life.over.set()

    # --- systemd --------------------------------------------------------------------------------------------

    async def run_forever(self) -> None:
        """Start the agent and start it again, as its unit says, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self.check_start()
                self.lives += 1
                life = self.life = Life(self.lives, self.services, self.disk)
                self.journal.note("systemd", f"start process {life.number}")
                nursery.start_soon(self._live, life)
                await life.over.wait()
                self.journal.note("systemd", f"process {life.number} ended: {ending(life)}")
                if not life.dead:
                    self.check_end(life)
                if exit_status(life) is ExitStatus.NOT_REGISTERED and not life.dead:
                    self.parked = ending(life)
                    self.unpark = trio.Event()
                    await self.unpark.wait()
                    self.parked = ""
                await trio.sleep(RESTART_SECONDS if life.agent is not None else FAILED_START_SECONDS)

    # --- what happens to a host -----------------------------------------------------------------------------

    def kill(self, *, power: bool) -> None:
        """End the process in this instant: SIGKILL, or the power."""
        life = self.life
        if life is None or life.over.is_set():
            return
        self.crashes += 1
        self.journal.note("host", f"{'power cut' if power else 'kill'} of process {life.number}")
        watch, life.disk.cut_in = life.disk.switched, -1
        life.disk.switched = None
        self.disk = life.disk.crashed(power=power)
        self.disk.switched = watch
        life.dead = True
        life.scope.cancel()
        life.over.set()

    def kill_within(self, operations: int, *, power: bool) -> None:
        """Kill right before the n-th changing disk operation from now."""
        self.disk.cut = lambda disk: self.kill(power=power)
        self.disk.cut_in = operations

    async def stop(self) -> None:
        """Send SIGTERM and see the process end in time."""
        life = self.life
        if life is None or life.on is None or life.over.is_set():
            return
        life.asked, freezes = True, self.freezes
        life.on.stop("SIGTERM")
        with trio.move_on_after(STOP_SECONDS) as late:
            await life.over.wait()
        if late.cancelled_caught and self.freezes == freezes:
            raise Violation(f"SIGTERM was not obeyed within {STOP_SECONDS:g} s")


class _Started:
    """A TaskStatus that notes the Agent."""

    def __init__(self, life: Life) -> None:
        self.life = life

    def started(self, value: Any = None) -> None:
        self.life.agent = value


def exit_status(life: Life) -> ExitStatus:
    """Return what the process ends with."""
    if life.error is not None:
        return life.error.exit_status
    if life.stop is not None and life.stop.reason in (StopReason.REVOKED, StopReason.REFRESH_REFUSED):
        return NotRegisteredError.exit_status
    return ExitStatus.DONE


def ending(life: Life) -> str:
    """Return one line on how a process ended."""
    if life.dead:
        return "killed"
    if life.error is not None:
        return f"{type(life.error).__name__}: {life.error}"
    return str(life.stop)


# --- stand-ins for what needs sockets and OS signals ----------------------------------------------------------


async def control_stand_in(
    fs: Any, path: Path, operations: Any, log: Any, *, task_status: Any = trio.TASK_STATUS_IGNORED
) -> None:
    """Stand in for ``serve_control``: the operations are called directly."""
    current.get().operations = operations
    task_status.started()
    await trio.sleep_forever()


async def signals_stand_in(on: OnSignal, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    """Stand in for ``watch_os_signals``."""
    current.get().on = on
    task_status.started()
    await trio.sleep_forever()
