"""Push sockets between a simulated host and the plane: the real frames of both, on a connection in memory.

The auditor learns what is said on them as if it had been said in requests.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import trio
from memory_stream import ClientEnd, ServerEnd, memory_streams
from simulation.network import LATENCY, NOTIFY_PATH, Exchange, answer_of
from starlette.types import ASGIApp

from certctrl.errors import BadAnswerError, TransportError
from certctrl.model.answer import Answer
from certctrl.net.http import json_bytes
from certctrl.net.stream import Closed, Ping, Pong
from certctrl.net.websocket import Handshake, WebSocket
from certctrl.plane.http.connection import Connection
from certctrl.plane.http.plain_stream import PlainStream
from certctrl.protocol.wire import push as wire
from certctrl.protocol.wire.poll import UPDATES_PATH

if TYPE_CHECKING:
    from simulation.network import Network


class Bytes:
    """The bytes of a client's connection."""

    def __init__(self, end: ClientEnd) -> None:
        self.end = end

    async def read(self) -> bytes:
        try:
            return await self.end.receive_some()
        except trio.BrokenResourceError:
            return b""

    async def write(self, data: bytes) -> None:
        try:
            await self.end.send_all(data)
        except trio.BrokenResourceError:
            raise TransportError("the connection broke") from None

    async def aclose(self) -> None:
        await self.end.aclose()


class SimulatedSocket:
    """A push socket of an agent process."""

    def __init__(
        self, network: Network, socket: WebSocket, end: ClientEnd, token: str, dead: Callable[[], bool]
    ) -> None:
        self.network, self.socket, self.end, self.token, self.dead = network, socket, end, token, dead
        self.headers = socket.headers
        self.position: str | None = None
        self.silent = False
        """Whether everything is lost from now on, in both directions, without a sign."""
        self.next: deque[Any] = deque()
        """What has been received, as the plane or a change of it has said it."""
        self.messages = 0
        self.outcomes: dict[str, Any] = {}
        network.sockets.add(self)

    def cut(self) -> None:
        """Break the connection."""
        self.end.inward.end()
        self.end.outward.end()

    async def receive(self) -> str | Ping | Pong | Closed:
        while not self.next:
            received = await self.socket.receive()
            await trio.sleep(self.network.chance.random() * LATENCY)
            self.next += self.network.meddle(received) if isinstance(received, str) else [received]
        received = self.next.popleft()
        if self.silent or self.dead():
            await trio.sleep_forever()
        if isinstance(received, str):
            received = self._heard(received)
        if isinstance(received, Closed):
            self.network.journal.note("push", f"closed by the plane: {received.code} {received.reason}")
            self.network.sockets.discard(self)
        return received

    async def send(self, text: str) -> None:
        if self.dead():
            return  # the agent sends shielded: a wait here would outlive the killed process
        self._said(json.loads(text))
        if not self.silent:
            await self.socket.send(text)
        self._counted()

    async def ping(self, payload: bytes = b"") -> None:
        if not self.silent and not self.dead():
            await self.socket.ping(payload)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self.network.sockets.discard(self)
        if self.dead() or self.silent:
            self.cut()
        else:
            self.network.journal.note("push", f"closed by the agent: {code}")
            await self.socket.aclose(code, reason)

    def _counted(self) -> None:
        self.messages += 1
        self.network.on_message(self)

    def _said(self, message: Mapping[str, Any]) -> None:
        kind = message["type"]
        self.network.journal.note(
            "push", f"agent: {kind} {message.get('id') or (message.get('data') or {}).get('cursor', '')}"
        )
        if kind in (wire.HELLO, wire.ACK):
            self.position = message["data"]["cursor"] if kind == wire.HELLO else message["id"]
            self.network.told(self.position)
        elif kind == wire.OUTCOMES:
            exchange = self._exchange("POST", NOTIFY_PATH, json=message["data"])
            self.network.before(exchange)
            self.outcomes[message["id"]] = exchange

    def _heard(self, text: str) -> str:
        try:
            envelope = wire.envelope_from_text(text)
            if envelope.type == wire.HELLO_ACK:
                wire.greeting_from_wire(envelope)
            elif envelope.type == wire.SIGNALS:
                wire.page_event(envelope, 1)
        except BadAnswerError:  # of a hostile plane; the agent refuses it
            return text
        message = json.loads(text)
        kind, data = envelope.type, envelope.data
        self.network.journal.note("push", f"plane: {kind} {envelope.id}")
        if kind == wire.HELLO_ACK and self.position is None and data.get("resume_token"):
            self._answered(self._poll(), Answer(204, {"etag": data["resume_token"]}, b""))
            self.position = data["resume_token"]
        elif kind == wire.SIGNALS:
            page = self.network.mischief({"data": data})
            message["data"] = page["data"]
            self._answered(self._poll(), Answer(200, {"content-type": "application/json"}, json_bytes(page)))
        elif kind == wire.OUTCOMES_ACK and envelope.id in self.outcomes:
            self._answered(self.outcomes.pop(envelope.id), Answer(204, {}, b""))
        self._counted()
        return json.dumps(message)

    def _poll(self) -> Exchange:
        return self._exchange("GET", UPDATES_PATH, query={"cursor": self.position, "wait": "25"})

    def _exchange(self, method: str, path: str, *, query: Any = None, json: Any = None) -> Exchange:
        return Exchange(
            method=method,
            path=path,
            query=query or {},
            token=self.token,
            json=json,
            sent_at=trio.current_time(),
            on_socket=True,
        )

    def _answered(self, exchange: Exchange, answer: Answer) -> None:
        exchange.answer, exchange.done = answer, answer.status
        self.network.after(exchange)


async def open_socket(
    network: Network,
    exchange: Exchange,
    headers: Mapping[str, str],
    subprotocol: str,
    cap: int,
    dead: Callable[[], bool],
) -> SimulatedSocket | Answer:
    """Open a socket as the real transport does, with the faults of the network."""
    fault = exchange.fault
    kind = fault.kind if fault is not None else ""
    await trio.sleep(network.chance.random() * LATENCY)
    if network.app is None or kind == "refused":
        error = TransportError("connection refused")
        error.maybe_sent = False
        raise error
    if kind == "blackhole":
        await trio.sleep_forever()
    if kind in ("reset", "lost", "truncated"):
        raise TransportError("connection reset")
    if fault is not None and (made := answer_of(fault)) is not None:
        return made
    if network.blocks_upgrades:
        return Answer(403, {"content-type": "text/html"}, b"<html>blocked</html>")
    server, end = memory_streams()
    assert network.nursery is not None
    network.nursery.start_soon(_serve, network.app, server)
    handshake = Handshake(subprotocol)
    named = {"host": "plane.test", **headers, **handshake.headers()}
    lines = [f"GET {exchange.path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    await end.send_all("\r\n".join(lines).encode())
    status, answered, rest = await _head(end)
    if status != 101:
        await end.aclose()
        return Answer(status, answered, rest)
    handshake.check(answered, "plane.test:443")
    end.inward.buffer[:0] = rest
    return SimulatedSocket(network, WebSocket(Bytes(end), answered, cap=cap), end, exchange.token, dead)


async def _serve(app: ASGIApp, server: ServerEnd) -> None:
    try:
        await Connection(app, cast(PlainStream, server), ("192.0.2.7", 12345), {}).run()
    finally:
        server.close()


async def _head(end: ClientEnd) -> tuple[int, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := await end.receive_some()):
            raise TransportError("the connection broke")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    status = int(first.split(" ")[1])
    while status != 101 and len(rest) < int(headers.get("content-length", 0)):
        if not (part := await end.receive_some()):
            raise BadAnswerError("the answer was cut")
        rest += part
    return status, headers, rest
