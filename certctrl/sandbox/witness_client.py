"""The client of the witness process."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from certctrl import lean
from certctrl.errors import CommandError
from certctrl.sandbox.servers import end_process, module_argv

_FIX = "run with --dir DIR and read DIR/service/witness.log"


@lean.define(eq=False)
class WitnessClient:
    """The running witness; ``witness.py`` documents its requests."""

    _process: trio.Process
    _waiting: dict[int, trio.MemorySendChannel[dict[str, Any]]] = attrs.field(factory=dict)
    _asked: int = 0

    async def send(self, **request: Any) -> None:
        """Send a request that has no answer."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
        except trio.BrokenResourceError:
            raise CommandError("the sandbox's witness has ended", fix=_FIX) from None

    async def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return its answer; any number may be pending."""
        self._asked += 1
        number = self._asked
        # One slot: a request has exactly one answer, and the reader must never block.
        sender, receiver = trio.open_memory_channel[dict[str, Any]](1)
        self._waiting[number] = sender
        try:
            await self.send(id=number, **request)
            return await receiver.receive()
        except trio.EndOfChannel:
            raise CommandError("the sandbox's witness ended before it answered", fix=_FIX) from None
        finally:
            self._waiting.pop(number, None)
            receiver.close()

    async def listen(self) -> None:
        """Deliver each answer to its caller; fail the pending calls when the witness ends."""
        assert self._process.stdout is not None
        rest = b""
        async for part in self._process.stdout:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._deliver(json.loads(line))
        for sender in self._waiting.values():
            sender.close()

    def _deliver(self, answer: Mapping[str, Any]) -> None:
        sender = self._waiting.get(answer["id"])
        if sender is not None:
            sender.send_nowait(dict(answer))


@contextlib.asynccontextmanager
async def running_witness(log: Path) -> AsyncIterator[WitnessClient]:
    """Run a witness during the block; its standard error goes to ``log``."""
    with log.open("ab") as errors:
        process = await trio.lowlevel.open_process(
            module_argv("certctrl.sandbox.witness"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    witness = WitnessClient(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(witness.listen)
            yield witness
            nursery.cancel_scope.cancel()
    finally:
        await end_process(process)
