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
import resource
import ssl
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import trio
from herd import AT_ONCE, PATIENCE, Line

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


class PushHerd:
    """The sockets, and what was counted since the last mark."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.port: int = facts["port"]
        self.context = ssl.create_default_context(cafile=facts["ca"])
        self.context.check_hostname = False
        self.tokens = Path(facts["tokens"]).read_text().split()[facts["first"] :][: facts["count"]]
        self.handshakes = trio.CapacityLimiter(AT_ONCE)
        self.connected = 0
        self.every = 1e9
        self.heard: dict[PushLine, float] = {}
        self.mark()

    def mark(self) -> None:
        """Forget what was counted."""
        self.times: dict[str, list[float]] = {"pages": [], "ended": []}
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
            self.times["ended"].append(time.monotonic())
            self.heard.pop(line, None)
            line.close()

    async def _one(self, line: PushLine) -> bool:
        opcode, payload = await line.frame()
        self.heard[line] = time.monotonic()
        if opcode == TEXT:
            message = json.loads(payload)
            if message["type"] == "updates.signal":
                self.times["pages"].append(time.monotonic())
                await line.send(masked(TEXT, json.dumps({"type": "updates.ack", "id": message["id"]}).encode()))
            elif message["type"] == "lifecycle.hello_ack":
                self.connected += 1
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

    async def until(self, reached: Any) -> None:
        """Wait until a condition holds."""
        with trio.fail_after(PATIENCE):
            while not reached():
                await trio.sleep(0.005)


async def obey(herd: PushHerd, nursery: trio.Nursery, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order and return its answer."""
    match order.pop("op"):
        case "connect":
            began = time.monotonic()
            for token in herd.tokens:
                nursery.start_soon(herd.live, token)
            await herd.until(lambda: herd.connected >= len(herd.tokens))
            return {"seconds": time.monotonic() - began}
        case "ping":
            herd.every = order["every"]
            now = time.monotonic()
            for line in herd.heard:
                herd.heard[line] = now - random.uniform(0, herd.every)
            nursery.start_soon(herd.ping)
        case "mark":
            herd.mark()
        case "until":
            times = herd.times[order["of"]]
            await herd.until(lambda: len(times) >= order["count"])
            times = sorted(times)
            return {"first": times[0], "half": times[len(times) // 2], "last": times[order["count"] - 1]}
        case "stat":
            counted = {name: len(times) for name, times in herd.times.items()}
            return counted | {"pings": herd.counts["pings"], "pongs": herd.counts["pongs"], "codes": dict(herd.codes)}
    return {}


async def main(facts: dict[str, Any]) -> None:
    """Obey until standard input ends."""
    herd = PushHerd(facts)
    async with trio.open_nursery() as nursery:
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps(await obey(herd, nursery, json.loads(line))), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(main, json.loads(sys.argv[1]))
