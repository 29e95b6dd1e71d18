"""Agent: the state that the tasks of one run share; passed as an argument, no globals."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import trio
from trio_util import AsyncBool, RepeatedEvent

from certctrl import lean
from certctrl.agent.answers import Answers
from certctrl.agent.atomic_batches import AtomicBatches
from certctrl.agent.batches import Batches
from certctrl.agent.burst import BurstWatch
from certctrl.agent.counters import Counters
from certctrl.agent.fetches import Fetches
from certctrl.agent.inbox import Inbox
from certctrl.agent.push_mode import PushMode, Questions
from certctrl.agent.serving_reports import ServingReports
from certctrl.agent.tokens import TokenKeeper
from certctrl.errors import PlaneError
from certctrl.install.installer import Installer
from certctrl.model.config import AgentConfig
from certctrl.model.plan import InstallItem
from certctrl.model.policy import HostPolicy
from certctrl.model.records import InboxEntry, Retry
from certctrl.model.signals import Signal
from certctrl.model.stop import Stop
from certctrl.net.control_plane import ControlPlane
from certctrl.protocol.session import Session
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

T = TypeVar("T")
LAST_EXCHANGE_SECONDS = 0.5
"""Seconds after the grace time of a stop in which an exchange with the plane may still end; the stop takes at most two
seconds more than its grace time."""


@lean.define(kw_only=True, eq=False)
class Problem:
    """A problem for the operator; shown by `status`, makes health degraded."""

    what: str
    since: float
    fix: str = ""

    def shown(self) -> dict[str, Any]:
        """Return it as status JSON."""
        return {"what": self.what, "since": self.since, "fix": self.fix}


@lean.define(kw_only=True, eq=False)
class Agent:
    """One run of the agent."""

    layout: ConfigDir
    fs: Fs
    store: StateStore
    plane: ControlPlane
    tokens: TokenKeeper
    installer: Installer
    inbox: Inbox
    burst: BurstWatch
    batches: Batches
    fetches: Fetches
    atomic: AtomicBatches
    session: Session
    counters: Counters
    log: logging.Logger
    wall_now: Callable[[], float]
    random: Callable[[], float]
    offload: Callable[..., Awaitable[Any]]

    config: AgentConfig
    """Replaced by `Reloader`."""
    device_id: str | None = None
    """The device's public id, read once, so that a failing disk does not hide it."""
    policy: HostPolicy
    """Replaced by `Reloader`."""
    environ: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Environment variables that override the configuration files, at a reload as well."""
    on_reload: Callable[[AgentConfig], None] | None = None
    """Called with each configuration that SIGHUP activates."""
    plane_changed: bool = False
    """Whether certificates of another plane were found at this start, and no alert was raised yet."""
    unassigned_since: dict[int, float] = attrs.field(factory=dict)
    """Certificate id -> when this run noted its unassignment (steady clock), because the wall clock may be set."""
    idle_items: dict[str, str] = attrs.field(factory=dict)
    """Item id -> missing certificates or CAs that it names, as of the last comparison or status request."""
    lost: dict[int, str] = attrs.field(factory=dict)
    """Certificate id -> name, of deployed certificates that vanished from disk and are not restored yet."""
    items: tuple[InstallItem, ...] = ()
    """Active install items: the plane's, then the local ones (``install_config.py``)."""
    items_unread: bool = False
    """Whether the disk failed at their last reload, so that they may be outdated."""

    sent_requests: dict[int, int] = attrs.field(factory=dict)
    """Certificate id -> the newest order whose signing request this process has sent (``host_keys.py``)."""
    challenges: Answers = attrs.field(factory=Answers)
    """This host's answers to challenges of certificate authorities (``challenges.py``)."""

    serving: ServingReports = attrs.field(factory=ServingReports)
    """What endpoints serve, as of the last looks (``serving.py``)."""

    open_push: Callable[[], PushMode] | None = None
    """Creates `push`; set while the task that owns the sockets runs."""
    push: PushMode | None = None
    """Set in push mode only."""
    questions: Questions | None = None
    """Answers the plane's questions; None if this process answers none."""
    audited: dict[str, float] = attrs.field(factory=dict)
    """Question and result -> when they were last entered in the audit log (Trio clock)."""

    intake: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Cancelled first on stop: no new signals."""
    stop: Stop | None = None
    """Set before ``intake`` is cancelled."""
    grace_ends: float = float("inf")
    """Until when running work may finish once the stop has started (Trio clock)."""
    problems: dict[str, Problem] = attrs.field(factory=dict)
    """By a stable key; see `report_problem` and `clear_problem`."""
    logged_once: set[str] = attrs.field(factory=set)
    """Keys of `first_time`."""
    started_at: float = 0.0
    """Wall clock."""
    started_mono: float = 0.0
    """Trio clock."""
    last_signal: dict[str, Any] | None = None
    """``type`` and ``at`` (wall clock) of the newest signal processed."""
    polled: RepeatedEvent = attrs.field(factory=RepeatedEvent)
    """Set after each poll; see `wait_for_poll`."""
    status_changed: AsyncBool = attrs.field(factory=AsyncBool)
    """Whether the status may have changed; the reporter resets it."""
    reported_at: float = float("-inf")
    """When the reporter last woke (Trio clock)."""
    work_changed: AsyncBool = attrs.field(factory=AsyncBool)
    """Whether other signals may run than at the last choice; the dispatcher resets it."""
    lifetimes_changed: AsyncBool = attrs.field(factory=AsyncBool)
    """Whether a certificate may expire at another time than before; the expiry guard resets it."""
    reconcile_requested: AsyncBool = attrs.field(factory=AsyncBool)
    """Whether to compare the whole host with the plane now; the reconcile task resets it."""

    def stop_with(self, stop: Stop) -> None:
        """Start the orderly stop; the first reason counts."""
        if self.stop is None:
            self.stop = stop
            self.grace_ends = trio.current_time() + self.config.application.stop_grace_seconds
            self.tokens.finish_by(self.last_exchange_at)
        self.intake.cancel()

    @property
    def last_exchange_at(self) -> float:
        """Until when exchanges with the plane may end once the stop has started (Trio clock)."""
        return self.grace_ends + LAST_EXCHANGE_SECONDS

    def report_problem(self, key: str, what: str, fix: str = "") -> bool:
        """Record a problem; return whether it is new or its text changed."""
        known = self.problems.get(key)
        if known is not None and known.what == what:
            return False
        self.problems[key] = Problem(what=what, since=known.since if known else self.wall_now(), fix=fix)
        self.status_changed.value = True
        return True

    def clear_problem(self, key: str) -> bool:
        """Remove a problem; return whether there was one."""
        if self.problems.pop(key, None) is None:
            return False
        self.status_changed.value = True
        return True

    async def wait_for_status_change(self, at_least: float, at_most: float) -> None:
        """Wait for a change, at most ``at_most`` seconds, and at least ``at_least`` since this last returned.

        So a poll every few seconds is reported as it happens, and no separate timer wakes the host.
        """
        with trio.move_on_after(at_most):
            await self.status_changed.wait_value(True)
        await trio.sleep_until(self.reported_at + at_least)
        self.status_changed.value, self.reported_at = False, trio.current_time()

    def admit(self, signals: Sequence[Signal]) -> list[InboxEntry]:
        """Take signals into the inbox, let the dispatcher start them, and return the entries that are new.

        A cursor must not pass them before `Inbox.secure` has returned.
        """
        return self._admitted(self.inbox.admit(signals))

    def admit_ahead(self, signals: Sequence[Signal]) -> list[InboxEntry]:
        """Admit signals ahead of the cursor, as far as the inbox has room for their classes; return the new ones."""
        return self._admitted(self.inbox.admit_ahead(signals))

    def _admitted(self, fresh: list[InboxEntry]) -> list[InboxEntry]:
        if fresh:
            self.atomic.admitted(entry.signal for entry in fresh)
            self.work_changed.value = True
        return fresh

    def retry_now(self, resource: str | None = None) -> list[Retry]:
        """Make all failures due now, or those of one resource, and return them: their causes may be gone."""
        due = self.installer.retries.due_now(resource)
        self.work_changed.value = True
        return due

    def first_time(self, key: str) -> bool:
        """Return whether this is the first call with ``key`` in this run."""
        new = key not in self.logged_once
        self.logged_once.add(key)
        return new

    async def authorized(self, call: Callable[[str], Awaitable[T]]) -> T:
        """Call with an access token; after a 401 refresh once and retry once (spec, "Error Handling")."""
        token = await self.tokens.current()
        try:
            return await call(token)
        except PlaneError as error:
            if error.status != 401:
                raise
            return await call(await self.tokens.refresh(token))


async def wait_for_poll(polled: RepeatedEvent, at_least: float, at_most: float) -> None:
    """Wait ``at_least`` seconds and then for the end of a poll, ``at_most`` seconds in all.

    So periodic work is done while the host is awake for a poll, and no separate timer wakes it.
    """
    began = trio.current_time()
    with trio.move_on_at(began + at_most):
        while trio.current_time() < began + at_least:
            await polled.wait()
