"""Gathering: run the units of work of many requests in one transaction.

A commit costs more than what most requests read or write. Requests that arrive while the loop handles the same batch of
input share one: no timer delays a lone request. One that fails does not fail the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import trio

from certctrl import lean
from certctrl.errors import CertctrlError, DiskError
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage.database import Database, P, T

MOST_TOGETHER = 32
"""Units per transaction: on SQLite, they hold up the event loop together."""


@lean.define(eq=False)
class _Unit:
    call: Callable[[], Any]
    result: Any = None
    error: Exception | None = None
    alone: bool = False
    """Whether its request has to run it, because those together failed."""
    done: trio.Event = attrs.field(factory=trio.Event)


class Gathering:
    """Gathers units of work."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Unit] = []

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a unit of work, as ``Database.work``, perhaps in one transaction with others.

        The function must raise an ErrorResponse only before its first change.
        """
        unit = _Unit(partial(function, *args, **kwargs))
        self._waiting.append(unit)
        if len(self._waiting) == 1:
            with trio.CancelScope(shield=True):  # others depend on it
                await trio.lowlevel.checkpoint()
                await self._run_all()
        await unit.done.wait()
        if unit.alone:
            return await self._database.work(unit.call)
        if unit.error is not None:
            raise unit.error
        result: T = unit.result
        return result

    async def _run_all(self) -> None:
        units, self._waiting = self._waiting, []
        for start in range(0, len(units), MOST_TOGETHER):
            if start:
                await trio.lowlevel.checkpoint()
            some = units[start : start + MOST_TOGETHER]
            await self._run(some)
            for unit in some:
                unit.done.set()

    async def _run(self, units: Sequence[_Unit]) -> None:
        try:
            await self._database.work_now(_call_all, units)
        except Exception as error:
            for unit in units:
                if isinstance(error, CertctrlError) and not isinstance(error, DiskError):
                    unit.error = error  # the database is away
                else:
                    unit.alone = True  # one that changes nothing may still succeed


def _call_all(units: Sequence[_Unit]) -> None:
    for unit in units:
        unit.error = None
        try:
            unit.result = unit.call()
        except ErrorResponse as error:
            unit.error = error
