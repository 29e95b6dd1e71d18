"""Database: the plane's tables, and the units of work that read and change them.

All statements of a request run in one unit of work: ``await database.work(function, *args)`` calls the synchronous
function inside one transaction, and commits it if the function returns. The function must not wait. An engine may have
to repeat it, so it must not have side effects outside the database; effects that follow the commit are registered with
``after_commit``.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import trio

from certctrl.plane.health.counters import DatabaseCalls

P = ParamSpec("P")
T = TypeVar("T")


class Row(Protocol):
    """One row of an answer."""

    def __getitem__(self, column: str, /) -> Any: ...


class Reader(Protocol):
    """A database that can be read."""

    engine: str

    def one(self, sql: str, *parameters: Any) -> Row | None:
        """Return the first row, or None."""

    def all(self, sql: str, *parameters: Any) -> list[Row]:
        """Return all rows."""

    def schema_version(self) -> int:
        """Return the number of schema scripts that have run."""

    def size(self) -> int:
        """Return the bytes that it uses on disk."""


class Waiting(Protocol):
    """The polls that wait for signals, as seen by the exchange of wakes between planes."""

    announce: Callable[[Collection[int]], object] | None

    def wake(self, device_id: int) -> None:
        """Make the waiters of a device read again."""

    def wake_all(self) -> None:
        """Make all waiters read again."""

    async def sweep(self) -> None:
        """Wake the waiters whose streams have new signals."""


class ActOfCaller(Protocol):
    """What a request does that may change something; it runs its units of work (``plane.audit.acts``)."""

    def around(self, database: Database, unit: Callable[[], T]) -> T:
        """Run a unit of work inside its transaction, perhaps again if it lost a race, and return its result."""


CURRENT_ACT: ContextVar[ActOfCaller | None] = ContextVar("certctrl.act", default=None)
"""The act of the current task, within which its units of work run."""


class UndoneError(Exception):
    """Raised by a unit of work to roll back what it has changed; ``Database.work`` returns its result all the same."""

    def __init__(self, result: Any) -> None:
        super().__init__("the unit of work is tried only")
        self.result = result


@contextlib.contextmanager
def without_act() -> Iterator[None]:
    """Run the block outside of the current act, whose request may be tried only, or may have a part in the audit log."""
    token = CURRENT_ACT.set(None)
    try:
        yield
    finally:
        CURRENT_ACT.reset(token)


class Database(ABC):
    """An engine; its methods raise DiskError if the database fails or cannot be reached."""

    engine: str
    """Name of the engine, for operators."""
    reads_inline = False
    """Whether a unit that reads runs on the event loop, in less time than it takes to wait for others to share it."""

    def __init__(self) -> None:
        self.calls = DatabaseCalls()
        self._counts = threading.local()

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work and return its result, after the commit and the callbacks of ``after_commit``."""
        with self.calls.measured():
            try:
                return await self._work(self._unit(function, *args, **kwargs))
            except UndoneError as undone:
                result: T = undone.result
                return result

    def _unit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
        """Return a unit of work, within the act of the current task."""
        unit, act = partial(function, *args, **kwargs), CURRENT_ACT.get()
        return unit if act is None else partial(act.around, self, unit)

    @abstractmethod
    async def _work(self, unit: Callable[[], T]) -> T:
        """Run a unit of work."""

    async def work_now(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work, as ``work``, without waiting for other processes that lock the whole database."""
        with self.calls.measured():
            try:
                return await self._work_now(self._unit(function, *args, **kwargs))
            except UndoneError as undone:
                result: T = undone.result
                return result

    async def _work_now(self, unit: Callable[[], T]) -> T:
        """Run a unit of work, without waiting for other processes that lock the whole database."""
        return await self._work(unit)

    async def work_read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work that changes nothing, as ``work_now``, without waiting for long units that run.

        It sees what was committed before. RuntimeError for a statement that would change something.
        """
        with self.calls.measured():
            return await self._work_read(partial(function, *args, **kwargs))

    @abstractmethod
    async def _work_read(self, unit: Callable[[], T]) -> T:
        """Run a unit of work that changes nothing; RuntimeError if it does."""

    async def work_long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work that may take more than a few milliseconds, as ``work``, but never on the event loop."""
        with self.calls.measured():
            try:
                return await self._work_long(self._unit(function, *args, **kwargs))
            except UndoneError as undone:
                result: T = undone.result
                return result

    async def _work_long(self, unit: Callable[[], T]) -> T:
        """Run a unit of work in a thread."""
        return await self._work(unit)

    @abstractmethod
    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """Commit the block as a whole, durably, or roll it back; inside a unit of work, the block joins it."""

    @abstractmethod
    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call back on the event loop once the current transaction is committed; without one, immediately."""

    @abstractmethod
    def all(self, sql: str, *parameters: Any) -> list[Row]:
        """Return all rows."""

    def run(self, sql: str, *parameters: Any) -> int:
        """Run a statement; return the number of changed rows."""
        changed = self._run(sql, parameters)
        if changed > 0:
            self._count_change()
        return changed

    @abstractmethod
    def _run(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run a statement; return the number of changed rows."""

    def insert(self, sql: str, *parameters: Any) -> int:
        """Run an INSERT and return the id of the new row."""
        new_id = self._insert(sql, parameters)
        self._count_change()
        noted: list[tuple[str, int]] | None = getattr(self._counts, "inserts", None)
        if noted is not None:
            noted.append((sql, new_id))
        return new_id

    @contextlib.contextmanager
    def noting_inserts(self) -> Iterator[list[tuple[str, int]]]:
        """Yield the list of the statements that ``insert`` runs in the block, with the ids of the new rows."""
        noted: list[tuple[str, int]] = []
        self._counts.inserts = noted
        try:
            yield noted
        finally:
            self._counts.inserts = None

    @abstractmethod
    def _insert(self, sql: str, parameters: tuple[Any, ...]) -> int:
        """Run an INSERT and return the id of the new row."""

    def changes(self) -> int:
        """Return a number that each statement of ``run`` or ``insert`` increases if it changes a row.

        It is one for each thread, and so for each transaction: compare two in one unit of work.
        """
        return getattr(self._counts, "changes", 0)

    def _count_change(self) -> None:
        self._counts.changes = self.changes() + 1

    @abstractmethod
    def schema_version(self) -> int:
        """Return the number of schema scripts that have run in the database."""

    @abstractmethod
    def size(self) -> int:
        """Return the bytes that the database uses on disk; 0: in memory."""

    @abstractmethod
    def is_read_only(self) -> bool:
        """Return whether the database accepts no changes at present."""

    def backlog(self) -> float:
        """Return for how many seconds the next unit of work has been waiting for a connection."""
        return 0.0

    @abstractmethod
    async def exchange_wakes(self, waiting: Waiting) -> None:
        """Exchange wakes with other processes on this database, forever; return if there can be none."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""

    def one(self, sql: str, *parameters: Any) -> Row | None:
        """Return the first row, or None."""
        rows = self.all(sql, *parameters)
        return rows[0] if rows else None

    def one_locked(self, sql: str, *parameters: Any) -> Row | None:
        """Return the first row, which no other unit of work changes or locks until this one ends."""
        return self.one(sql, *parameters)

    def all_locked(self, sql: str, *parameters: Any) -> list[Row]:
        """Return the rows, which no other unit of work changes or locks until this one ends."""
        return self.all(sql, *parameters)

    def all_unlocked(self, sql: str, *parameters: Any) -> list[Row]:
        """Return the rows that no other unit of work has locked, locked until this one ends."""
        return self.all(sql, *parameters)

    @abstractmethod
    def guard(self, what: int, *, alone: bool) -> None:
        """Wait for a lock that this unit of work holds until it ends: alone, or with all others that do not want it alone.

        No-op where units that change something run one after the other.
        """

    def other_planes(self) -> int:
        """Return the number of other connections that control planes have; 0 where the data directory's lock excludes them."""
        return 0

    def setting(self, name: str) -> str:
        """Return a value of the table ``settings``; empty if it is not set."""
        row = self.one("SELECT value FROM settings WHERE name = ?", name)
        return "" if row is None else str(row["value"])


def marks(values: Sequence[Any]) -> str:
    """Return as many placeholders as there are values, for ``IN (...)``."""
    return ", ".join("?" * len(values))


class Callbacks:
    """The callbacks of one transaction."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], object]] = []

    def add(self, callback: Callable[[], object]) -> None:
        """Register a callback."""
        self._callbacks.append(callback)

    def call(self) -> bool:
        """Call and forget all callbacks, in order; return whether there were any."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        return bool(callbacks)

    def drop(self) -> None:
        """Forget all callbacks, after a rollback."""
        self._callbacks.clear()


async def run_woken_first() -> None:
    """Let the tasks that the caller has woken run before it, in whichever order the event loop takes a batch of tasks."""
    for _ in range(2):
        await trio.lowlevel.cancel_shielded_checkpoint()
