"""A push socket without a network, and an agent that uses it."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import trio
from trio_util import RepeatedEvent

from certctrl.agent.counters import Counters
from certctrl.agent.push import Push
from certctrl.errors import TransportError
from certctrl.model.answer import Answer
from certctrl.model.features import PUSH
from certctrl.model.policy import HostPolicy
from certctrl.net.stream import Closed
from certctrl.protocol import events
from certctrl.protocol.steps import Poll
from certctrl.protocol.wire import push as wire

RENEWED = {"type": "cert.renewed", "ts_ms": 1, "ref": {"cert_id": 7}}


def signals(cursor: str, *, more: bool = False, count: int = 1) -> dict[str, Any]:
    """Return a page."""
    data = {"cursor": cursor, "signals": [RENEWED] * count, "more": more}
    return {"type": wire.SIGNALS, "id": cursor, "data": data}


class FakeStream:
    """A socket whose other end is the test; ``script`` may answer what is sent."""

    def __init__(self, script: Callable[[FakeStream, dict[str, Any]], Any] | None = None) -> None:
        self.headers: dict[str, str] = {}
        self.sent: list[dict[str, Any]] = []
        self.pings = 0
        self.pongs = True
        self.closed: int | None = None
        self.broken = False
        self.script = script or greeting
        self._inbox: deque[Any] = deque()
        self._arrived = trio.Event()

    def push(self, *messages: object) -> None:
        """Let messages arrive: dicts, texts, control frames, or exceptions to raise."""
        self._inbox.extend(messages)
        self._arrived.set()
        self._arrived = trio.Event()

    async def receive(self) -> Any:
        while not self._inbox:
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        message = self._inbox.popleft()
        if isinstance(message, Exception):
            raise message
        return json.dumps(message) if isinstance(message, dict) else message

    async def send(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken or self.closed is not None:
            raise TransportError("the connection is closed")
        message = json.loads(text)
        self.sent.append(message)
        self.script(self, message)

    async def ping(self, payload: bytes = b"") -> None:
        from certctrl.net.stream import Pong

        await trio.lowlevel.checkpoint()
        if self.broken:
            raise TransportError("the connection is closed")
        self.pings += 1
        if self.pongs:
            self.push(Pong(payload))

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self.closed = code if self.closed is None else self.closed
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()

    def types(self) -> list[str]:
        return [message["type"] for message in self.sent]


def greeting(stream: FakeStream, message: dict[str, Any]) -> None:
    """Answer hello as a plane does."""
    if message["type"] == wire.HELLO:
        position = message["data"]["cursor"] or "0-0"
        stream.push({"type": wire.HELLO_ACK, "data": {"resume_token": position, "ping_seconds": 25}})


class FakePlane:
    """A plane: each try of a socket gets the next of ``opens``, polls get ``answer``."""

    def __init__(self) -> None:
        self.features = frozenset({PUSH})
        self.opens: list[Any] = []
        self.tokens: list[str] = []
        self.polls: list[Poll] = []
        self.posted: list[Any] = []
        self.answer: events.PollAnswer = events.NoUpdates("9-9")
        self.copies_suspected = False

    def server_now(self) -> float:
        return 1_790_000_000.0

    async def open_stream(self, token: str) -> Any:
        await trio.lowlevel.checkpoint()
        self.tokens.append(token)
        opened = self.opens.pop(0)
        if isinstance(opened, Exception):
            raise opened
        return opened

    async def poll(self, token: str, step: Poll) -> events.PollAnswer:
        await trio.lowlevel.checkpoint()
        self.polls.append(step)
        if step.wait and isinstance(self.answer, events.NoUpdates):
            await trio.sleep(step.wait)
        return self.answer


class FakeTokens:
    """Tokens that a test changes."""

    def __init__(self) -> None:
        self.token = "first"
        self.changed = RepeatedEvent()

    def seen(self) -> str:
        return self.token

    def renew(self, token: str) -> None:
        self.token = token
        self.changed.set()


def make_agent(**fields: object) -> Any:
    """Return what push mode needs of an agent."""

    async def offload(call: Callable[..., Any], *args: object) -> Any:
        await trio.lowlevel.checkpoint()
        return call(*args)

    history: list[dict[str, Any]] = []
    made = {
        "plane": FakePlane(), "tokens": FakeTokens(), "counters": Counters(), "log": logging.getLogger("certctrl.test"),
        "wall_now": lambda: 1_790_000_000.0 + trio.current_time(), "random": lambda: 1.0, "policy": HostPolicy(),
        "questions": None, "audited": {}, "offload": offload, "history": history,
        "store": SimpleNamespace(installed=SimpleNamespace(append_history=lambda entries, limit: history.extend(entries))),
        "config": SimpleNamespace(application=SimpleNamespace(history_entries=100)),
    }  # fmt: skip
    return SimpleNamespace(**made | fields)


def refusal(status: int, key: str = "", **headers: str) -> Answer:
    """Return the plane's refusal of an upgrade."""
    body = json.dumps({"error": {"code": 1, "what": "no", "key": key}}).encode()
    return Answer(status, {"content-type": "application/json", **headers}, body)


def page_of_a_proxy(status: int) -> Answer:
    """Return the answer of a proxy that blocks upgrades."""
    return Answer(status, {"content-type": "text/html"}, b"<html>blocked</html>")


class Scene:
    """An agent in push mode with its plane."""

    def __init__(self, nursery: trio.Nursery, **fields: object) -> None:
        self.agent = make_agent(**fields)
        self.plane: FakePlane = self.agent.plane
        self.push = Push(self.agent, nursery)

    def stream(self, script: Any = None) -> FakeStream:
        """Let the next try open a socket."""
        made = FakeStream(script)
        self.plane.opens.append(made)
        return made

    async def poll(self, cursor: str | None = "1-1", wait: int = 25, limit: int = 20) -> Any:
        return await self.push.poll(self.agent.tokens.token, Poll(cursor, limit, wait))


CUT = Closed(1006)
