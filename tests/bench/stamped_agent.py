"""The daemon with time stamps of its work: ``python stamped_agent.py DIRECTORY [--beats]``.

Three functions are wrapped, and each prints one line of JSON, on the monotonic clock: ``{"switched": [names], "at"}``
when a switch is durable, ``{"done": count, "synced", "at"}`` when outcomes, acks and records are, ``{"ran": argv,
"at"}`` when a command has ended. With ``--beats``, a task that wakes every 10 ms prints ``{"late": seconds, "at"}``
when the loop was blocked for longer than that. The calls that make something durable are counted (``synced``). Nothing else of
the product is changed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import trio

from certctrl.agent.inbox import Inbox
from certctrl.agent.poller import Poller
from certctrl.cli.main import run_command
from certctrl.install.process import Proc
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import RealFs

BEAT = 0.01
_synced = 0


def say(**facts: Any) -> None:
    """Print one stamp."""
    line = json.dumps({**facts, "at": time.monotonic()}) + "\n"
    os.write(1, line.encode())


def stamp_switch(switch: Callable[..., Any]) -> Callable[..., Any]:
    """Stamp every durable switch."""

    @functools.wraps(switch)
    def stamped(self: GenerationStore, to: Any) -> Any:
        before = switch(self, to)
        say(switched=sorted(to))
        return before

    return stamped


def stamp_finish(finish: Callable[..., Any]) -> Callable[..., Any]:
    """Stamp every durable outcome."""

    @functools.wraps(finish)
    async def stamped(self: Inbox, done: Any, acks: Any) -> None:
        await finish(self, done, acks)
        say(done=len(done), synced=_synced)

    return stamped


def stamp_run(run: Callable[..., Any]) -> Callable[..., Any]:
    """Stamp the end of every command."""

    @functools.wraps(run)
    async def stamped(self: Proc, argv: Any, **options: Any) -> Any:
        result = await run(self, argv, **options)
        say(ran=list(argv))
        return result

    return stamped


def counted(sync: Callable[..., Any]) -> Callable[..., Any]:
    """Count calls that reach the disk."""

    @functools.wraps(sync)
    def counting(self: RealFs, handle: Any) -> Any:
        global _synced
        _synced += 1
        return sync(self, handle)

    return counting


def stamp_delays(poll_forever: Callable[..., Any]) -> Callable[..., Any]:
    """Stamp each time that the loop wakes a sleeping task late."""

    async def beat() -> None:
        while True:
            due = trio.current_time() + BEAT
            await trio.sleep_until(due)
            if (late := trio.current_time() - due) > BEAT:
                say(late=round(late, 4))

    @functools.wraps(poll_forever)
    async def stamped(self: Poller) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            stop = await poll_forever(self)
            nursery.cancel_scope.cancel()
        return stop

    return stamped


if __name__ == "__main__":
    GenerationStore.switch = stamp_switch(GenerationStore.switch)  # type: ignore[method-assign]
    Inbox.finish = stamp_finish(Inbox.finish)  # type: ignore[method-assign]
    Proc.run = stamp_run(Proc.run)  # type: ignore[method-assign]
    RealFs.fsync = counted(RealFs.fsync)  # type: ignore[method-assign]
    RealFs.syncfs = counted(RealFs.syncfs)  # type: ignore[method-assign]
    if "--beats" in sys.argv:
        Poller.poll_forever = stamp_delays(Poller.poll_forever)  # type: ignore[method-assign]
    raise SystemExit(run_command(["-c", sys.argv[1], "--keep-running"]))
