"""Questions to the witness process, as awaitable calls."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from certctrl.errors import CommandError
from certctrl.sandbox.servers import end_process

GONE = "see DIR/service/witness.log of a run with --dir DIR"


@attrs.define(eq=False)
class Witness:
    """The running witness; see ``witness.py`` for what it is asked."""

    _process: trio.Process
    _waiting: dict[int, trio.MemorySendChannel[dict[str, Any]]] = attrs.field(factory=dict)
    _asked: int = 0

    async def tell(self, **order: Any) -> None:
        """Send an order that has no answer."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(json.dumps(order).encode() + b"\n")
        except trio.BrokenResourceError:
            raise CommandError("the sandbox's witness has ended", fix=GONE) from None

    async def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and return its answer; any number may be open at once."""
        self._asked += 1
        number = self._asked
        # One place: a question has exactly one answer, and the reader must never wait for an asker.
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._waiting[number] = send
        try:
            await self.tell(id=number, **question)
            return await receive.receive()
        except trio.EndOfChannel:
            raise CommandError("the sandbox's witness ended before it answered", fix=GONE) from None
        finally:
            self._waiting.pop(number, None)
            receive.close()

    async def listen(self) -> None:
        """Hand every answer to its asker, until the witness ends; then no asker waits for ever."""
        assert self._process.stdout is not None
        rest = b""
        async for part in self._process.stdout:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._hand_over(json.loads(line))
        for send in self._waiting.values():
            send.close()

    def _hand_over(self, answer: Mapping[str, Any]) -> None:
        send = self._waiting.get(answer["id"])
        if send is not None:
            send.send_nowait(dict(answer))


@contextlib.asynccontextmanager
async def looking(log: Path) -> AsyncIterator[Witness]:
    """Run a witness for the length of the block; what it complains about goes to ``log``."""
    with log.open("ab") as errors:
        process = await trio.lowlevel.open_process(
            (sys.executable, "-m", "certctrl.sandbox.witness"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    witness = Witness(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(witness.listen)
            yield witness
            nursery.cancel_scope.cancel()
    finally:
        await end_process(process)
