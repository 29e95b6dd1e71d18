"""Connection: one connection of the server, in one task.

The application runs in the task that reads: a held poll costs no second task, no channel and no timer, and what it
waits for besides signals is the next byte of its client.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import trio

from certctrl.net.tls_stream import TlsStream
from certctrl.plane.http import garbage
from certctrl.plane.http.framing import CONTINUE, ResponseFraming, refusal, switching
from certctrl.plane.http.memo import MEMO, remembered
from certctrl.plane.http.middleware import GONE, SWITCH, WEBSOCKET, App, Message, Scope
from certctrl.plane.http.parsing import END, Event, Refusal, Request, RequestParser
from certctrl.plane.http.plain_stream import PlainStream
from certctrl.plane.http.proxies import Address
from certctrl.plane.http.unread import unread

HANDSHAKE_SECONDS = 10.0
HEAD_SECONDS = 10.0
"""Time limit for a request head, from its first byte; for the first one, from the end of the handshake, too."""
KEEP_ALIVE = 120.0
"""Seconds an idle connection stays open: longer than agents' poll intervals, to avoid new handshakes."""
LAST_SECONDS = 2.0
"""Seconds that a new connection has for its first request while the server stops."""
_REQUESTS = 10_000
"""Most requests of one connection."""
_SEND_SECONDS = 20.0
"""Seconds that sending may block before the connection is dropped."""
_MAX_SKIPPED = 3
"""Parts of a body that are read, and dropped, while a poll is held."""
_MAX_RECEIVED = 64 * 1024
"""Bytes of later requests that are read during a response, to notice when the client disconnects."""
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_DISCONNECT: Message = {"type": "http.disconnect"}

log = logging.getLogger("certctrl.Plane.server")


class Connection:
    """A connection and its requests, one after the other."""

    def __init__(self, app: App, stream: TlsStream | PlainStream, client: Address, state: dict[str, Any]) -> None:
        """Serve a stream before its handshake; ``state`` goes into the scope of each request."""
        self.app = app
        self._stream = stream
        self._client = client
        self._server: Address | None = None
        self._state = state
        self._parser = RequestParser()
        self._received = b""
        """Bytes that the parser has not been fed yet."""
        self._idle: trio.CancelScope | None = None
        """The scope in which the connection waits for a request."""
        self._stopping = False
        self._is_new = True
        """Whether there was no request yet."""
        self.has_left = False
        """Whether the client has ended the connection."""

    def stop(self) -> None:
        """End the connection: now if it is idle, otherwise after its response; a new one may make one request."""
        self._stopping = True
        if self._idle is not None:
            if self._is_new:
                self._limit_first()
            else:
                self._idle.cancel()

    def _limit_first(self) -> None:
        """Limit the time for the first request of a connection that ends after it."""
        assert self._idle is not None
        self._idle.deadline = min(self._idle.deadline, trio.current_time() + LAST_SECONDS)

    async def run(self) -> None:
        """Serve until either side ends the connection; the caller closes the stream."""
        try:
            with trio.move_on_after(HANDSHAKE_SECONDS) as scope:
                await self._stream.do_handshake()
            if scope.cancelled_caught:
                return
            self._server = self._stream.local_address()
            for number in range(1, _REQUESTS + 1):
                request = await self._next_request(first=number == 1)
                self._is_new = False
                if request is None:
                    return
                exchange = _Exchange(self, request, last=self._stopping or number == _REQUESTS)
                await exchange.run()
                garbage.answered.note()
                if exchange.switch is not None:
                    switch = exchange.switch
                    del exchange, request  # a WebSocket may stay open for weeks
                    await switch(self)
                    return
                if self._stopping or not exchange.keeps_connection:
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._parser.close()

    async def _next_request(self, *, first: bool) -> Request | None:
        """Return the next request head; None if the connection ends before."""
        event = self.next_event() or await self._awaited(first=first)
        if isinstance(event, Request):
            return event
        if isinstance(event, Refusal):
            await self._refuse(event.status)
        elif not self._stopping and self._parser.in_head:
            await self._refuse(400 if self.has_left else 408)
        return None

    async def _awaited(self, *, first: bool) -> Event | None:
        """Return the next event, within the time of a head; None if there is none."""
        begun = first or self._parser.in_head  # received during the previous response
        event = None
        try:
            with trio.move_on_after(HEAD_SECONDS if begun else KEEP_ALIVE) as self._idle:
                if first and self._stopping:
                    self._limit_first()
                while event is None and (first or not self._stopping) and await self.read():
                    event = self.next_event()
                    if event is None and not begun:
                        begun, self._idle.deadline = True, trio.current_time() + HEAD_SECONDS
        finally:
            self._idle = None
        return event

    def take_rest(self) -> bytes:
        """Return the bytes that have arrived after a request that switched to another protocol."""
        rest, self._parser.rest, self._received = self._parser.rest + self._received, b"", b""
        return rest

    async def receive_some(self) -> bytes:
        """Wait for bytes of another protocol; empty at the end."""
        return await self._stream.receive_some()

    async def read(self) -> bool:
        """Wait for more bytes; return whether there were any."""
        data = await self._stream.receive_some()
        self._received = self._received + data if self._received else data
        self.has_left = self.has_left or not data
        return bool(data)

    def next_event(self) -> Event | None:
        """Return the next event in the received bytes; None if more are needed."""
        event = self._parser.next_event()
        if event is None and self._received:
            data, self._received = self._received, b""
            self._parser.feed(data)
            event = self._parser.next_event()
        return event

    def take_end(self) -> bool:
        """Return whether the next event is the end of the body, and take it."""
        return self._parser.take_end()

    async def send(self, data: bytes) -> None:
        """Send bytes in one write: one TLS record and one system call."""
        sent = self._stream.send_now(data)
        if sent == len(data):
            if self.has_unread:  # the next request is already there: let other tasks run first
                await trio.lowlevel.cancel_shielded_checkpoint()
            return
        # A partial response would be worse than a slow stop.
        left = memoryview(data)[sent:]
        with trio.move_on_after(_SEND_SECONDS, shield=True) as scope, unread.waiting(len(left), scope):
            await self._stream.send_all(left)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")

    async def _refuse(self, status: int) -> None:
        """Answer bytes that are not a valid request."""
        await self.send(refusal(status))

    def scope(self, request: Request) -> Scope:
        """Return the ASGI scope of a request."""
        path, text, query = remembered(request.memo, _path_of, request)
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": request.version,
            "method": request.method,
            "scheme": self._stream.scheme,
            "path": text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": self._client,
            "server": self._server,
            "state": self._state,
            MEMO: request.memo,
        }
        if request.is_websocket:
            scope["extensions"] = {WEBSOCKET: {}, SWITCH: {}} if request.switches else {WEBSOCKET: {}}
        return scope

    @property
    def has_unread(self) -> bool:
        """Whether received bytes have not been read yet."""
        return bool(self._received) or self._parser.has_events

    @property
    def is_full(self) -> bool:
        """Whether the limit of unread bytes is reached."""
        return len(self._received) > _MAX_RECEIVED


class _Exchange:
    """One request and its response."""

    def __init__(self, connection: Connection, request: Request, *, last: bool) -> None:
        self._connection = connection
        self._request = request
        self._framing = ResponseFraming(request.method, request.version, keep_alive=request.keep_alive and not last)
        self._start: Message | None = None
        self._begun = self._ended = self._read = False
        self._awaits_100 = request.expects_100
        self.switch: Callable[[Connection], Awaitable[None]] | None = None
        """The next protocol after a response with status 101."""

    async def run(self) -> None:
        """Let the application answer; an exception before its response becomes a 500, later it ends the connection."""
        connection = self._connection
        try:
            scope = connection.scope(self._request)
            scope[GONE] = self.gone
            await connection.app(scope, self.receive, self.send)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:
            if not _has_left(error):
                log.exception("a request failed")
        if not self._begun:
            self._framing = ResponseFraming(self._request.method, self._request.version, keep_alive=False)
            self._start = {"status": 500}
            await self._send_part(b"", is_last=True)
        elif not self._ended:
            raise trio.BrokenResourceError("the response is not complete")
        if not self._read:
            self._skip_body()

    @property
    def keeps_connection(self) -> bool:
        """Whether another request may follow."""
        return self._read and self._framing.keep_alive

    def _skip_body(self) -> None:
        """Skip the rest of an unread body if all of it has arrived; otherwise the connection ends."""
        while isinstance(event := self._connection.next_event(), bytes):
            pass
        self._read = event is END

    async def receive(self) -> Message:
        """Return a part of the body, then wait for the disconnect."""
        if self._read:
            return await self._disconnect()
        connection = self._connection
        if self._awaits_100:
            self._awaits_100 = False
            if not self._begun and not connection.has_unread:
                await connection.send(CONTINUE)
        try:
            while (event := connection.next_event()) is None:
                if not await connection.read():
                    return _DISCONNECT
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return _DISCONNECT
        if isinstance(event, bytes):
            self._read = connection.take_end()
            return {"type": "http.request", "body": event, "more_body": not self._read}
        if event is not END:
            return _DISCONNECT
        self._read = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def gone(self) -> None:
        """Return when the client has left. A short body is skipped; a long one is not read further."""
        self._read = self._read or self._connection.take_end()
        message = await (self._disconnect() if self._read else self.receive())
        for _ in range(_MAX_SKIPPED):
            if message["type"] == "http.disconnect":
                return
            message = await self.receive()
        await trio.sleep_forever()

    async def _disconnect(self) -> Message:
        try:
            while not self._connection.has_left:
                if self._connection.is_full:
                    await trio.sleep_forever()  # earlier requests are answered first
                await self._connection.read()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return _DISCONNECT

    async def send(self, message: Message) -> None:
        """Send a part of the response; the head is sent with the first part of the body."""
        kind = message["type"]
        if kind == "http.response.start" and SWITCH in message:
            self.switch, self._begun, self._ended = message[SWITCH], True, True
            await self._connection.send(switching(message["headers"]))
        elif kind == "http.response.start":
            self._start = message
        elif kind == "http.response.body":
            await self._send_part(message.get("body", b""), is_last=not message.get("more_body", False))

    async def _send_part(self, body: bytes, *, is_last: bool) -> None:
        """Send a part of the body, with the head if it has not been sent."""
        if self._ended:
            raise RuntimeError("the response has ended")
        if self._begun:
            data = self._framing.part(body, is_last=is_last)
        else:
            assert self._start is not None
            status, headers = self._start["status"], self._start.get("headers", ())
            data = self._framing.first(status, headers, body, is_last=is_last)
            self._begun = True
        if data:
            await self._connection.send(data)
        self._ended = is_last


def _path_of(request: Request) -> tuple[bytes, str, bytes]:
    """Return the path of a request as it was sent and decoded, and the query."""
    path, _, query = request.target.partition(b"?")
    text = path.decode("latin-1")
    return path, unquote(text) if "%" in text else text, query


def _has_left(error: Exception) -> bool:
    """Return whether an exception only means that the client has disconnected."""
    gone = trio.BrokenResourceError, trio.ClosedResourceError
    return isinstance(error, ExceptionGroup) and error.split(gone)[1] is None
