"""The push herd: thousands of agents in one process, each a push socket, as cheap as possible.

``python push_herd.py JSON``, as `herd.py`. It executes one JSON object per line of standard input and answers each with
one line; times are on the monotonic clock:

- ``{"op": "connect"}``: open all sockets, each with its hello → ``{"seconds"}``.
- ``{"op": "ping", "every": S}``: ping each S seconds that nothing arrives, at random phases at first → ``{}``.
- ``{"op": "mark"}``: forget what was counted.
- ``{"op": "until", "count": N, "of": WHAT}``: wait for N pages (``pages``) or sockets that ended (``ended``) →
  ``{"first", "half", "last"}``.
- ``{"op": "stat"}`` → ``{"pages", "ended", "pings", "pongs", "codes"}``.

Each page is confirmed. Sockets that end stay closed.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from typing import Any

import trio
from herd import Agents, Line

UPGRADE = (
    "GET /apiv1/devices/self/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Protocol: certctrl.v1\r\nAuthorization: Bearer {}\r\n\r\n"
)
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
ZERO_MASK = b"\0\0\0\0"
PING_FRAME = bytes((0x80 | PING, 0x80)) + ZERO_MASK


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a frame of a client; a mask of zeros is one of the possible masks."""
    length = len(payload)
    head = bytes((0x80 | opcode, 0x80 | length)) if length < 126 else bytes((0x80 | opcode, 0xFE)) + length.to_bytes(2)
    return head + ZERO_MASK + payload


class PushLine(Line):
    """A connection that has switched to WebSocket."""

    async def switch(self, token: str) -> None:
        """Send the opening handshake and the hello."""
        await self.send(UPGRADE.format(token).encode())
        status, _, _ = await self.answer()
        if status != 101:
            raise SystemExit(f"bench: the upgrade is answered with {status}")
        await self.send(masked(TEXT, b'{"type":"lifecycle.hello","data":{"cursor":null,"limit":20}}'))

    async def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        await self._until(2)
        first, length = self._rest[0], self._rest[1]
        start = 2
        if length >= 126:
            start = 4 if length == 126 else 10
            await self._until(start)
            length = int.from_bytes(self._rest[2:start])
        await self._until(start + length)
        payload, self._rest = self._rest[start : start + length], self._rest[start + length :]
        return first & 15, payload

    async def _until(self, count: int) -> None:
        while len(self._rest) < count:
            await self._more()


class PushHerd(Agents):
    """Agents with sockets."""

    kinds = ("pages", "ended")

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.every = 1e9
        self.heard: dict[PushLine, float] = {}

    def mark(self) -> None:
        super().mark()
        self.counts: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()

    async def live(self, token: str) -> None:
        """Be one agent until its socket ends."""
        async with self.handshakes:
            line = await PushLine.open(self.port, self.context)
            await line.switch(token)
        try:
            while await self._one(line):
                pass
        except (EOFError, OSError):
            self.codes["1006"] += 1
        finally:
            self.note("ended")
            self.heard.pop(line, None)
            line.close()

    async def _one(self, line: PushLine) -> bool:
        opcode, payload = await line.frame()
        self.heard[line] = time.monotonic()
        if opcode == TEXT:
            message = json.loads(payload)
            if message["type"] == "updates.signal":
                self.note("pages")
                await line.send(masked(TEXT, json.dumps({"type": "updates.ack", "id": message["id"]}).encode()))
            elif message["type"] == "lifecycle.hello_ack":
                self.connected += 1
                self.tell()
        elif opcode == PING:
            self.counts["pings"] += 1
            await line.send(masked(PONG, payload))
        elif opcode == PONG:
            self.counts["pongs"] += 1
        elif opcode == CLOSE:
            self.codes[str(int.from_bytes(payload[:2]))] += 1
            await line.send(masked(CLOSE, payload[:2]))
            return False
        return True

    async def ping(self) -> None:
        """Ping the sockets that have been silent for long enough, forever."""
        while True:
            now = time.monotonic()
            for line, heard in list(self.heard.items()):
                if now - heard >= self.every:
                    self.heard[line] = now
                    await line.send(PING_FRAME)
            await trio.sleep(0.1)

    async def obey_more(self, nursery: trio.Nursery, op: str, order: dict[str, Any]) -> dict[str, Any]:
        match op:
            case "ping":
                self.every = order["every"]
                now = time.monotonic()
                for line in self.heard:
                    self.heard[line] = now - random.uniform(0, self.every)
                nursery.start_soon(self.ping)
            case "stat":
                counted = {name: len(times) for name, times in self.times.items()}
                pings = {name: self.counts[name] for name in ("pings", "pongs")}
                return counted | pings | {"codes": dict(self.codes)}
        return {}


if __name__ == "__main__":
    PushHerd.main()
