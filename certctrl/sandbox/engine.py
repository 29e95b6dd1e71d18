"""run_sandbox: start plane, agent and a real TLS service, and run the scenario with them.

The nesting gives the order of stopping: the agent first (it still reports to the plane), then the service, then the
plane. The witness outlives what it checks.
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

from certctrl import lean
from certctrl.agent.clock import wall_now
from certctrl.agent.context import Agent
from certctrl.agent.register import register
from certctrl.agent.run import run_agent
from certctrl.agent.setup import Seams
from certctrl.errors import ExitStatus, UsageError
from certctrl.install.process import Proc
from certctrl.logs.setup import Logs
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.model.status import StopReason
from certctrl.model.stop import Stop
from certctrl.net.control_plane import ControlPlane
from certctrl.net.operator import Operator
from certctrl.net.transport import HttpcoreHttp
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import PlaneSettings
from certctrl.sandbox.acme_ca import AcmeCa, require_ca, running_ca
from certctrl.sandbox.acme_scenario import AcmeScenario
from certctrl.sandbox.baseline import NAME as BASELINE_NAME
from certctrl.sandbox.baseline import BaselineClient
from certctrl.sandbox.following import NarratedProc, follow_history
from certctrl.sandbox.narrator import Narrator, NarratorHandler, narrating
from certctrl.sandbox.scenario import Scenario, names_of
from certctrl.sandbox.servers import choose_server, find_nginx
from certctrl.sandbox.witness_client import WitnessClient, running_witness
from certctrl.sandbox.workspace import allow_service, sandbox_directory, stage_agent
from certctrl.store.config.files import load_config
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

USER_ID = 1
DRAW_SECONDS = 0.2


@lean.frozen(kw_only=True)
class SandboxOptions:
    """Options of one run."""

    service: str = "auto"
    """``nginx``, ``builtin``, or ``auto``: nginx if it is installed."""
    duration: float = 30.0
    """Seconds of renewing; 0: until interrupted."""
    certs: int = 3
    directory: Path | None = None
    """Kept after the run; None: a temporary one."""
    as_json: bool = False
    every: float = 3.0
    """Seconds from one renewal to the next."""
    acme: str = ""
    """Order from ``pebble``, or from acme2certifier (``ari``); empty: from the plane's own CA."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.certs <= 200:
            raise UsageError(f"--certs {self.certs}: not from 1 to 200")
        if self.duration < 0 or self.every < 0:
            raise UsageError("--duration and --every must be 0 or more seconds")


async def run_sandbox(options: SandboxOptions, *, out: TextIO | None = None) -> ExitStatus:
    """Run the sandbox and return its verdict: DONE only if all issued certificates were served, with no mixed pair.

    SIGINT and SIGTERM stop it in order, with a summary: INTERRUPTED. Raises UsageError, CommandError (the service does
    not start), and the errors of an agent or plane that cannot run.
    """
    nginx = find_nginx(options.service)
    if options.acme:
        require_ca(options.acme)
    with (
        sandbox_directory(options.directory) as root,
        narrating(out or sys.stdout, as_json=options.as_json, now=time.monotonic) as narrator,
    ):
        service = "nginx" if nginx else "the built-in TLS service"
        narrator.title(f"Control plane, agent and {service} on 127.0.0.1, in {root}")
        if nginx is None and options.service == "auto":
            narrator.write("service", "stand-in", "nginx is not installed, using the built-in TLS service")
        (root / "service").mkdir(mode=0o700)
        sandbox = Sandbox(options=options, narrator=narrator, root=root)
        with narrated_logs(narrator):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sandbox.stop_on_os_signal)
                nursery.start_soon(keep_drawn, narrator)
                async with running_witness(root / "service" / "witness.log") as witness:
                    scenario = await sandbox.run(witness)
                    status = await scenario.conclude(interrupted=sandbox.interrupted)
                nursery.cancel_scope.cancel()
        return status


async def keep_drawn(narrator: Narrator) -> None:
    """Draw the live table a few times a second: drawing at each event would slow down what is measured."""
    while True:
        narrator.redraw()
        await trio.sleep(DRAW_SECONDS)


@contextmanager
def narrated_logs(narrator: Narrator) -> Iterator[None]:
    """Send log records to the narrator, and nowhere else, during the block."""
    root, ours = logging.getLogger(), logging.getLogger("certctrl")
    handlers, level = root.handlers[:], ours.level
    root.handlers = [NarratorHandler(narrator)]
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        ours.setLevel(level)


@lean.define(kw_only=True, eq=False)
class Sandbox:
    """One run of the sandbox."""

    options: SandboxOptions
    narrator: Narrator
    root: Path
    renewing: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """The renewals; cancelled by the first OS signal, after which everything still stops in order."""
    interrupted: bool = False
    agent_ended: trio.Event = attrs.field(factory=trio.Event)

    async def stop_on_os_signal(self) -> None:
        """Stop in order at the first SIGINT or SIGTERM, immediately at the second."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for _ in received:
                if self.interrupted:
                    raise KeyboardInterrupt
                self.interrupted = True
                self.narrator.title("\nInterrupted: stopping in order; interrupt again to stop immediately.")
                self.renewing.cancel()

    async def run(self, witness: WitnessClient) -> Scenario:
        """Start plane, agent and service in turn, run the scenario, and stop them in reverse order."""
        poll_rate = max(20.0, 4 / max(self.options.every, 0.05))  # the baseline client polls without pause
        settings = PlaneSettings(poll_rate=poll_rate, poll_burst=20)
        async with trio.open_nursery() as plane_nursery:
            address = await plane_nursery.start(partial(serve_plane, self.root / "plane", settings=settings))
            self.narrator.write("plane", "listening", f"listening at {address.url}", url=address.url)
            if self.options.acme:
                async with running_ca(self.options.acme, self.root / "ca", partial(guarded, witness)) as ca:
                    scenario = await self._run_with_plane(address, witness, ca)
            else:
                scenario = await self._run_with_plane(address, witness)
            plane_nursery.cancel_scope.cancel()
        return scenario

    async def _run_with_plane(
        self, address: PlaneAddress, witness: WitnessClient, ca: AcmeCa | None = None
    ) -> Scenario:
        http = HttpcoreHttp(operator_config(address), root=self.root, wall_now=wall_now)
        try:
            operator = Operator(http, address.operator_key_file.read_text("ascii").strip(), wall_now=wall_now)
            layout = stage_agent(
                self.root, url=address.url, ca_pem=address.ca_file.read_bytes(), short_lives=ca is not None
            )
            device_id = await self._enrol(layout, operator)
            make = Scenario if ca is None else partial(AcmeScenario, ca=ca)
            scenario: Scenario = make(
                narrator=self.narrator,
                operator=operator,
                witness=witness,
                layout=layout,
                user_id=USER_ID,
                device_id=device_id,
            )
            await scenario.issue(self.options.certs)
            async with self._baseline_client(address, operator) as baseline:
                await self._run_with_logs(scenario, address, baseline)
            return scenario
        finally:
            with trio.CancelScope(shield=True):
                await http.aclose()

    async def _enrol(self, layout: ConfigDir, operator: Operator) -> int:
        config = load_config(layout, {}).config
        http = HttpcoreHttp(config, root=layout.root, wall_now=wall_now)
        try:
            device_id = await enrol(layout, http, operator)
        finally:
            with trio.CancelScope(shield=True):
                await http.aclose()
        text = f"registered as device {device_id} with an enrolment token"
        self.narrator.write("agent", "registered", text, device_id=device_id)
        return device_id

    @asynccontextmanager
    async def _baseline_client(self, address: PlaneAddress, operator: Operator) -> AsyncIterator[BaselineClient]:
        """Yield the client of a second device, with its certificate on disk."""
        ca_pem = address.ca_file.read_bytes()
        layout = stage_agent(self.root / "service", url=address.url, ca_pem=ca_pem, name="baseline")
        pair = layout.root / "pair"
        pair.mkdir(mode=0o700)
        config = load_config(layout, {}).config
        http = HttpcoreHttp(config, root=layout.root, wall_now=wall_now)
        try:
            device_id = await enrol(layout, http, operator)
            row = await operator.issue(USER_ID, BASELINE_NAME)
            await operator.assign(USER_ID, device_id, row["id"])
            client = BaselineClient(
                http=http,
                plane=ControlPlane(http, config, wall_now=wall_now),
                store=SessionState(layout, RealFs()),
                pair=pair,
                cert_id=row["id"],
                user_id=USER_ID,
                wall_now=wall_now,
            )
            await client.deliver()
            yield client
        finally:
            with trio.CancelScope(shield=True):
                await http.aclose()

    async def _run_with_logs(self, scenario: Scenario, address: PlaneAddress, baseline: BaselineClient) -> None:
        logs = Logs(scenario.layout, RealFs())
        logs.configure(load_config(scenario.layout, {}).config.log)
        try:
            await self._run_with_agent(scenario, address, baseline)
        finally:
            logs.close()

    async def _run_with_agent(self, scenario: Scenario, address: PlaneAddress, baseline: BaselineClient) -> None:
        server = choose_server(
            self.options.service,
            self.root / "service",
            scenario.layout.certs,
            names_of(self.options.certs),
            others={BASELINE_NAME: baseline.pair},
        )
        ca = scenario.ca if isinstance(scenario, AcmeScenario) else None
        allow_service(scenario.layout, server, http01_port=None if ca is None else ca.http_port)
        async with trio.open_nursery() as agent_nursery:
            agent = await agent_nursery.start(self._run_agent, scenario.layout, NarratedProc(self.narrator, server))
            await scenario.issue_with_agent(self.options.certs)
            await scenario.wait_until_deployed()
            async with server.running() as pid:
                await scenario.witness.send(op="guard", pid=pid)
                await scenario.open_service(server, ca_file=address.issuing_ca_file if ca is None else ca.root_file)
                with self.renewing:
                    await scenario.act(duration=self.options.duration, every=self.options.every)
                    if ca is None:  # the witness trusts only the other CA otherwise
                        latencies = await baseline.measure(scenario.operator, scenario.witness, server)
                        scenario.report.baseline_ms += latencies
                await scenario.check_all()
                agent.stop_with(Stop(StopReason.ASKED, "by the sandbox"))
                await self.agent_ended.wait()  # before the service stops: the agent may still probe it

    async def _run_agent(self, layout: ConfigDir, proc: Proc, task_status: trio.TaskStatus[Agent]) -> None:
        follower = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_history, self.narrator, layout.history, follower)
            seams = Seams(proc=proc, environ={})
            await run_agent(layout.root, os_signals=False, seams=seams, task_status=task_status)
            self.agent_ended.set()
            follower.cancel()


async def guarded(witness: WitnessClient, pid: int) -> None:
    """Make the witness end a process if the sandbox is killed."""
    await witness.send(op="guard", pid=pid)


async def enrol(layout: ConfigDir, http: HttpcoreHttp, operator: Operator) -> int:
    """Register the device of a directory with an enrolment token; return the device id."""
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
    """Return the configuration of the operator's HTTP client."""
    return AgentConfig(
        application=ApplicationConfig(server_url=address.url),
        httpclient=HttpClientConfig(ca_files=(str(address.ca_file),)),
    )
