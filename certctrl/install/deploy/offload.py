"""SharedOffload: run the short blocking calls of many tasks in one thread job.

A burst opens, stages and prunes a thousand certificates, each in well under a millisecond; one thread job per call
would take as long again. So calls that come while a job runs wait for the next job, which runs all of them. A single
call does not wait.
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
        except BaseException as error:  # raised in its caller, not in the job
            self.error = error
        self.ended = True


class SharedOffload:
    """An ``offload`` for many short calls; like there, a call that has begun is finished even if cancelled."""

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._waiting: list[_Call] = []
        self._lock = trio.Lock()

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function together with other waiting ones; return its result or raise its exception."""
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
