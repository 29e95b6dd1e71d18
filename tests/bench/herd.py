"""The herd: thousands of agents in one process, each a TLS connection that polls, as cheap as possible.

``python herd.py JSON``, where JSON has ``port``, ``ca``, ``tokens`` (a file with one token per line), ``first`` (the
number of the first token) and ``count``. It
executes one JSON object per line of standard input and answers each with one line; times are on the monotonic clock:

- ``{"op": "connect"}``: connect all agents, each with a first poll that does not wait → ``{"seconds"}``.
- ``{"op": "park", "wait": W, "work": BOOL, "spread": BOOL}``: poll for ever. An agent that works fetches the
  certificate of each signal and acknowledges it; if spread, first polls have random lengths → ``{}`` when all are sent.
- ``{"op": "parked"}``: wait until all agents have sent a poll that is not answered → ``{}``.
- ``{"op": "mark"}``: forget what was counted.
- ``{"op": "until", "count": N, "of": WHAT}``: wait for N answers with signals (``answered``), acknowledgements
  (``acked``), answers to polls (``polls``) or connections that ended (``lost``) → ``{"first", "half", "last"}``.
- ``{"op": "stat"}`` → ``{"polls", "lost", "refused"}``: answers to polls, connections that ended, answers above 299.
- ``{"op": "stay"}``: from now on, agents whose connection ends wait for ``{"op": "return"}``.

Agents whose connection ends connect again, each within a random time below ``BACK_SECONDS``.
"""

from __future__ import annotations

import json
import random
import resource
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import trio

UPDATES = "/apiv1/devices/self/updates"
MATERIALS = "/apiv1/devices/self/certificates/{}/deploy-materials"
NOTIFY = "/apiv1/devices/self/notify"
SCHEMA = "certctrl.device.notify.v1"
AT_ONCE = 50
"""Handshakes at a time."""
BACK_SECONDS = 10.0
PATIENCE = 300.0


class Line:
    """One connection: a TLS socket on Trio, without a stream around it."""

    def __init__(self, sock: trio.socket.SocketType, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._tls = context.wrap_socket(sock._sock.dup(), server_hostname="localhost", do_handshake_on_connect=False)
        self._rest = b""
        sock.close()

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext) -> Line:
        sock = trio.socket.socket()
        try:
            await sock.connect(("127.0.0.1", port))
            line = cls(sock, context)
        except BaseException:
            sock.close()
            raise
        try:
            await line._waiting(line._tls.do_handshake)
        except BaseException:
            line.close()
            raise
        return line

    def close(self) -> None:
        self._tls.close()

    async def send(self, data: bytes) -> None:
        await self._waiting(self._tls.send, data)

    async def answer(self) -> tuple[int, str, bytes]:
        """Return status, ETag and body of the next answer."""
        while b"\r\n\r\n" not in self._rest:
            await self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        while len(self._rest) < length:
            await self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(head[9:12]), fields.get(b"etag", b"").decode().strip('"'), body

    async def _more(self) -> None:
        data = await self._waiting(self._tls.recv, 65_536)
        if not data:
            raise EOFError
        self._rest += data

    async def _waiting(self, call: Any, *args: Any) -> Any:
        while True:
            try:
                return call(*args)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._tls)


class Herd:
    """The agents, and what was counted since the last mark."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.port: int = facts["port"]
        self.context = ssl.create_default_context(cafile=facts["ca"])
        self.context.check_hostname = False
        self.tokens = Path(facts["tokens"]).read_text().split()[facts["first"] :][: facts["count"]]
        self.handshakes = trio.CapacityLimiter(AT_ONCE)
        self.wait, self.work, self.spread = 0, False, False
        self.go, self.back = trio.Event(), trio.Event()
        self.back.set()
        self.connected = self.sent = self.parked = 0
        self.changed = trio.Event()
        self.mark()

    def mark(self) -> None:
        self.times: dict[str, list[float]] = {"answered": [], "acked": [], "polls": [], "lost": []}
        self.refused = 0

    def note(self, what: str) -> None:
        self.times[what].append(time.monotonic())
        self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def live(self, token: str) -> None:
        """Be one agent."""
        cursor, first = "", True
        while True:
            line: Line | None = None
            try:
                async with self.handshakes:
                    line = await Line.open(self.port, self.context)
                    if first:
                        _, cursor, _ = await self.ask(line, token, f"GET {UPDATES}")
                if first:
                    first = False
                    await self.begin()
                    wait = random.randint(1, self.wait) if self.spread else self.wait
                    cursor = await self.poll(line, token, cursor, wait)
                while True:
                    cursor = await self.poll(line, token, cursor, self.wait)
            except (OSError, EOFError, ssl.SSLError):
                self.note("lost")
            finally:
                if line is not None:
                    line.close()
            await self.back.wait()
            await trio.sleep(random.uniform(0, BACK_SECONDS))

    async def begin(self) -> None:
        """Wait for the order to poll."""
        self.connected += 1
        self.tell()
        await self.go.wait()
        self.sent += 1

    async def poll(self, line: Line, token: str, cursor: str, wait: int) -> str:
        self.parked += 1
        try:
            self.tell()
            status, tag, body = await self.ask(line, token, f"GET {UPDATES}?limit=20&wait={wait}&cursor={cursor}")
        finally:
            self.parked -= 1
        self.note("polls")
        if status >= 300:
            await trio.sleep(random.uniform(1, 3))
            return cursor
        if status == 200:
            self.note("answered")
            for signal in json.loads(body)["data"]["signals"]:
                if self.work and "cert_id" in signal["ref"]:
                    await self.renew(line, token, signal)
        return tag or cursor

    async def renew(self, line: Line, token: str, signal: dict[str, Any]) -> None:
        await self.ask(line, token, f"GET {MATERIALS.format(signal['ref']['cert_id'])}")
        ack = {"type": "signal.ack", "signal": signal, "outcome": "applied", "detail": "", "deployed": []}
        status, _, _ = await self.ask(
            line, token, f"POST {NOTIFY}", json.dumps({"schema": SCHEMA, "events": [ack]}).encode()
        )
        if status < 300:
            self.note("acked")

    async def ask(self, line: Line, token: str, what: str, body: bytes = b"") -> tuple[int, str, bytes]:
        more = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        head = f"{what} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nAccept: */*\r\n{more}\r\n"
        await line.send(head.encode() + body)
        status, tag, text = await line.answer()
        if status >= 300:
            self.refused += 1
            print(f"herd: {what}: {status} {text[:200]!r}", file=sys.stderr) if self.refused < 4 else None
        return status, tag, text

    async def until(self, done: Any) -> None:
        with trio.fail_after(PATIENCE):
            while not done():
                await self.changed.wait()


async def obey(herd: Herd, nursery: trio.Nursery, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order and return its answer."""
    match order.pop("op"):
        case "connect":
            began = time.monotonic()
            for token in herd.tokens:
                nursery.start_soon(herd.live, token)
            await herd.until(lambda: herd.connected >= len(herd.tokens))
            return {"seconds": time.monotonic() - began}
        case "park":
            herd.wait, herd.work, herd.spread = order["wait"], order["work"], order["spread"]
            herd.go.set()
            while herd.sent < len(herd.tokens):
                await trio.sleep(0.01)
        case "parked":
            await herd.until(lambda: herd.parked >= len(herd.tokens))
        case "mark":
            herd.mark()
        case "until":
            times = herd.times[order["of"]]
            await herd.until(lambda: len(times) >= order["count"])
            times = sorted(times)
            return {"first": times[0], "half": times[len(times) // 2], "last": times[order["count"] - 1]}
        case "stat":
            return {"polls": len(herd.times["polls"]), "lost": len(herd.times["lost"]), "refused": herd.refused}
        case "stay":
            herd.back = trio.Event()
        case "return":
            herd.back.set()
    return {}


async def main(facts: dict[str, Any]) -> None:
    """Obey until standard input ends."""
    herd = Herd(facts)
    async with trio.open_nursery() as nursery:
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps(await obey(herd, nursery, json.loads(line))), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(main, json.loads(sys.argv[1]))
