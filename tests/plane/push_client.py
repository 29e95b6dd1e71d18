"""A push client for tests: the agent's side of docs/protocol.md, "Push", over any stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import attrs
import trio
from memory_stream import memory_streams
from plane_world import Device, World
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from certctrl.plane.http.connection import Connection

STREAM = "/apiv1/devices/self/stream"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class ByteStream(Protocol):
    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, most: int = ..., /) -> bytes: ...


@attrs.frozen
class Closed:
    """The end of a socket; 1006 without a close frame."""

    code: int
    reason: str = ""

    @property
    def retry_after(self) -> float:
        return float(json.loads(self.reason)["retry_after"])


@attrs.define(eq=False)
class PushClient:
    """One socket."""

    stream: ByteStream
    token: str = ""
    answers_pings: bool = True
    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    frames: Frames = attrs.field(factory=lambda: Frames(ConnectionType.CLIENT))
    pings: int = 0
    inbox: list[dict[str, Any] | Closed] = attrs.field(factory=list)

    async def upgrade(self, *, path: str = STREAM, method: str = "GET", **changed: str | None) -> int:
        """Send the opening handshake, with some headers changed or left out; return the status."""
        headers: dict[str, str | None] = {
            "Host": "plane", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Protocol": "certctrl.v1",
            "Authorization": f"Bearer {self.token}" if self.token else None,
        }  # fmt: skip
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        lines = [f"{method} {path} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items() if value]]
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += (part := await self.stream.receive_some(65_536))
            if not part:
                raise EOFError
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *others = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in others)}
        if self.status == 101:
            self.frames.receive_data(rest)
            return 101
        while len(rest) < int(self.headers.get("content-length", "0")):
            rest += (part := await self.stream.receive_some(65_536))
            if not part:
                break  # the answer to HEAD
        self.body = rest
        return self.status

    @property
    def key(self) -> str:
        """The key of a refusal."""
        return str(json.loads(self.body)["error"]["key"])

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def event(self, event: Event) -> None:
        await self.stream.send_all(self.frames.send(event))

    async def text(self, text: str) -> None:
        await self.event(TextMessage(text))

    async def send(self, type_: str, data: object = None, name: str | None = None) -> None:
        value = {"type": type_} | ({} if name is None else {"id": name}) | ({} if data is None else {"data": data})
        await self.text(json.dumps(value))

    async def receive(self) -> dict[str, Any] | Closed:
        """Return the next message, or the end."""
        text = ""
        while True:
            for event in self.frames.events():
                match event:
                    case TextMessage():
                        text += event.data
                        if event.message_finished:
                            value: dict[str, Any] = json.loads(text)
                            return value
                    case Ping():
                        self.pings += 1
                        if self.answers_pings:
                            await self.event(event.response())
                    case CloseConnection():
                        if self.frames.state is ConnectionState.REMOTE_CLOSING:
                            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                                await self.event(event.response())
                        return Closed(int(event.code), event.reason or "")
                    case Pong() | BytesMessage() | Message():
                        pass
            try:
                data = await self.stream.receive_some(65_536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return Closed(1006)
            self.frames.receive_data(data)

    async def expect(self, type_: str) -> dict[str, Any]:
        """Return the next message, which is of a type."""
        message = await self.receive()
        assert isinstance(message, dict), message
        assert message["type"] == type_, message
        return message

    async def closed(self) -> Closed:
        """Return the end, which is next."""
        message = await self.receive()
        assert isinstance(message, Closed), message
        return message

    async def hello(self, cursor: str | None = None, limit: int = 20) -> str:
        """Say hello; return the position."""
        await self.send("lifecycle.hello", {"cursor": cursor, "limit": limit})
        return str((await self.expect("lifecycle.hello_ack"))["data"]["resume_token"])

    async def page(self) -> dict[str, Any]:
        """Return the next page, confirmed."""
        message = await self.expect("updates.signal")
        assert message["id"] == message["data"]["cursor"]
        await self.send("updates.ack", name=message["id"])
        page: dict[str, Any] = message["data"]
        return page

    async def outcomes(self, events: list[Any], name: str = "1") -> dict[str, Any] | Closed:
        await self.send("updates.outcomes", {"schema": "certctrl.device.notify.v1", "events": events}, name)
        return await self.receive()


@asynccontextmanager
async def memory_client(
    app: Callable[..., Awaitable[Any]], token: str, *, address: str = "192.0.2.7", capacity: int = 2**30
) -> AsyncIterator[PushClient]:
    """A client of an application in this process, before its handshake; leaving the block ends the connection."""
    server, client = memory_streams(capacity)
    connection = Connection(app, server, (address, 5000), {})  # type: ignore[arg-type]

    async def serve() -> None:
        await connection.run()
        server.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield PushClient(client, token)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def pushed(world: World, device: Device, cursor: str | None = None, limit: int = 20) -> AsyncIterator[PushClient]:
    """A socket of a device after its hello."""
    async with memory_client(world.app, device.token) as client:
        assert await client.upgrade() == 101
        await client.hello(cursor, limit)
        yield client
