"""Gathering: run the units of work of many requests in one transaction.

A commit costs more than the statements of most requests. Requests that arrive in the same batch of input of the event
loop share one commit; no timer delays a lone request. One that fails does not fail the others: after an error that
could have left changes behind, the transaction is rolled back, and each unit runs again, alone.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from certctrl import lean
from certctrl.plane.errors import DatabaseAwayError, ErrorResponse
from certctrl.plane.storage.database import Database, P, T

A = TypeVar("A")
RunAlike = Callable[[Callable[[Sequence[Any]], Sequence[Any]], Any], Awaitable[Any]]
"""Runs a unit of work for an item, shared with like ones; see ``Gathering.work_alike``."""
MAX_UNITS = 32
"""Units per transaction: on SQLite, they hold up the event loop together."""
MAX_LONG_UNITS = 8
"""As `MAX_UNITS`, for long units: requests wait for their transaction."""

MOMENT = 0.05
"""Seconds in which reads are counted, to distinguish a rush from the usual load."""
RUSH = 45
"""Reads in a moment that only a rush has, such as after a signal to all: one core is busy with them."""

_TRANSACTIONS = 3
"""Concurrent transactions: while all are busy, units gather. Those of changes and of reads together leave connections free
for the requests of operators."""


@lean.define(eq=False)
class _Unit:
    call: Callable[[], Any]
    alike: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    """The function that does the same for the items of several units, such as this one's."""
    item: Any = None
    result: Any = None
    error: Exception | None = None
    alone: bool = False
    """Whether its request must run it alone, because the shared transaction failed."""
    done: trio.Event | None = None
    """Set when the unit has run; None for the first of a transaction, whose task runs it."""


class Rush:
    """Detects when so many requests arrive that gathering their reads costs less than running each immediately."""

    def __init__(self) -> None:
        self._ends = -math.inf
        self._count = self._before = 0

    def note(self) -> bool:
        """Count a read; return whether there is a rush."""
        now = trio.current_time()
        if now >= self._ends:
            self._before = self._count if now < self._ends + MOMENT else 0
            self._count, self._ends = 0, now + MOMENT
        self._count += 1
        return self._count >= RUSH or self._before >= RUSH


class _ChangedError(Exception):
    """A unit was refused after its first change, which must not be stored."""


class Gathering:
    """Gathers units of work."""

    def __init__(self, database: Database, *, long: bool = False, reads: bool = False) -> None:
        """``long``: the units are long ones, of background work; fewer share a transaction, one after the other.

        ``reads``: the units change nothing (``Database.work_read``).
        """
        self._database = database
        self._long = long
        self._reads = reads
        self._most = MAX_LONG_UNITS if long else MAX_UNITS
        self._waiting: list[_Unit] = []
        self._transactions = trio.CapacityLimiter(1 if long else _TRANSACTIONS)

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work, as ``Database.work``, perhaps in one transaction with others.

        The function should raise an ErrorResponse only before its first change; after one, all units run again.
        """
        result: T = await self._work(_Unit(partial(function, *args, **kwargs)))
        return result

    async def work_alike(self, function: Callable[[Sequence[A]], Sequence[T | ErrorResponse]], item: A) -> T:
        """Run a unit of work for an item; the function is called once for the items of all units that share it.

        It returns a result or an error for each item, in order, and changes nothing for an item that it refuses.
        """
        result: T = await self._work(_Unit(partial(one_of, function, item), function, item))
        return result

    async def _work(self, unit: _Unit) -> Any:
        self._waiting.append(unit)
        if len(self._waiting) == 1:
            with trio.CancelScope(shield=True):  # others depend on it
                try:
                    self._transactions.acquire_nowait()
                except trio.WouldBlock:
                    await self._transactions.acquire()
                try:
                    await trio.lowlevel.cancel_shielded_checkpoint()  # more units come
                    await self._run_all()
                finally:
                    self._transactions.release()
        else:
            unit.done = trio.Event()
            await unit.done.wait()
        if unit.alone:
            return await (self._database.work_long(unit.call) if self._long else self._database.work(unit.call))
        if unit.error is not None:
            raise unit.error
        return unit.result

    async def _run_all(self) -> None:
        units, self._waiting = self._waiting, []
        for start in range(0, len(units), self._most):
            if start:
                await trio.lowlevel.checkpoint()
            some = units[start : start + self._most]
            await self._run(some)
            for unit in some:
                if unit.done is not None:
                    unit.done.set()

    async def _run(self, units: Sequence[_Unit]) -> None:
        try:
            if self._reads:
                await self._database.work_read(self._call_all, units)
            elif self._long:
                await self._database.work_long(self._call_all, units)
            else:
                await self._database.work_now(self._call_all, units)
        except Exception as error:
            for unit in units:
                if isinstance(error, DatabaseAwayError):
                    unit.error = error
                else:
                    unit.alone = True  # the error may be that of another unit

    def _call_all(self, units: Sequence[_Unit]) -> None:
        alike: dict[Callable[[Sequence[Any]], Sequence[Any]], list[_Unit]] = {}
        for unit in units:
            unit.error = None
            if unit.alike is None:
                self._call(unit)
            else:
                alike.setdefault(unit.alike, []).append(unit)
        for function, some in alike.items():
            for unit, result in zip(some, function([unit.item for unit in some]), strict=True):
                if isinstance(result, ErrorResponse):
                    unit.error = result
                else:
                    unit.result = result

    def _call(self, unit: _Unit) -> None:
        before = self._database.changes()
        try:
            unit.result = unit.call()
        except ErrorResponse as error:
            if self._database.changes() != before:
                raise _ChangedError from error
            unit.error = error


def one_of(function: Callable[[Sequence[A]], Sequence[T | ErrorResponse]], item: A) -> T:
    """Return what a function for several items returns or raises for one."""
    (result,) = function([item])
    if isinstance(result, ErrorResponse):
        raise result
    return result
