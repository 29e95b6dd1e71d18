"""DirectTransport: HTTP/1.1 by h11 on Trio, on connections that are kept for the next request.

For requests without a proxy, in place of the library's transport and with its interface and exceptions: its pool,
locks, trace objects and a cancel scope per read took more CPU time than TLS, h11 and Trio together. Each connection is
used by one exchange at a time. An exchange that fails or is cancelled closes its connection, so none can leak, and the
number of connections is the number of concurrent exchanges, which the caller limits.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h11
import httpcore
import trio

MAX_HEAD = 100 * 1024
"""Bytes of the head of an answer, at most."""
_READ = 64 * 1024
_CLOSE_SECONDS = 1.0

Network = trio.SSLStream[trio.SocketStream] | trio.SocketStream


class DirectTransport:
    """The connections to one origin."""

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        *,
        connect_seconds: float,
        keepalive_seconds: float,
    ) -> None:
        """``host``: in ASCII. ``context``: None for plain HTTP. ``keepalive_seconds``: how long a connection may idle."""
        if context is not None:
            context.set_alpn_protocols(["http/1.1"])
        self._host, self._port, self._context = host, port, context
        self._connect_seconds = connect_seconds
        self._keepalive_seconds = keepalive_seconds
        self._idle: list[_Connection] = []
        """The one used last is used next; the others expire."""
        self._busy: set[_Connection] = set()

    async def exchange(self, request: httpcore.Request) -> httpcore.Response:
        """Send one request and return the answer, with an unread body; close it in any case."""
        connection = await self._usable() or await self._connected(request)
        self._busy.add(connection)
        try:
            await _note(request, "http11.send_request_headers.started")
            status, headers = await connection.ask(request)
        except BaseException:
            await self._release(connection)
            raise
        body = _Body(connection, self._release)
        return httpcore.Response(status, headers=headers, content=body, extensions={"network_stream": body})

    async def aclose(self) -> None:
        """Close every connection, even under running exchanges."""
        connections, self._idle = [*self._idle, *self._busy], []
        for connection in connections:
            await connection.aclose()

    async def _usable(self) -> _Connection | None:
        """Return a kept connection that the server has not closed; close those that are of no use."""
        now, idle = trio.current_time(), self._idle
        self._idle = [one for one in idle if one.is_usable(now)]
        for connection in [one for one in idle if one not in self._idle]:
            await connection.aclose()
        return self._idle.pop() if self._idle else None

    async def _connected(self, request: httpcore.Request) -> _Connection:
        await _note(request, "connection.connect_tcp.started")
        try:
            with trio.fail_after(self._connect_seconds):
                plain = await trio.open_tcp_stream(self._host, self._port)
            return await self._secured(plain)
        except trio.TooSlowError as error:
            raise httpcore.ConnectTimeout from error
        except (OSError, trio.BrokenResourceError) as error:
            raise httpcore.ConnectError(str(error)) from error

    async def _secured(self, plain: trio.SocketStream) -> _Connection:
        if self._context is None:
            return _Connection(plain, plain)
        stream = trio.SSLStream(plain, self._context, server_hostname=self._host, https_compatible=True)
        connection = _Connection(stream, plain)
        try:
            with trio.fail_after(self._connect_seconds):
                await stream.do_handshake()
        except BaseException:
            await connection.aclose()
            raise
        return connection

    async def _release(self, connection: _Connection) -> None:
        """Keep a connection whose exchange is complete, close any other."""
        self._busy.discard(connection)
        if connection.start_next():
            connection.expires_at = trio.current_time() + self._keepalive_seconds
            self._idle.append(connection)
        else:
            await connection.aclose()


class _Connection:
    """One connection and the state of its exchange."""

    def __init__(self, stream: Network, plain: trio.SocketStream) -> None:
        self._stream = stream
        self._plain = plain
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self.expires_at = 0.0

    def is_usable(self, now: float) -> bool:
        """Return whether an idle connection may be used: what is readable now is its end, or was not asked for."""
        return now < self.expires_at and not self._plain.socket.is_readable()

    def start_next(self) -> bool:
        """Return whether the exchange is complete and the connection may be used again; prepare it for the next one."""
        if not (self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE) or self._h11.trailing_data[0]:
            return False  # trailing bytes would be taken for the next answer
        self._h11.start_next_cycle()
        return True

    async def ask(self, request: httpcore.Request) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Send a request in one piece; return the status and the headers of the answer."""
        try:
            data = self._sent(h11.Request(method=request.method, target=request.url.target, headers=request.headers))
            async for part in request.stream:  # type: ignore[union-attr]
                data += self._sent(h11.Data(data=part))
            data += self._sent(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(str(error)) from error
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # a server may answer before it has read everything
        except trio.ClosedResourceError as error:
            raise httpcore.WriteError from error
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event.status_code, event.headers.raw_items()

    async def next_part(self) -> bytes | None:
        """Return the next part of the body; None at its end."""
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    def _sent(self, event: h11.Event) -> bytes:
        return self._h11.send(event) or b""

    async def _next(self) -> Any:
        """Return the next event of the parser."""
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                data = await self._stream.receive_some(_READ)
                if not data and self._h11.their_state is h11.SEND_RESPONSE:
                    raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
                self._h11.receive_data(bytes(data))
        except h11.RemoteProtocolError as error:
            raise httpcore.RemoteProtocolError(str(error)) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.ReadError(str(error)) from error
        return event

    async def aclose(self) -> None:
        """Close the connection immediately."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
            await trio.aclose_forcefully(self._stream)


class _Body:
    """The body of an answer, part by part."""

    def __init__(self, connection: _Connection, release: Callable[[_Connection], Awaitable[None]]) -> None:
        self._connection = connection
        self._release: Callable[[_Connection], Awaitable[None]] | None = release

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        part = await self._connection.next_part()
        if part is None:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        """Release the connection, which is closed unless the body was read to its end; idempotent."""
        release, self._release = self._release, None
        if release is not None:
            await release(self._connection)


async def _note(request: httpcore.Request, name: str) -> None:
    """Call the trace hook of a request, with the library's name of an event."""
    if (note := request.extensions.get("trace")) is not None:
        await note(name, {"request": request})
