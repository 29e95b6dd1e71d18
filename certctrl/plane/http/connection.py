"""Connection: one connection of the server, parsed by h11, in one task.

The application runs in the task that reads: a held poll costs no second task, no channel and no timer, and what it
waits for besides signals is the next byte of its client.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import unquote

import h11
import trio

from certctrl.plane.http.middleware import App, Message, Scope
from certctrl.plane.http.plain_stream import PlainStream
from certctrl.plane.http.proxies import Address
from certctrl.plane.http.tls_stream import TlsStream

HANDSHAKE_SECONDS = 10.0
HEAD_SECONDS = 10.0
"""How long a request head may take to arrive, from its first byte; the first one also from the handshake."""
KEEP_ALIVE = 120.0
"""Seconds an idle connection stays open: longer than agents' poll intervals, to avoid new handshakes."""
_REQUESTS = 10_000
"""Most requests of one connection."""
_SEND_SECONDS = 20.0
"""How long sending may block before the connection is dropped."""
_MAX_RECEIVED = 64 * 1024
_LARGEST_HEAD = 16 * 1024
_NO_BODY = (204, 304)
_WEBSOCKET = "websocket."
_DISCONNECT: Message = {"type": "http.disconnect"}

log = logging.getLogger("certctrl.Plane.server")


class Connection:
    """A connection and its requests, one after the other."""

    def __init__(self, app: App, stream: TlsStream | PlainStream, client: Address, state: dict[str, Any]) -> None:
        """Serve a stream whose handshake is still to be made; ``state`` goes into the scope of each request."""
        self.app = app
        self._stream = stream
        self._client = client
        self._state = state
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD)
        self._idle: trio.CancelScope | None = None
        """The scope in which the connection waits for a request."""
        self._stopping = self._gone = False

    def stop(self) -> None:
        """End the connection: now if it is idle, otherwise after its response."""
        self._stopping = True
        if self._idle is not None:
            self._idle.cancel()

    async def run(self) -> None:
        """Serve until either side ends the connection; the caller closes the stream."""
        try:
            with trio.move_on_after(HANDSHAKE_SECONDS) as scope:
                await self._stream.do_handshake()
            if scope.cancelled_caught:
                return
            for number in range(1, _REQUESTS + 1):
                request = await self._next_request(first=number == 1)
                if request is None:
                    return
                await _Exchange(self, request, last=number == _REQUESTS).run()
                if self._stopping or (self._h11.our_state, self._h11.their_state) != (h11.DONE, h11.DONE):
                    return
                self._h11.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _next_request(self, *, first: bool) -> h11.Request | None:
        """Return the next request head; None if the connection ends before."""
        try:
            begun = first or self.unread > 0  # during the response before it
            with trio.move_on_after(HEAD_SECONDS if begun else KEEP_ALIVE) as self._idle:
                while (event := self._h11.next_event()) is h11.NEED_DATA:
                    if self._stopping:
                        return None
                    await self.read()
                    if not begun and self._idle.deadline > (limit := trio.current_time() + HEAD_SECONDS):
                        self._idle.deadline = limit
                return event if isinstance(event, h11.Request) else None
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint)
            return None
        finally:
            self._idle = None
        if not self._stopping and self._h11.trailing_data[0]:
            await self._refuse(408)
        return None

    async def read(self) -> bool:
        """Wait for more bytes; return whether there were any."""
        data = await self._stream.receive_some()
        self._h11.receive_data(data)
        self._gone = self._gone or not data
        return bool(data)

    async def send(self, *events: Any) -> None:
        """Send events in one write: one TLS record and one system call."""
        data = b"".join(self._h11.send(event) or b"" for event in events)
        sent = self._stream.send_now(data)
        if sent == len(data):
            if self.unread:  # the next request need not be waited for: let others run
                await trio.lowlevel.cancel_shielded_checkpoint()
            return
        # A partial response would be worse than a slow stop.
        with trio.move_on_after(_SEND_SECONDS, shield=True) as scope:
            await self._stream.send_all(data[sent:])
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")

    async def _refuse(self, status: int) -> None:
        """Answer what is not a request."""
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await self.send(h11.Response(status_code=status, headers=headers), h11.EndOfMessage())

    def scope(self, request: h11.Request) -> Scope:
        """Return the ASGI scope of a request."""
        path, _, query = request.target.partition(b"?")
        headers = list(request.headers)
        upgrades = any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers)
        return {
            "type": "websocket" if upgrades else "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii").upper(),
            "scheme": self._stream.scheme,
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": self._stream.local_address(),
            "state": self._state,
        }

    def next_event(self) -> Any:
        """Return the next part of the request's body; PAUSED if it is complete."""
        return self._h11.next_event()

    @property
    def has_left(self) -> bool:
        """Whether the client has ended the connection."""
        return self._gone

    @property
    def waits_for_100(self) -> bool:
        """Whether the client waits for an invitation to send its body."""
        return bool(self._h11.they_are_waiting_for_100_continue)

    @property
    def unread(self) -> int:
        """Bytes that have been received and belong to later requests."""
        return len(self._h11.trailing_data[0])


class _Exchange:
    """One request and its response."""

    def __init__(self, connection: Connection, request: h11.Request, *, last: bool) -> None:
        self._connection = connection
        self._request = request
        self._last = last
        self._start: Message | None = None
        self._begun = self._ended = self._read = False

    async def run(self) -> None:
        """Let the application answer; an exception before its response becomes a 500, later it ends the connection."""
        connection = self._connection
        try:
            await connection.app(connection.scope(self._request), self.receive, self.send)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:
            if not _has_left(error):
                log.exception("a request failed")
        if not self._begun:
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            self._start = {"status": 500, "headers": headers}
            await self._finish(b"")
        elif not self._ended:
            raise trio.BrokenResourceError("the response is not complete")
        if not self._read:
            self._skip_body()

    def _skip_body(self) -> None:
        """Note the end of a body that has arrived and was not read; otherwise the connection ends."""
        try:
            while not isinstance(event := self._connection.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return
        except h11.RemoteProtocolError:
            return

    async def receive(self) -> Message:
        """Return a part of the body, then wait for the disconnect."""
        if self._read:
            return await self._disconnect()
        connection = self._connection
        if connection.waits_for_100 and not self._begun:
            await connection.send(h11.InformationalResponse(status_code=100, headers=[]))
        try:
            while (event := connection.next_event()) is h11.NEED_DATA:
                await connection.read()
        except (h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            return _DISCONNECT
        if isinstance(event, h11.Data):
            return {"type": "http.request", "body": bytes(event.data), "more_body": True}
        self._read = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _disconnect(self) -> Message:
        try:
            while not self._connection.has_left:
                if self._connection.unread > _MAX_RECEIVED:
                    await trio.sleep_forever()  # the requests that have arrived come first
                await self._connection.read()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return _DISCONNECT

    async def send(self, message: Message) -> None:
        """Take a part of the response; the head leaves with the first part of the body."""
        kind = message["type"].removeprefix(_WEBSOCKET)
        if kind == "http.response.start":
            self._start = message
        elif kind == "http.response.body":
            body = message.get("body", b"")
            if message.get("more_body", False):
                await self._send_part(body)
            else:
                await self._finish(body)

    async def _send_part(self, body: bytes) -> None:
        if body or not self._begun:
            await self._connection.send(*self._head(), *self._data(body))

    async def _finish(self, body: bytes) -> None:
        await self._connection.send(*self._head(), *self._data(body), h11.EndOfMessage())
        self._ended = True

    def _head(self) -> list[h11.Response]:
        """Return the head if it has not been sent."""
        if self._begun:
            return []
        assert self._start is not None
        self._begun = True
        headers = [*self._start.get("headers", ()), *([(b"connection", b"close")] if self._last else ())]
        return [h11.Response(status_code=self._start["status"], headers=headers)]

    def _data(self, body: bytes) -> list[h11.Data]:
        assert self._start is not None
        silent = self._request.method == b"HEAD" or self._start["status"] in _NO_BODY
        return [] if silent or not body else [h11.Data(data=body)]


def _has_left(error: Exception) -> bool:
    """Return whether an exception only says that the client has left."""
    gone = trio.BrokenResourceError, trio.ClosedResourceError
    return isinstance(error, ExceptionGroup) and error.split(gone)[1] is None
