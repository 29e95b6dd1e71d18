"""WebSocket: the server's side of a WebSocket, in the task that reads it.

It returns whole messages, within limits of size, rate and time, and answers and sends pings. While idle, it keeps only
the state of the framing, and it queues nothing for a client that does not read.
"""

from __future__ import annotations

import json
from typing import Protocol

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

from certctrl.plane.errors import ErrorResponse
from certctrl.plane.http.reading import arriving
from certctrl.protocol.wire.frames import Boundary, text_frame
from certctrl.protocol.wire.push import MAX_SENT, OVERLOAD, PING_SECONDS

MESSAGE_SECONDS = 15.0
"""Time limit for a message, from its first byte."""
FRAMES_PER_SECOND = 50.0
FRAMES_BURST = 200.0
_FIRST_PING_SECONDS = 1.2 * PING_SECONDS
"""Clients ping after `PING_SECONDS`, so that the server usually need not."""
_PINGS = 2
"""Pings without an answer, after which the connection is dead."""
_LINGER_SECONDS = 2.0
"""Time for the client to close after a close frame; otherwise it might lose the frame."""
_EMPTY_PING, _EMPTY_PONG = b"\x89\x80", b"\x8a\x80"
"""Heads of frames without payload; the mask follows."""
_EMPTY_BYTES = 6
_PONG = b"\x8a\0"
ABNORMAL = 1006
"""Code of a connection that ended without a close frame; it is never sent."""
PROTOCOL_ERROR = 1002
UNSUPPORTED = 1003
INVALID = 1007
POLICY = 1008
TOO_BIG = 1009


class Carrier(Protocol):
    """The connection below."""

    async def receive_some(self) -> bytes:
        """Wait for bytes; empty at the end."""

    async def send(self, data: bytes) -> None:
        """Send bytes; raises trio.BrokenResourceError if the client does not read."""


class WebSocket:
    """A WebSocket after its handshake; ``receive`` may be cancelled at any time without losing anything."""

    def __init__(self, carrier: Carrier, received: bytes = b"") -> None:
        """``received``: what arrived after the handshake."""
        self._carrier = carrier
        self._frames = Connection(ConnectionType.SERVER, trailing_data=received)
        self._boundary = Boundary(masked=True)
        self._boundary.feed(received)
        self.received_at = trio.current_time()
        """When bytes arrived last (Trio clock)."""
        self._ping_at = self.received_at + _FIRST_PING_SECONDS
        self._pings = 0
        """Pings since then."""
        self._parts: list[str] | None = None
        """Of the message that is arriving."""
        self._size = 0
        self._begun_at = 0.0
        self._tokens = FRAMES_BURST
        self._counted_at = self.received_at
        self.closed: int | None = None
        """The close code, ours or the client's; None while it is open."""

    async def receive(self) -> str | None:
        """Return the next message; None when the socket is closed."""
        while self.closed is None:
            for event in self._frames.events():
                text = await self._take(event)
                if text is not None:
                    return text
                if self.closed is not None:
                    return None
            await self._read()
        return None

    async def send(self, text: str) -> None:
        """Send a message; no-op on a closed socket. Raises trio.BrokenResourceError if the client does not read."""
        if self.closed is None:
            await self._carrier.send(text_frame(text))

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, and wait shortly for the client's; idempotent."""
        if self.closed is not None:
            return
        self.closed = code
        self.release()
        await self._carrier.send(self._frames.send(CloseConnection(code, reason)))
        with trio.move_on_after(_LINGER_SECONDS, shield=True):
            while data := await self._carrier.receive_some():
                self._frames.receive_data(data)
                if any(isinstance(event, CloseConnection) for event in self._frames.events()):
                    break

    async def close_for(self, code: int, retry_after: float) -> None:
        """Close with the seconds after which the client should connect again."""
        await self.close(code, json.dumps({"retry_after": round(retry_after, 1)}))

    def release(self) -> None:
        """Forget the message that is arriving."""
        arriving.release(self._size)
        self._parts, self._size = None, 0

    async def _read(self) -> None:
        """Wait for bytes; ping a silent client, and give up one that is dead or too slow."""
        slow = self._begun_at + MESSAGE_SECONDS
        is_slow = self._parts is not None and slow < self._ping_at
        with trio.CancelScope(deadline=slow if is_slow else self._ping_at):
            data = await self._carrier.receive_some()
            self.received_at, self._pings = trio.current_time(), 0
            self._ping_at = self.received_at + _FIRST_PING_SECONDS
            if not data:
                self.closed = ABNORMAL
            elif len(data) == _EMPTY_BYTES and data[:2] in (_EMPTY_PING, _EMPTY_PONG) and self._boundary.is_at_end:
                await self._take_empty(data)
            else:
                self._boundary.feed(data)
                self._frames.receive_data(data)
            return
        if is_slow:
            await self.close(POLICY, "the message is not complete in time")
        elif self._pings == _PINGS:
            self.closed = ABNORMAL
        else:
            self._pings, self._ping_at = self._pings + 1, trio.current_time() + PING_SECONDS
            await self._carrier.send(self._frames.send(Ping()))

    async def _take_empty(self, data: bytes) -> None:
        """Take a ping or pong without payload: all that idle clients send, in a fifth of the time of the library."""
        if await self._counted() and data[:2] == _EMPTY_PING:
            await self._carrier.send(_PONG)

    async def _take(self, event: Event) -> str | None:
        """Take an event; return a message that it completes."""
        if isinstance(event, TextMessage):
            if event.frame_finished and not await self._counted():
                return None
            return await self._joined(event)
        if isinstance(event, CloseConnection):
            await self._close_by(event)
        elif isinstance(event, BytesMessage):
            await self.close(UNSUPPORTED, "messages are text")
        elif await self._counted() and isinstance(event, Ping):
            await self._carrier.send(self._frames.send(event.response()))
        return None

    async def _joined(self, event: TextMessage) -> str | None:
        """Add a part of a message; return it if it is complete."""
        data = event.data
        size = len(data) if data.isascii() else len(data.encode())
        if self._parts is None:
            if event.message_finished and size <= MAX_SENT:
                return data
            self._parts, self._begun_at = [], trio.current_time()
        self._size += size
        try:
            arriving.take(size)
        except ErrorResponse as error:
            await self.close_for(OVERLOAD, error.retry_after or 0.0)
            return None
        if self._size > MAX_SENT:
            await self.close(TOO_BIG, f"a message has at most {MAX_SENT} bytes")
            return None
        self._parts.append(data)
        if not event.message_finished:
            return None
        text = "".join(self._parts)
        self.release()
        return text

    async def _counted(self) -> bool:
        """Count a frame; close, and return False, if there are too many."""
        now = trio.current_time()
        self._tokens = min(FRAMES_BURST, self._tokens + (now - self._counted_at) * FRAMES_PER_SECOND) - 1
        self._counted_at = now
        if self._tokens >= 0:
            return True
        await self.close(POLICY, "too many frames")
        return False

    async def _close_by(self, event: CloseConnection) -> None:
        """End after the client's close frame, or after bytes that are not the protocol."""
        if self._frames.state is ConnectionState.OPEN:
            await self.close(int(event.code), event.reason or "")
            return
        self.closed = int(event.code)
        self.release()
        await self._carrier.send(self._frames.send(event.response()))
