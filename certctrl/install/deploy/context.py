"""Context: the pipeline's collaborators, passed explicitly; shared thread jobs and locks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import attrs
import trio
from trio_util import RepeatedEvent

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.install.deploy.record_store import RecordStore
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.copy_items import Indexer
from certctrl.install.plan.policy import AgentIdentity
from certctrl.install.probe.interface import Probe
from certctrl.install.process import Proc
from certctrl.install.process.proc import own_names
from certctrl.model.config import AgentConfig
from certctrl.model.offload import Offload
from certctrl.model.policy import HostPolicy
from certctrl.model.records import CertRecord
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import Fs
from certctrl.store.disk.helper import FileHelper
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState


class Helper(FileHelper, Protocol):
    """The root helper."""

    def act(self, verb: str, unit: str, seconds: float) -> bool:
        """Reload or restart a unit; False if there is no helper or root's policy does not name it.

        Blocks. Raises CommandError.
        """


@lean.frozen(kw_only=True, eq=False)
class Context:
    """The collaborators of `Installer`, and its record store."""

    layout: ConfigDir
    fs: Fs
    generations: GenerationStore
    state: InstalledState
    policy: Callable[[], HostPolicy]
    config: Callable[[], AgentConfig]
    proc: Proc
    probe: Probe
    wall_now: Callable[[], float]
    offload: Offload
    """Runs a blocking function to its end in a thread; inline under a virtual clock."""
    shared_offload: SharedOffload
    """The same for short functions, which share thread jobs in a burst."""
    log: logging.Logger
    records: RecordStore
    identity: AgentIdentity
    helper: Helper | None = None
    """The root helper, for files and units that only root can change; None for an agent of root."""
    indexer: Indexer = attrs.field(factory=Indexer)
    public: dict[int, str] = attrs.field(factory=dict)
    """Public names of certificates that differ from their directories' (`names.publish`)."""
    outdated: set[int] = attrs.field(factory=set)
    """Certificates that may have more generations than are kept (`Installer.prune`)."""
    left: set[str] = attrs.field(factory=set)
    """Journals of ended deployments whose files a failing disk did not remove (`recovery.clear_up`)."""

    def links_of(self, record: CertRecord) -> tuple[str, ...]:
        """Return the paths of a certificate in ``certs/``."""
        return self.layout.public_paths(self.public.get(record.cert_id, record.name))

    @classmethod
    def of(cls, *, random: Callable[[], float], steady_now: Callable[[], float], **given: Any) -> Context:
        """Return a context with its records and its identity; ``random`` spreads retries, ``steady_now`` times them."""
        user, group = own_names()
        root = given["layout"].root
        retries = RetryTable(
            load=given["state"].load_retries,
            wall_now=given["wall_now"],
            steady_now=steady_now,
            random=random,
            settings=lambda: given["config"]().application,
        )
        records = RecordStore(
            given["state"], given["offload"], lambda: given["config"]().application.history_entries, retries
        )
        retries.ends_at = records.ends_at
        identity = AgentIdentity(config_dir=str(root.resolve()), user=user, group=group)
        return cls(**given, shared_offload=SharedOffload(given["offload"]), records=records, identity=identity)


@lean.define(eq=False)
class _Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    ended: bool = False
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function(*self.args)
        except BaseException as error:  # raised in its caller, not in the job
            self.error = error
            if isinstance(error, CertctrlError):  # it is no bug whose place is logged
                _drop_traces(error)
        self.ended = True


def _drop_traces(error: BaseException) -> None:
    """Drop the tracebacks of an error and its causes: through their frames, they keep all calls of a job, with results."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__


class SharedOffload:
    """An ``offload`` for many short calls; as with any offload, a call that has begun is finished even if cancelled.

    A burst opens, stages and prunes a thousand certificates, each in well under a millisecond; a thread job per call
    would double that. So calls that arrive while a job runs wait for the next job, which runs all of them. A single
    call does not wait.
    """

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._waiting: list[_Call] = []
        self._lock = trio.Lock()

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in a thread, in one job with others that wait; return its result or raise its exception."""
        call = _Call(function, args)
        self._waiting.append(call)
        with trio.CancelScope(shield=True):  # the call may run in another task's job
            async with self._lock:
                if not call.ended:
                    await self._run_waiting()
        if call.error is not None:
            raise call.error
        return call.result

    async def _run_waiting(self) -> None:
        calls, self._waiting = self._waiting, []
        try:
            await self._offload(_run_all, calls)
        except BaseException as error:  # no thread: none of the calls has run
            for call in calls:
                call.ended, call.error = True, call.error or error
            raise


def _run_all(calls: Sequence[_Call]) -> None:
    for call in calls:
        call.run()


class Locks:
    """Locks on node names, so that each group is worked on by one task at a time, different groups concurrently.

    A task takes all names of a group or none, so tasks cannot deadlock. A withdrawal claims its names while it waits;
    otherwise each batch of a burst could take them first.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._claimed = Counter[str]()
        self._freed = RepeatedEvent()

    def try_acquire(self, names: Collection[str], *, claimed: bool = False) -> bool:
        """Lock all names and return True, or return False if one of them is locked, or claimed by another task.

        ``claimed``: the caller has a claim, so those of others do not count.
        """
        if not self._taken.isdisjoint(names) or not (claimed or self._claimed.keys().isdisjoint(names)):
            return False
        self._taken |= set(names)
        return True

    def are_free(self, names: Collection[str]) -> bool:
        """Return whether no task works on these names, or waits to withdraw one."""
        return self._taken.isdisjoint(names) and self._claimed.keys().isdisjoint(names)

    def release(self, names: Collection[str]) -> None:
        """Unlock names."""
        self._taken -= set(names)
        self._freed.set()

    async def wait_for_release(self) -> None:
        """Wait until a name is unlocked."""
        await self._freed.wait()

    @contextmanager
    def claim(self, names: Collection[str]) -> Iterator[None]:
        """Keep tasks without a claim from locking these names during the block."""
        self._claimed.update(names)
        try:
            yield
        finally:
            self._claimed -= Counter(names)
            self._freed.set()

    @asynccontextmanager
    async def held(self, names: Collection[str], *, claimed: bool = False) -> AsyncIterator[None]:
        """Wait until all names are free, and lock them for the block."""
        while not self.try_acquire(names, claimed=claimed):
            await self.wait_for_release()
        try:
            yield
        finally:
            self.release(names)
