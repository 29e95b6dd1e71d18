"""Open what one run needs, in order, and close it in reverse. The seams are here."""

from __future__ import annotations

import logging
import os
import random as random_module
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import trio

import certctrl
from certctrl import lean
from certctrl.agent.atomic_batches import AtomicBatches
from certctrl.agent.batches import Batches
from certctrl.agent.burst import BurstWatch
from certctrl.agent.clock import steady_now, wall_now
from certctrl.agent.context import Agent
from certctrl.agent.counters import Counters
from certctrl.agent.fetches import Fetches
from certctrl.agent.inbox import Inbox
from certctrl.agent.install_config import converge_active_items, reload_items
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.materials import known_etag
from certctrl.agent.plane_anchor import PlaneAnchor
from certctrl.agent.push_mode import Questions
from certctrl.agent.tokens import TokenKeeper
from certctrl.errors import NotRegisteredError
from certctrl.install.deploy.context import Helper
from certctrl.install.installer import Installer
from certctrl.install.probe.interface import Probe, TlsProbe
from certctrl.install.process import Proc
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.http import Http
from certctrl.protocol.session import Session
from certctrl.store.config.files import LoadedConfig, load_config, load_policy
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import Fs, RealFs
from certctrl.store.disk.lock import lock_daemon
from certctrl.store.disk.tree import check_modes, make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.moves import refuse_unfinished_move
from certctrl.store.state.store import StateStore
from certctrl.store.state.versions import refuse_later_state

WORKING_THREADS = 3
"""Concurrent threads for disk and crypto work. They compete for the interpreter lock: forty, Trio's default, cost a
burst half its CPU and eight megabytes of stacks and arenas."""

CLOSE_SECONDS = 0.5
"""Seconds for closing connections, so that an unreachable plane cannot delay the exit."""


async def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """Run one blocking function off the event loop; never abandoned half-way."""
    return await trio.to_thread.run_sync(call, *args, limiter=_limiter())


class _Limiter:
    """A limiter for Trio's threads, without the pass through the event loop that ``acquire`` makes if one is free."""

    def __init__(self, threads: int) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        try:
            self._limiter.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(borrower)

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)


def _limiter() -> trio.CapacityLimiter:
    try:
        found = _working.get()
    except LookupError:
        _working.set(found := _Limiter(WORKING_THREADS))
    return cast(trio.CapacityLimiter, found)  # Trio documents that it takes an object like one


_working: trio.lowlevel.RunVar[_Limiter] = trio.lowlevel.RunVar("working")


def real_http(config: AgentConfig, layout: ConfigDir) -> Http:
    """Return the real HTTP client; imported late, because its import is the slowest."""
    from certctrl.net.transport import HttpcoreHttp

    return HttpcoreHttp.for_agent(config, layout.root, wall_now)


def root_helper(config: AgentConfig) -> Helper | None:
    """Return the client of the root helper; None for an agent of root, which needs none, or without its socket's path."""
    path = config.application.helper_socket
    if not path or os.geteuid() == 0:
        return None
    from certctrl.helper.client import HelperClient  # here: an agent of root does not need it

    return HelperClient.at(path)


@lean.frozen(kw_only=True)
class Seams:
    """Access to time, disk, network, processes and randomness; tests replace them one by one."""

    fs: Fs = attrs.field(factory=RealFs)
    http: Callable[[AgentConfig, ConfigDir], Http] = real_http
    wall_now: Callable[[], float] = wall_now
    steady_now: Callable[[], float] = steady_now
    offload: Callable[..., Awaitable[Any]] = in_thread
    random: Callable[[], float] = random_module.random
    proc: Proc = attrs.field(factory=Proc)
    probe: Probe = attrs.field(factory=TlsProbe)
    helper: Callable[[AgentConfig], Helper | None] = root_helper
    environ: Mapping[str, str] = attrs.field(factory=lambda: dict(os.environ))
    questions: Questions | None = None
    """Answers the plane's questions, as the command line does."""
    on_reload: Callable[[AgentConfig], None] | None = None
    """Called with a configuration that SIGHUP activated (the command line re-opens its logs)."""


@asynccontextmanager
async def open_agent(config_dir: Path, seams: Seams, *, repair: bool = True) -> AsyncIterator[Agent]:
    """Open an Agent: modes enforced, lock held, configuration and state read, client ready.

    ``repair=False``: leave missing directories and open modes unchanged, for read-only commands.
    Raises ConfigError, BusyError, DiskError, NotRegisteredError (no tokens: never registered).
    """
    layout = ConfigDir(config_dir)
    loaded = load_config(layout, seams.environ)
    log = logging.getLogger("certctrl")
    refuse_later_state(layout, seams.fs)
    if repair:
        make_tree(seams.fs, layout)
        for finding in check_modes(seams.fs, layout):
            log_line(log, Line.MODES_REPAIRED, path=finding.path, was=oct(finding.was), now=oct(finding.now))
    with lock_daemon(layout, seams.fs):
        refuse_unfinished_move(layout, seams.fs)
        async with _assembled(layout, loaded, seams, log) as agent:
            yield agent


@asynccontextmanager
async def _assembled(
    layout: ConfigDir, loaded: LoadedConfig, seams: Seams, log: logging.Logger
) -> AsyncIterator[Agent]:
    config, store = loaded.config, StateStore(layout, seams.fs)
    if store.session.load_tokens() is None or store.session.load_device_keys() is None:
        raise NotRegisteredError(
            f"this device is not registered ({layout.state} holds no tokens)",
            fix=f"cert-ctrl -c {layout.root} register",
        )
    http = seams.http(config, layout)
    try:
        agent = _assemble(layout, config, store, http, seams, log)
        agent.inbox.idle = lambda: sum(one.entry.retry is None for one in agent.atomic.held)
        reload_items(agent)
        log_line(
            log,
            Line.AGENT_STARTED,
            version=certctrl.__version__,
            pid=os.getpid(),
            device=agent.device_id,
            server=config.application.server_url,
        )
        differing = sorted(name for name, source in loaded.sources.items() if source != "default")
        log_line(log, Line.CONFIG_LOADED, settings=", ".join(differing) or "all defaults")
        yield agent
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await http.aclose()


def _assemble(
    layout: ConfigDir, config: AgentConfig, store: StateStore, http: Http, seams: Seams, log: logging.Logger
) -> Agent:
    plane = ControlPlane(http, config, wall_now=seams.wall_now, instance=os.urandom(8).hex())

    def current() -> Agent:
        return agent  # its configuration, policy and items are replaced by a reload

    installer = _installer(layout, config, store, seams, log, current)
    burst = BurstWatch(debounce=lambda: _debounce(agent.config.application), clock=trio.current_time)
    agent = Agent(
        layout=layout,
        fs=seams.fs,
        store=store,
        plane=plane,
        tokens=_token_keeper(layout, config, store, plane, seams),
        installer=installer,
        inbox=Inbox(
            store.session, seams.offload, installer.retries, installer.save_retries, limit=config.application.queue_size
        ),
        burst=burst,
        fetches=Fetches(plane, lambda call: agent.authorized(call), lambda cert_id: known_etag(agent, cert_id)),
        batches=Batches(lambda prepared, ids, together: converge_active_items(agent, prepared, ids, together), burst),
        atomic=_atomic_batches(installer, current),
        session=Session(config.application, cursor=store.session.load_cursor(), random=seams.random),
        counters=Counters(),
        log=log,
        wall_now=seams.wall_now,
        random=seams.random,
        offload=seams.offload,
        config=config,
        device_id=store.session.load_device_id(),
        policy=load_policy(layout),
        environ=seams.environ,
        on_reload=seams.on_reload,
        questions=seams.questions,
        started_at=seams.wall_now(),
        started_mono=trio.current_time(),
    )
    return agent


def _atomic_batches(installer: Installer, agent: Callable[[], Agent]) -> AtomicBatches:
    def compare() -> None:
        agent().reconcile_requested.value = True

    def limit() -> float:
        return agent().config.application.batch_limit_seconds

    def is_withdrawn(cert_id: int) -> bool:
        record = installer.records.get(cert_id)
        return record is not None and record.withdrawal_incomplete

    return AtomicBatches(
        installer.retries, limit=limit, clock=trio.current_time, compare=compare, is_withdrawn=is_withdrawn
    )


def _debounce(settings: ApplicationConfig) -> tuple[float, float]:
    return settings.debounce_ms / 1000, settings.debounce_limit_ms / 1000


def _token_keeper(
    layout: ConfigDir, config: AgentConfig, store: StateStore, plane: ControlPlane, seams: Seams
) -> TokenKeeper:
    return TokenKeeper(
        layout=layout,
        store=store.session,
        plane=plane,
        config=config,
        wall_now=seams.wall_now,
        offload=seams.offload,
        random=seams.random,
        fs=seams.fs,
        anchor=PlaneAnchor(layout, config, seams.fs, lambda other: seams.http(other, layout), seams.offload),
    )


def _installer(
    layout: ConfigDir,
    config: AgentConfig,
    store: StateStore,
    seams: Seams,
    log: logging.Logger,
    agent: Callable[[], Agent],
) -> Installer:
    return Installer(
        layout=layout,
        fs=seams.fs,
        generations=GenerationStore(layout, seams.fs),
        state=store.installed,
        policy=lambda: agent().policy,
        config=lambda: agent().config,
        proc=seams.proc,
        probe=seams.probe,
        wall_now=seams.wall_now,
        steady_now=seams.steady_now,
        offload=seams.offload,
        log=log,
        random=seams.random,
        helper=seams.helper(config),
    )
