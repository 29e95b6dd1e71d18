"""SharedOffload: short blocking jobs of many tasks, run in one thread job instead of one each.

A burst opens, stages and prunes a thousand certificates, each by a call of well under a millisecond; handing each
to a thread and back costs as much again. So while one job is under way, the calls that come wait for the next one,
which takes them all. A lone call waits for nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

Offload = Callable[..., Awaitable[Any]]


@attrs.define(eq=False)
class _Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    ended: bool = False
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function(*self.args)
        except BaseException as error:  # its caller's, whoever's job it ran in
            self.error = error
        self.ended = True


class SharedOffload:
    """Stands in for ``offload`` where calls are short and many; like there, a call that has begun is never left."""

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._waiting: list[_Call] = []
        self._lock = trio.Lock()

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one function with whatever else waits, and return or raise what it does."""
        call = _Call(function, args)
        self._waiting.append(call)
        with trio.CancelScope(shield=True):  # ours may run in somebody else's job
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
        except BaseException as error:  # no thread could be had: nobody's call has run
            for call in calls:
                call.ended, call.error = True, call.error or error
            raise


def _run_all(calls: Sequence[_Call]) -> None:
    for call in calls:
        call.run()
