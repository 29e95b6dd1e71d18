"""run_sandbox: plane, agent and a real TLS service in one nursery, and the script that is played with them.

The nesting is the order of stopping: the agent first (it still reports to the plane), then the service, the plane
last. The witness outlives what it looks at.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

import attrs
import trio

from certctrl.agent.clock import wall_now
from certctrl.agent.context import Agent
from certctrl.agent.register import register
from certctrl.agent.run import run_agent
from certctrl.agent.setup import Seams
from certctrl.errors import ExitStatus, UsageError
from certctrl.install.process import Proc
from certctrl.logs.setup import Logs
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.model.status import Stop, StopReason
from certctrl.net.control_plane import ControlPlane
from certctrl.net.operator import Operator
from certctrl.net.transport import HttpxHttp
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import PlaneSettings
from certctrl.sandbox.baseline import NAME as floor_name
from certctrl.sandbox.baseline import Floor
from certctrl.sandbox.following import ToldProc, follow_history
from certctrl.sandbox.narrator import Narrator, Retelling
from certctrl.sandbox.scenario import Script
from certctrl.sandbox.servers import choose_server, find_nginx
from certctrl.sandbox.witness_client import Witness, looking
from certctrl.sandbox.workspace import allow_service, sandbox_directory, stage_agent
from certctrl.store.config.files import load_config
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

USER_ID = 1


@attrs.frozen(kw_only=True)
class SandboxOptions:
    """What a person may choose."""

    service: str = "auto"
    """``nginx``, ``builtin``, or ``auto``: nginx when it is installed."""
    duration: float = 30.0
    """Seconds of renewing; 0: until interrupted."""
    certs: int = 3
    directory: Path | None = None
    """Kept afterwards; None: a temporary one."""
    as_json: bool = False
    every: float = 3.0
    """Seconds from one renewal to the next."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.certs <= 200:
            raise UsageError(f"--certs {self.certs}: not from 1 to 200")
        if self.duration < 0 or self.every < 0:
            raise UsageError("--duration and --every take seconds, 0 or more")


async def run_sandbox(options: SandboxOptions, *, out: TextIO | None = None) -> ExitStatus:
    """Play the show and return its verdict: DONE only if everything issued was served, and nothing mixed on disk.

    Raises UsageError, CommandError (the service does not start) and what agent or plane raise when they cannot run.
    SIGINT and SIGTERM end it in order, with the summary of what there was: INTERRUPTED.
    """
    out = out or sys.stdout
    narrator = Narrator(out, as_json=options.as_json, colour=out.isatty(), now=time.monotonic)
    nginx = find_nginx(options.service)
    with sandbox_directory(options.directory) as root:
        narrator.title(f"Plane, agent and {'nginx' if nginx else 'a built-in TLS service'} on 127.0.0.1, in {root}")
        if nginx is None and options.service == "auto":
            narrator.tell("service", "stand-in", "nginx is not installed: the built-in TLS service stands in for it")
        (root / "service").mkdir(mode=0o700)
        show = Show(options=options, narrator=narrator, root=root)
        with retold(narrator):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(show.stop_on_os_signal)
                async with looking(root / "service" / "witness.log") as witness:
                    script = await show.play(witness)
                    status = await script.conclude(interrupted=show.interrupted)
                nursery.cancel_scope.cancel()
        return status


@contextmanager
def retold(narrator: Narrator) -> Iterator[None]:
    """Send log records to the narrator, and nowhere else, for the length of the block."""
    root, ours = logging.getLogger(), logging.getLogger("certctrl")
    handlers, level = root.handlers[:], ours.level
    root.handlers = [Retelling(narrator)]
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        ours.setLevel(level)


@attrs.define(kw_only=True, eq=False)
class Show:
    """One run of the sandbox."""

    options: SandboxOptions
    narrator: Narrator
    root: Path
    acting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """The script; cancelled by the first OS signal, after which everything is still concluded in order."""
    interrupted: bool = False
    agent_ended: trio.Event = attrs.field(factory=trio.Event)

    async def stop_on_os_signal(self) -> None:
        """End the script at the first SIGINT or SIGTERM, everything at the second."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for _ in received:
                if self.interrupted:
                    raise KeyboardInterrupt
                self.interrupted = True
                self.narrator.title("\nInterrupted: stopping in order; once more stops at once.")
                self.acting.cancel()

    async def play(self, witness: Witness) -> Script:
        """Raise the plane, the agent and the service in turn; act; stop them in reverse."""
        settings = PlaneSettings(
            poll_rate=max(20.0, 4 / max(self.options.every, 0.05)), poll_burst=20
        )  # baseline.py's races
        async with trio.open_nursery() as plane_nursery:
            address = await plane_nursery.start(partial(serve_plane, self.root / "plane", settings=settings))
            self.narrator.tell("plane", "listening", f"control plane at {address.url}", url=address.url)
            script = await self._play_with_plane(address, witness)
            plane_nursery.cancel_scope.cancel()
        return script

    async def _play_with_plane(self, address: PlaneAddress, witness: Witness) -> Script:
        http = HttpxHttp(operator_config(address), root=self.root, wall_now=wall_now)
        try:
            operator = Operator(http, address.operator_key_file.read_text("ascii").strip(), wall_now=wall_now)
            layout = stage_agent(self.root, url=address.url, ca_pem=address.ca_file.read_bytes())
            device_id = await self._enrol(layout, operator)
            script = Script(
                narrator=self.narrator,
                operator=operator,
                witness=witness,
                layout=layout,
                user_id=USER_ID,
                device_id=device_id,
            )
            await script.issue(self.options.certs)
            async with self._staged_floor(address, operator) as floor:
                await self._play_with_agent(script, address, floor)
            return script
        finally:
            with trio.CancelScope(shield=True):
                await http.aclose()

    async def _enrol(self, layout: ConfigDir, operator: Operator) -> int:
        config = load_config(layout, {}).config
        http = HttpxHttp(config, root=layout.root, wall_now=wall_now)
        try:
            done = await enrol(layout, http, operator)
        finally:
            with trio.CancelScope(shield=True):
                await http.aclose()
        self.narrator.tell(
            "agent",
            "registered",
            f"registered as device {done} with an enrolment token",
            device_id=done,
        )
        return done

    @asynccontextmanager
    async def _staged_floor(self, address: PlaneAddress, operator: Operator) -> AsyncIterator[Floor]:
        """Make the second device with its certificate, and have its pair on disk."""
        layout = stage_agent(self.root / "service", url=address.url, ca_pem=address.ca_file.read_bytes(), name="floor")
        pair = layout.root / "pair"
        pair.mkdir(mode=0o700)
        http = HttpxHttp(load_config(layout, {}).config, root=layout.root, wall_now=wall_now)
        try:
            device_id = await enrol(layout, http, operator)
            row = await operator.issue(USER_ID, floor_name)
            await operator.assign(USER_ID, device_id, row["id"])
            floor = Floor(
                http=http,
                store=SessionState(layout, RealFs()),
                pair=pair,
                cert_id=row["id"],
                user_id=USER_ID,
                wall_now=wall_now,
            )
            await floor.deliver()
            yield floor
        finally:
            with trio.CancelScope(shield=True):
                await http.aclose()

    async def _play_with_agent(self, script: Script, address: PlaneAddress, floor: Floor) -> None:
        logs = Logs(script.layout, RealFs())
        logs.configure(load_config(script.layout, {}).config.log)
        try:
            await self._play_with_service(script, address, floor)
        finally:
            logs.close()

    async def _play_with_service(self, script: Script, address: PlaneAddress, floor: Floor) -> None:
        server = choose_server(
            self.options.service,
            self.root / "service",
            script.layout.certs,
            script.names(),
            others={floor_name: floor.pair},
        )
        allow_service(script.layout, server)
        async with trio.open_nursery() as agent_nursery:
            agent = await agent_nursery.start(self._run_agent, script.layout, ToldProc(self.narrator, server))
            await script.wait_until_deployed()
            async with server.running() as pid:
                await script.witness.tell(op="guard", pid=pid)
                await script.open_service(server, ca_file=address.ca_file)
                with self.acting:
                    await script.act(duration=self.options.duration, every=self.options.every)
                    script.figures.floor_ms += await floor.race(script.operator, script.witness, server)
                await script.look_again()
                agent.stop_with(Stop(StopReason.ASKED, "the show is over"))
                await self.agent_ended.wait()  # before the service: what it still verifies must find it

    async def _run_agent(self, layout: ConfigDir, proc: Proc, task_status: trio.TaskStatus[Agent]) -> None:
        follower = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_history, self.narrator, layout.history, follower)
            seams = Seams(proc=proc, environ={})
            await run_agent(layout.root, os_signals=False, seams=seams, task_status=task_status)
            self.agent_ended.set()
            follower.cancel()


async def enrol(layout: ConfigDir, http: HttpxHttp, operator: Operator) -> int:
    """Register a directory's device with an enrolment token, and return the device's id."""
    token = await operator.create_enrolment_token(USER_ID)
    config = load_config(layout, {}).config
    done = await register(
        layout,
        SessionState(layout, RealFs()),
        ControlPlane(http, config, wall_now=wall_now),
        config,
        enrolment_token=token["token"],
        show=lambda prompt: None,
        wall_now=wall_now,
    )
    return done.device_id


def operator_config(address: PlaneAddress) -> AgentConfig:
    """Return what the HTTP client needs to reach the plane as its operator."""
    return AgentConfig(
        application=ApplicationConfig(server_url=address.url),
        httpclient=HttpClientConfig(ca_files=(str(address.ca_file),)),
    )
