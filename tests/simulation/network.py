"""The network between a simulated host and the plane: calls of the ASGI application, with faults.

`SimulatedHttp` is the agent's ``Http``: without sockets, but with deadlines, lost answers and cut connections as the
real transport reports them. ``tests/net`` tests the transport itself with real sockets.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio
from simulation.journal import Journal

from certctrl.errors import BadAnswerError, DeadlineError, TransportError
from certctrl.model.answer import Answer
from certctrl.net.http import json_bytes, target_of
from certctrl.protocol.wire.poll import UPDATES_PATH

if TYPE_CHECKING:
    from simulation.sockets import SimulatedSocket

REFRESH_PATH = "/auth/token/refresh"
NOTIFY_PATH = "/apiv1/devices/self/notify"
MATERIALS_PATH = "/deploy-materials"
"""End of the paths of material, of one certificate or of many."""
LATENCY = 0.02
"""Longest time of an exchange without a fault, in seconds."""


@attrs.frozen(kw_only=True)
class NetworkFault:
    """A fault that affects requests for a while."""

    kind: str
    share: float = 1.0
    """Share of the matching requests that are affected."""
    path: str = ""
    """End of the path of the affected requests; empty for all."""
    status: int = 0
    retry_after: str | None = None
    asks: float | None = None
    """The seconds that ``retry_after`` means; None if it is ignored."""
    seconds: float = 0.0
    """Delay in seconds."""


@attrs.define(kw_only=True)
class Exchange:
    """One request and its result, for the auditor."""

    method: str
    path: str
    query: Mapping[str, Any]
    token: str
    headers: Mapping[str, str] = attrs.field(factory=dict)
    json: Any
    sent_at: float
    fault: NetworkFault | None = None
    answer: Answer | None = None
    failure: str = ""
    done: int = 0
    """Status of the plane's answer; 0 without one."""
    on_socket: bool = False
    """Whether it was said on a push socket, and is no request."""

    @property
    def is_poll(self) -> bool:
        return self.path == UPDATES_PATH and not self.is_look

    @property
    def is_look(self) -> bool:
        """Whether it asks for urgent signals ahead of the cursor."""
        return "ahead" in self.query


class Network:
    """The faults, and the application at the plane's address."""

    def __init__(self, chance: random.Random, journal: Journal) -> None:
        self.chance = chance
        self.journal = journal
        self.app: Callable[..., Any] | None = None
        """The plane; None while it is down."""
        self.replica: Callable[..., Any] | None = None
        """Answers the requests for resources instead, if set: a copy of the plane that lags behind its signals."""
        self.faults: list[NetworkFault] = []
        self.mischief: Callable[[Any], Any] = lambda page: page
        """Changes a page of signals on its way to the agent."""
        self.tamper: Callable[[Exchange, Answer], Answer] = lambda exchange, answer: answer
        """Changes any answer of the plane, as a hostile plane would give it."""
        self.before: Callable[[Exchange], None] = lambda exchange: None
        self.after: Callable[[Exchange], None] = lambda exchange: None
        self.connections: set[trio.CancelScope] = set()
        self.nursery: trio.Nursery | None = None
        """Runs the plane's side of push sockets."""
        self.sockets: set[SimulatedSocket] = set()
        """Open push sockets."""
        self.meddle: Callable[[str], list[Any]] = lambda text: [text]
        """Returns the texts and ends that arrive on a push socket in place of a text, as a hostile plane would send them."""
        self.blocks_upgrades = False
        """Whether a proxy lets no upgrade pass."""
        self.told: Callable[[str | None], None] = lambda cursor: None
        """Called with each cursor that is said on a push socket."""
        self.on_message: Callable[[SimulatedSocket], None] = lambda socket: None
        """Called after each message on a push socket."""

    def clear(self) -> None:
        """End all faults."""
        self.faults.clear()
        self.replica = None
        self.mischief = lambda page: page
        self.blocks_upgrades = False
        self.tamper = lambda exchange, answer: answer
        self.meddle = lambda text: [text]

    def cut_sockets(self) -> None:
        """Break all push sockets."""
        for socket in tuple(self.sockets):
            socket.cut()

    def break_connections(self) -> None:
        """Break all open connections."""
        self.cut_sockets()
        for connection in tuple(self.connections):
            connection.cancel()

    def fault_for(self, path: str) -> NetworkFault | None:
        """Return the fault that affects a request now; None without one."""
        for one in self.faults:
            if path.endswith(one.path) and self.chance.random() < one.share:
                return one
        return None


class SimulatedHttp:
    """The agent's client; ``dead`` returns whether its process was killed."""

    def __init__(self, network: Network, dead: Callable[[], bool]) -> None:
        self.network = network
        self.dead = dead

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def request(
        self, method: str, path: str, *, query: Any = None, headers: Any = None, json: Any = None,
        deadline: float, cap: int,
    ) -> Answer:  # fmt: skip
        if self.dead():
            await trio.sleep_forever()
        network = self.network
        token = str((headers or {}).get("authorization", "")).removeprefix("Bearer ")
        exchange = Exchange(
            method=method, path=path, query=dict(query or {}), token=token, headers=dict(headers or {}), json=json,
            sent_at=trio.current_time(),
        )  # fmt: skip
        exchange.fault = network.fault_for(path)
        network.before(exchange)
        try:
            exchange.answer = await self._within(deadline, exchange, headers)
        except TransportError as error:
            exchange.failure = type(error).__name__
            raise
        except trio.Cancelled:
            exchange.failure = "cancelled"
            raise
        finally:
            if not self.dead():
                network.after(exchange)
        if self.dead():
            await trio.sleep_forever()
        return exchange.answer

    async def open_stream(self, path: str, *, subprotocol: str, headers: Any, deadline: float, cap: int) -> Any:
        if self.dead():
            await trio.sleep_forever()
        from simulation.sockets import open_socket

        token = str(headers.get("authorization", "")).removeprefix("Bearer ")
        exchange = Exchange(method="GET", path=path, query={}, token=token, json=None, sent_at=trio.current_time())
        exchange.fault = self.network.fault_for(path)
        opened: Any = None
        try:
            with trio.move_on_after(deadline):
                opened = await open_socket(self.network, exchange, headers, subprotocol, cap, self.dead)
        except TransportError as error:
            exchange.failure = type(error).__name__
            raise
        finally:
            said = exchange.failure or (str(opened.status) if isinstance(opened, Answer) else "open" if opened else "?")
            self.network.journal.note("push", f"GET {path} -> {said}")
        if self.dead():
            await trio.sleep_forever()
        if opened is None:
            raise DeadlineError(f"no answer within {deadline:g} s")
        return opened

    async def _within(self, deadline: float, exchange: Exchange, headers: object) -> Answer:
        connections = self.network.connections
        with trio.move_on_after(deadline) as connection:
            connections.add(connection)
            try:
                return await self._exchange(exchange, headers)
            finally:
                connections.discard(connection)
        if trio.current_time() < connection.deadline:
            raise TransportError("the connection broke")
        raise DeadlineError(f"no answer within {deadline:g} s")

    async def _exchange(self, exchange: Exchange, headers: object) -> Answer:
        network, fault = self.network, exchange.fault
        await trio.sleep(network.chance.random() * LATENCY)
        kind = fault.kind if fault is not None else ""
        if network.app is None or kind == "refused":
            error = TransportError("connection refused")
            error.maybe_sent = False
            raise error
        if kind == "blackhole":
            await trio.sleep_forever()
        if kind == "reset":
            raise TransportError("connection reset")
        if fault is not None and (made := answer_of(fault)) is not None:
            return made
        lags = network.replica is not None and exchange.method == "GET" and not exchange.is_poll
        answer = await call(network.replica if lags else network.app, exchange, headers)  # type: ignore[arg-type]
        exchange.done = answer.status
        if kind == "lost":
            raise TransportError("connection reset before the answer")
        if kind == "slow" and fault is not None:
            await trio.sleep(fault.seconds)
        if exchange.is_poll and answer.status == 200:
            answer = attrs.evolve(answer, body=json_bytes(network.mischief(json.loads(answer.body))))
        return changed_by(kind, network.tamper(exchange, answer))


def answer_of(fault: NetworkFault) -> Answer | None:
    """Return the answer of a gateway before the plane; None if the request reaches the plane."""
    asked = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
    headers = {"content-type": "application/json", **asked}
    match fault.kind:
        case "status":
            return Answer(fault.status, headers, error_body(fault.status * 10, "TROUBLE"))
        case "html":
            return Answer(fault.status, {"content-type": "text/html", **asked}, b"<html>Please log in</html>")
        case "empty":
            return Answer(fault.status, asked, b"")
        case "junk":
            return Answer(200, headers, b'{"data": 7}')
        case "expired-cursor":
            return Answer(409, headers, error_body(40901, "CURSOR_EXPIRED"))
        case "unauthorized":
            return Answer(401, headers, error_body(4010, "TOKEN_EXPIRED"))
        case "challenge":
            return Answer(401, {"www-authenticate": "Bearer"}, b"")
        case "redirect":
            raise BadAnswerError("the server redirects")
    return None


def error_body(code: int, key: str) -> bytes:
    return json_bytes({"error": {"code": code, "what": "simulated", "key": key, "params": {}}})


def changed_by(kind: str, answer: Answer) -> Answer:
    """Return the plane's answer as a fault changes it."""
    if kind == "truncated":
        return attrs.evolve(answer, body=answer.body[: len(answer.body) // 2])
    if kind == "no-etag":
        return attrs.evolve(answer, headers={k: v for k, v in answer.headers.items() if k != "etag"})
    if kind == "etag-weak" and "etag" in answer.headers:
        return attrs.evolve(answer, headers={**answer.headers, "etag": f'W/"{answer.headers["etag"].strip(chr(34))}"'})
    return answer


async def call(app: Callable[..., Any], exchange: Exchange, headers: Any) -> Answer:
    """Call an ASGI application as a server does, and return its answer."""
    query = target_of("/", exchange.query)[2:].encode()
    body = b"" if exchange.json is None else json_bytes(exchange.json)
    sent = {"host": "plane.test", **(headers or {})}
    if body:
        sent |= {"content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http", "http_version": "1.1", "method": exchange.method, "scheme": "https", "path": exchange.path,
        "raw_path": exchange.path.encode(), "query_string": query, "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("192.0.2.7", 12345), "server": ("plane.test", 443), "state": {},
    }  # fmt: skip
    inbox = [{"type": "http.request", "body": body, "more_body": False}]
    started: dict[str, Any] = {}
    chunks: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if not inbox:
            await trio.sleep_forever()
        return inbox.pop()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        else:
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    names = {name.decode().lower(): value.decode() for name, value in started["headers"]}
    return Answer(started["status"], names, b"".join(chunks))
