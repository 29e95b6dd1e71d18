"""The herd: thousands of agents in one process, each a TLS connection that polls, as cheap as possible.

``python herd.py JSON``, where JSON has ``port``, ``ca``, ``tokens`` (a file with one token per line), ``first`` (the
number of the first token) and ``count``. It
executes one JSON object per line of standard input and answers each with one line; times are on the monotonic clock:

- ``{"op": "connect"}``: connect all agents, each with a first poll that does not wait → ``{"seconds"}``.
- ``{"op": "park", "wait": W, "work": BOOL, "spread": BOOL, "session": BOOL}``: poll for ever. An agent that works
  fetches the certificate of each signal and acknowledges it; if spread, first polls have random lengths; with a session,
  the agent's own code decides when and how it polls → ``{}`` when all are sent (at the start, with sessions).
- ``{"op": "parked"}``: wait until all agents have sent a poll that is not answered → ``{}``.
- ``{"op": "mark"}``: forget what was counted.
- ``{"op": "until", "count": N, "of": WHAT}``: wait for N answers with signals (``answered``), acknowledgements
  (``acked``), answers to polls (``polls``) or connections that ended (``lost``) → ``{"first", "half", "last"}``.
- ``{"op": "stat"}`` → ``{"polls", "lost", "refused"}``: answers to polls, connections that ended, answers above 299.
- ``{"op": "arrivals", "since": T, "within": S}``: the polls that agents with sessions have sent in the S seconds since T
  → ``{"worst", "mean", "agents", "last", "again", "closed"}``: polls in the worst second and on average, agents that
  have polled, when the last of them did first, agents that polled again within half a wait, and attempts to connect that
  were refused since the mark.
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
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import trio

from certctrl.model.config import ApplicationConfig, PollMode
from certctrl.model.signals import ResyncRequired
from certctrl.protocol import events, steps
from certctrl.protocol.session import Session

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

    pause: float | None = None
    """Seconds in the ``Retry-After`` of the last answer."""
    closes = False
    """Whether the last answer ends the connection."""

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
        self.closes = fields.get(b"connection") == b"close"
        self.pause = float(fields[b"retry-after"]) if b"retry-after" in fields else None
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


class Agents(ABC):
    """The agents of one process, and what was counted since the last mark; ``run`` obeys orders."""

    kinds: tuple[str, ...]
    """What ``until`` can wait for."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.port: int = facts["port"]
        self.context = ssl.create_default_context(cafile=facts["ca"])
        self.context.check_hostname = False
        self.tokens = Path(facts["tokens"]).read_text().split()[facts["first"] :][: facts["count"]]
        self.handshakes = trio.CapacityLimiter(AT_ONCE)
        self.connected = 0
        self.changed = trio.Event()
        self.mark()

    def mark(self) -> None:
        """Forget what was counted."""
        self.times: dict[str, list[float]] = {kind: [] for kind in self.kinds}

    def note(self, what: str) -> None:
        self.times[what].append(time.monotonic())
        self.tell()

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, done: Any) -> None:
        with trio.fail_after(PATIENCE):
            while not done():
                await self.changed.wait()

    @abstractmethod
    async def live(self, token: str) -> None:
        """Be one agent."""

    async def obey(self, nursery: trio.Nursery, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order and return its answer."""
        match order.pop("op"):
            case "connect":
                began = time.monotonic()
                for token in self.tokens:
                    nursery.start_soon(self.live, token)
                await self.until(lambda: self.connected >= len(self.tokens))
                return {"seconds": time.monotonic() - began}
            case "mark":
                self.mark()
            case "until":
                times = self.times[order["of"]]
                await self.until(lambda: len(times) >= order["count"])
                times = sorted(times)
                return {"first": times[0], "half": times[len(times) // 2], "last": times[order["count"] - 1]}
            case other:
                return await self.obey_more(nursery, other, order)
        return {}

    @abstractmethod
    async def obey_more(self, nursery: trio.Nursery, op: str, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order that only these agents know."""

    @classmethod
    async def run(cls, facts: dict[str, Any]) -> None:
        """Obey until standard input ends."""
        agents = cls(facts)
        async with trio.open_nursery() as nursery:
            while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                print(json.dumps(await agents.obey(nursery, json.loads(line))), flush=True)
            nursery.cancel_scope.cancel()

    @classmethod
    def main(cls) -> None:
        """Run with the facts of the command line."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        trio.run(cls.run, json.loads(sys.argv[1]))


class Herd(Agents):
    """Agents that poll."""

    kinds = ("answered", "acked", "polls", "lost")

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.wait, self.work, self.spread, self.session = 0, False, False, False
        self.go, self.back = trio.Event(), trio.Event()
        self.back.set()
        self.sent = self.parked = 0

    def mark(self) -> None:
        super().mark()
        self.refused = self.closed = 0
        self.sent_by: dict[str, list[float]] = {}

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
                    if self.session:
                        await self.follow(line, token, cursor)
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

    async def follow(self, line: Line | None, token: str, cursor: str | None) -> None:
        """Be one agent whose session decides, forever."""
        config = ApplicationConfig(poll_mode=PollMode.LONG_POLL, long_poll_wait_seconds=self.wait)
        session = Session(config, cursor=cursor, random=random.random)
        session.receive(events.Started(True), trio.current_time())
        while True:
            step = session.next_step(trio.current_time())
            event: events.Event = events.AcksSent()
            if isinstance(step, steps.Wait):
                await trio.sleep_until(step.until)
                event = events.Timer()
            elif isinstance(step, steps.Poll):
                line, event = await self.obeyed(line, token, step)
            elif isinstance(step, steps.Deliver):
                event = events.Delivered()
            session.receive(event, trio.current_time())

    async def obeyed(self, line: Line | None, token: str, step: steps.Poll) -> tuple[Line | None, events.Event]:
        """Send the poll of a session; return the connection, unless it has ended, and the answer."""
        try:
            if line is None:
                line = await Line.open(self.port, self.context)
            self.sent_by.setdefault(token, []).append(time.monotonic())
            self.parked += 1
            try:
                path = f"GET {UPDATES}?limit={step.limit}&wait={step.wait}&cursor={step.cursor or ''}"
                status, tag, body = await self.ask(line, token, path)
            finally:
                self.parked -= 1
        except (OSError, EOFError, ssl.SSLError) as error:
            self.closed += isinstance(error, ConnectionRefusedError)
            self.note("lost")
            if line is not None:
                line.close()
            return None, events.TransportFailed(type(error).__name__, sent=line is not None)
        self.note("polls")
        pause = line.pause
        if line.closes:
            line.close()
            line = None
        if status == 204:
            return line, events.NoUpdates(tag or None, retry_after=pause)
        if status == 200:
            self.note("answered")
            signals = tuple(ResyncRequired(number) for number, _ in enumerate(json.loads(body)["data"]["signals"]))
            return line, events.Updates(tag or None, signals, len(signals) >= step.limit, retry_after=pause)
        return line, events.ServerBusy(status, pause)

    def arrivals(self, since: float, within: float) -> dict[str, float]:
        """Return how the polls of agents with sessions were spread."""
        times = {token: [at - since for at in all_ if 0 <= at - since < within] for token, all_ in self.sent_by.items()}
        counts = [0] * max(int(within), 1)
        for at in (at for some in times.values() for at in some):
            counts[min(int(at), len(counts) - 1)] += 1
        first = [some[0] for some in times.values() if some]
        again = sum(1 for some in times.values() if len(some) > 1 and some[1] - some[0] < self.wait / 2)
        return {
            "worst": max(counts),
            "mean": sum(counts) / len(counts),
            "agents": len(first),
            "last": max(first, default=0.0),
            "again": again,
            "closed": self.closed,
        }

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

    async def obey_more(self, nursery: trio.Nursery, op: str, order: dict[str, Any]) -> dict[str, Any]:
        match op:
            case "park":
                self.wait, self.work, self.spread = order["wait"], order["work"], order["spread"]
                self.session = order.get("session", False)
                self.go.set()
                while self.sent < len(self.tokens):
                    await trio.sleep(0.01)
            case "parked":
                await self.until(lambda: self.parked >= len(self.tokens))
            case "stat":
                return {"polls": len(self.times["polls"]), "lost": len(self.times["lost"]), "refused": self.refused}
            case "arrivals":
                return self.arrivals(order["since"], order["within"])
            case "stay":
                self.back = trio.Event()
            case "return":
                self.back.set()
        return {}


if __name__ == "__main__":
    Herd.main()
