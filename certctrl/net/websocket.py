"""WebSocket: the client's side of RFC 6455 on an upgraded connection. Only push mode imports it.

No extension is offered, so nothing is compressed. The bytes and fragments of a message and the frames per time are
bounded, so that no peer can use up memory or processor time. A send has a time limit: a peer that does not read loses
its socket, and never blocks the agent.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections import deque
from collections.abc import Mapping
from io import StringIO

import trio
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, TextMessage
from wsproto.events import Ping as PingFrame
from wsproto.events import Pong as PongFrame
from wsproto.utilities import LocalProtocolError, generate_accept_token

from certctrl.errors import BadAnswerError, TransportError
from certctrl.net.stream import Closed, Connection, Ping, Pong
from certctrl.protocol.wire.frames import Boundary, text_of
from certctrl.text import one_line

SEND_SECONDS = 10.0
"""Seconds after which the socket of a peer that does not read is closed."""
CLOSE_SECONDS = 0.5
MAX_FRAGMENTS = 1000
"""Of one message."""
MAX_FRAMES, FRAME_SECONDS = 1000, 10.0
"""Frames, including fragments, pings and pongs, in this time."""


class Handshake:
    """One upgrade request and the check of its answer."""

    def __init__(self, subprotocol: str) -> None:
        self._subprotocol = subprotocol
        self._key = base64.b64encode(os.urandom(16))

    def headers(self) -> dict[str, str]:
        """Return the headers of the request."""
        return {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": self._key.decode("ascii"),
            "sec-websocket-protocol": self._subprotocol,
        }

    def check(self, headers: Mapping[str, str], place: str) -> None:
        """Check the headers of a 101 answer. Raises BadAnswerError."""
        accept = generate_accept_token(self._key).decode("ascii")
        tokens = [token.strip().lower() for token in headers.get("connection", "").split(",")]
        why = ""
        if headers.get("upgrade", "").strip().lower() != "websocket" or "upgrade" not in tokens:
            why = "to something that is not a WebSocket"
        elif headers.get("sec-websocket-accept", "").strip() != accept:
            why = "with the answer to another request"
        elif headers.get("sec-websocket-protocol", "").strip() != self._subprotocol:
            why = f"without the protocol {self._subprotocol}"
        elif headers.get("sec-websocket-extensions", "").strip():
            why = "with an extension that was not offered"
        if why:
            raise BadAnswerError(f"{place} upgraded the connection {why}", fix="check proxies in between")


class WebSocket:
    """An open socket; see `Stream`."""

    def __init__(self, connection: Connection, headers: Mapping[str, str], *, cap: int) -> None:
        """``cap``: maximum size of a received message in bytes."""
        self.headers = headers
        self._connection = connection
        self._cap = cap
        self._frames = Frames(ConnectionType.CLIENT)
        self._boundary = Boundary(masked=False)
        self._sending = trio.Lock()
        self._received: deque[str | Ping | Pong | Closed] = deque()
        self._text, self._size, self._fragments = StringIO(), 0, 0
        self._counted, self._since = 0, trio.current_time()
        self._broken = False

    async def receive(self) -> str | Ping | Pong | Closed:
        """Return the next message or control frame; see `Stream.receive`."""
        while not self._received:
            data = await self._connection.read()
            if not data:
                return Closed(1006)
            await self._feed(data)
        return self._received.popleft()

    async def send(self, text: str) -> None:
        """Send one message; see `Stream.send`."""
        await self._send(TextMessage(data=text))

    async def ping(self, payload: bytes = b"") -> None:
        """Send a ping."""
        await self._send(PingFrame(payload=payload))

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame if nothing else is being sent, then close the connection."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            try:
                if not self._broken and not self._sending.locked():
                    await self._send(CloseConnection(code=code, reason=reason))
            except TransportError:
                pass  # closed already
            finally:
                self._broken = True
                await self._connection.aclose()

    async def _send(self, event: Event) -> None:
        """Send a frame whole: a cancelled one would make the next frame unreadable."""
        async with self._sending:
            if self._broken:
                raise TransportError("the connection is closed")
            try:
                data = self._frames.send(event)
            except LocalProtocolError:
                raise TransportError("the connection is closing") from None
            with trio.move_on_after(SEND_SECONDS, shield=True) as late:
                await self._connection.write(bytes(data))
            if late.cancelled_caught:
                self._broken = True
                raise TransportError(f"the control plane has not read for {SEND_SECONDS:g} s")

    # --- received frames ------------------------------------------------------------------------------------

    async def _feed(self, data: bytes) -> None:
        if self._is_between_messages and len(data) <= self._cap and (text := text_of(data)) is not None:
            await self._count()
            self._received.append(text)
            return
        self._boundary.feed(data)
        try:
            self._frames.receive_data(data)
            for event in self._frames.events():
                if not isinstance(event, Message) or event.frame_finished:
                    await self._count()
                # otherwise, a part of a frame, as the network delivers it; its bytes are bounded
                await self._take(event)
        except LocalProtocolError:
            self._received.append(Closed(1006))  # data after the close frame
        except (AssertionError, ValueError, KeyError, TypeError) as error:  # input that the parser does not expect
            await self._violated(1002, type(error).__name__)

    @property
    def _is_between_messages(self) -> bool:
        return self._boundary.is_at_end and not self._fragments and self._frames.state is ConnectionState.OPEN

    async def _count(self) -> None:
        """Count a frame; close the socket if there are too many."""
        now = trio.current_time()
        if now - self._since > FRAME_SECONDS:
            self._counted, self._since = 0, now
        self._counted += 1
        if self._counted > MAX_FRAMES:
            await self._violated(1008, f"more than {MAX_FRAMES} frames in {FRAME_SECONDS:g} s")

    async def _take(self, event: Event) -> None:
        match event:
            case TextMessage():
                await self._take_text(event)
            case BytesMessage():
                await self._violated(1003, "a binary message")
            case PingFrame():
                await self._send(event.response())
                self._received.append(Ping())
            case PongFrame():
                self._received.append(Pong(bytes(event.payload)))
            case CloseConnection():
                await self._take_close(event)

    async def _take_text(self, event: TextMessage) -> None:
        self._size += len(event.data.encode())
        self._fragments += event.frame_finished
        if self._size > self._cap:
            await self._violated(1009, f"a message of more than {self._cap // 1024} KiB")
        if self._fragments > MAX_FRAGMENTS:
            await self._violated(1008, f"a message of more than {MAX_FRAGMENTS} fragments")
        self._text.write(event.data)
        if event.message_finished:
            self._received.append(self._text.getvalue())
            self._text, self._size, self._fragments = StringIO(), 0, 0

    async def _take_close(self, event: CloseConnection) -> None:
        if self._frames.state is ConnectionState.OPEN:  # the parser's own, for what it cannot read
            await self._violated(int(event.code), one_line(event.reason or "", 80, ascii_only=True))
        self._received.append(Closed(int(event.code), event.reason or ""))
        if self._frames.state is ConnectionState.REMOTE_CLOSING:
            with contextlib.suppress(TransportError):  # the peer has gone
                await self._send(event.response())

    async def _violated(self, code: int, what: str) -> None:
        """Close the socket, and raise BadAnswerError."""
        self._received.clear()
        await self.aclose(code)
        raise BadAnswerError(f"the control plane does not follow the WebSocket protocol: {what}")
