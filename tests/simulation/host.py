"""The simulated host: a disk that outlives processes, and one agent process after another, as systemd runs them.

A kill copies the disk in that instant for the next process. The tasks of the killed process keep running without
effect: no other process sees their disk, their network and commands are dead.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attrs
import trio
from simulation.clock import Clock
from simulation.disk import SimulatedDisk
from simulation.journal import Journal, Violation
from simulation.network import Network, SimulatedHttp
from simulation.service import Services, SimulatedProc

from certctrl.agent.context import Agent
from certctrl.agent.control import Operation
from certctrl.agent.os_signals import OnSignal
from certctrl.agent.run import run_agent
from certctrl.agent.setup import Seams
from certctrl.errors import CertctrlError, ExitStatus, NotRegisteredError
from certctrl.model.status import StopReason
from certctrl.model.stop import Stop
from certctrl.store.disk.fs import Fs

RESTART_SECONDS = 5.0
FAILED_START_SECONDS = 60.0
"""In reality 5 s as well, but an hour of a broken disk would be 720 identical failed starts."""
STOP_SECONDS = 10.0 + 2.0
"""Longest orderly stop: `stop_grace_seconds` and two seconds."""
DELAYS = 0.05
"""Share of disk operations that are slow."""

current: ContextVar[AgentProcess] = ContextVar("current")


@attrs.define(eq=False)
class AgentProcess:
    """One agent process."""

    number: int
    services: Services
    disk: SimulatedDisk
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    over: trio.Event = attrs.field(factory=trio.Event)
    dead: bool = False
    agent: Agent | None = None
    on: OnSignal | None = None
    operations: Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]] = attrs.field(factory=dict)
    stop: Stop | None = None
    error: CertctrlError | None = None
    asked: bool = False
    """Whether SIGTERM was sent."""


class Host:
    """The host: disk, services, and the agent under systemd."""

    def __init__(
        self, root: Path, disk: SimulatedDisk, time: Clock, network: Network, services: Services,
        journal: Journal, chance: random.Random, environ: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.root, self.disk, self.clock, self.network = root, disk, time, network
        self.services, self.journal, self.chance, self.environ = services, journal, chance, dict(environ)
        self.process: AgentProcess | None = None
        self.starts = 0
        self.crashes = 0
        self.freezes = 0
        self.parked: str = ""
        """Why the agent is down permanently; empty if it is not."""
        self.unpark = trio.Event()
        self.check_end: Callable[[AgentProcess], None] = lambda process: None
        self.check_start: Callable[[], None] = lambda: None

    # --- one process ----------------------------------------------------------------------------------------

    async def _offload(self, call: Callable[..., Any], *args: object) -> Any:
        """Stand in for a thread: other tasks run before and after it, and it cannot be cancelled half-way."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.chance.random() < DELAYS:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.chance.random() * 0.3)
        result = call(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    def _seams(self, process: AgentProcess) -> Seams:
        return Seams(
            fs=process.disk,
            http=lambda config, layout: SimulatedHttp(self.network, lambda: process.dead),
            wall_now=self.clock.host_now,
            steady_now=self.clock.steady_now,
            offload=self._offload,
            random=self.chance.random,
            proc=SimulatedProc(self.services, lambda: process.dead),  # type: ignore[arg-type]
            probe=self.services,
            environ=self.environ,
        )

    async def _run_process(self, process: AgentProcess) -> None:
        current.set(process)
        try:
            with process.scope:
                process.stop = await run_agent(self.root, seams=self._seams(process), task_status=_Started(process))
        except CertctrlError as error:
            process.error = error
        except (Exception, BaseExceptionGroup) as error:
            if not process.dead:
                error.add_note(f"process {process.number} ended by an exception instead of a Stop or a CertctrlError")
                raise
        process.over.set()

    # --- systemd --------------------------------------------------------------------------------------------

    async def run_forever(self) -> None:
        """Start and restart the agent, as its unit does, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self.check_start()
                self.starts += 1
                process = self.process = AgentProcess(self.starts, self.services, self.disk)
                self.journal.note("systemd", f"start process {process.number}")
                nursery.start_soon(self._run_process, process)
                await process.over.wait()
                self.journal.note("systemd", f"process {process.number} ended: {ending(process)}")
                if not process.dead:
                    self.check_end(process)
                if exit_status(process) is ExitStatus.NOT_REGISTERED and not process.dead:
                    self.parked = ending(process)
                    self.unpark = trio.Event()
                    await self.unpark.wait()
                    self.parked = ""
                await trio.sleep(RESTART_SECONDS if process.agent is not None else FAILED_START_SECONDS)

    # --- kill and stop -----------------------------------------------------------------------------

    def kill(self, *, power: bool) -> None:
        """End the process in this instant, by SIGKILL or a power cut."""
        process = self.process
        if process is None or process.over.is_set():
            return
        self.crashes += 1
        self.journal.note("host", f"{'power cut' if power else 'kill'} of process {process.number}")
        watch, process.disk.cut_in = process.disk.switched, -1
        process.disk.switched = None
        self.disk = process.disk.crashed(power=power)
        self.disk.switched = watch
        process.dead = True
        process.scope.cancel()
        process.over.set()

    def kill_within(self, operations: int, *, power: bool) -> None:
        """Kill right before the n-th disk change from now."""
        self.disk.cut = lambda disk: self.kill(power=power)
        self.disk.cut_in = operations

    async def stop(self) -> None:
        """Send SIGTERM. Raises Violation if the process does not end in time."""
        process = self.process
        if process is None or process.on is None or process.over.is_set():
            return
        process.asked, freezes = True, self.freezes
        process.on.stop("SIGTERM")
        with trio.move_on_after(STOP_SECONDS) as late:
            await process.over.wait()
        if late.cancelled_caught and self.freezes == freezes:
            raise Violation(f"the agent did not end within {STOP_SECONDS:g} s")


class _Started:
    """A TaskStatus that keeps the Agent."""

    def __init__(self, process: AgentProcess) -> None:
        self.process = process

    def started(self, value: Agent | None = None) -> None:
        self.process.agent = value


def exit_status(process: AgentProcess) -> ExitStatus:
    """Return the exit status of a process."""
    if process.error is not None:
        return process.error.exit_status
    if process.stop is not None and process.stop.reason in (StopReason.REVOKED, StopReason.REFRESH_REFUSED):
        return NotRegisteredError.exit_status
    return ExitStatus.DONE


def ending(process: AgentProcess) -> str:
    """Return one line about how a process ended."""
    if process.dead:
        return "killed"
    if process.error is not None:
        return f"{type(process.error).__name__}: {process.error}"
    return str(process.stop)


# --- stand-ins for what needs sockets and OS signals ----------------------------------------------------------


async def control_stand_in(
    fs: Fs,
    path: Path,
    operations: Callable[[], Mapping[str, Operation]],
    log: logging.Logger,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Stand in for ``serve_control``; tests call the operations directly."""
    current.get().operations = operations()
    task_status.started()
    await trio.sleep_forever()


async def signals_stand_in(on: OnSignal, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Stand in for ``watch_os_signals``."""
    current.get().on = on
    task_status.started()
    await trio.sleep_forever()
