"""ReusedConnection: the exchanges after the first one on a connection of the HTTP library.

The library's own code around its parser, with its locks, traces and generators, took as long as the parser. And most
exchanges need no parser (``usual.py``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import httpcore
import trio

from certctrl.net.usual import usual_head, usual_request

_READ_SIZE = 64 * 1024
_HEAD_LIMIT = 100 * 1024
"""Bytes of an answer's head, as in the library."""


class ReusedConnection(httpcore.AsyncConnectionInterface):
    """A connection after its first exchange."""

    def __init__(
        self, opened: httpcore.AsyncConnectionInterface, stream: httpcore.AsyncNetworkStream, keepalive_seconds: float
    ) -> None:
        self.used_at = trio.current_time()
        self._opened = opened
        self._stream = stream
        self._keepalive_seconds = keepalive_seconds
        self._is_free = True
        """Whether the last answer was read to its end, and nothing follows it, which would be taken for the next one.

        False if the server did not read a request to its end: it may take the rest of a body for the next one.
        """

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request, and return the response, whose body is still to be read."""
        self._is_free, is_whole, parser = False, True, None
        sent = b"".join([chunk async for chunk in request.stream])  # type: ignore[union-attr]
        data = usual_request(request.method, request.url.target, request.headers, sent)
        if data is None:
            parser, data = _parser_after(request, sent)
        try:
            await self._stream.write(data)
        except httpcore.WriteError:  # a server may refuse a request before it has read everything
            is_whole = False
        received = await self._stream.read(_READ_SIZE)
        if parser is None and (head := usual_head(received)) is not None:
            rest = _UsualBody(self._stream, received[head.size :], head.length)
            return self._response(head.status, head.headers, _Body(self, rest, is_whole))
        events = _Events(self._stream, parser or _parser_after(request, sent)[0], received)
        while isinstance(event := await events.next(), h11.InformationalResponse):
            pass
        if not isinstance(event, h11.Response):
            raise httpcore.RemoteProtocolError("the server sent something else than a response")
        return self._response(event.status_code, event.headers.raw_items(), _Body(self, events, is_whole))

    def _response(self, status: int, headers: list[tuple[bytes, bytes]], body: _Body) -> httpcore.Response:
        extensions = {"network_stream": self._stream}
        return httpcore.Response(status=status, headers=headers, content=body, extensions=extensions)

    def answered(self, *, is_free: bool) -> None:
        """Note that an answer was read to its end, and whether another exchange may follow."""
        self._is_free = is_free

    async def aclose(self) -> None:
        await self._opened.aclose()

    def info(self) -> str:
        return self._opened.info()

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return self._opened.can_handle_request(origin)

    def is_available(self) -> bool:
        return self.is_idle()

    def is_idle(self) -> bool:
        return self._is_free and not self._opened.is_closed()

    def is_closed(self) -> bool:
        return self._opened.is_closed()

    def has_expired(self) -> bool:
        if trio.current_time() > self.used_at + self._keepalive_seconds:
            return True
        return bool(self._stream.get_extra_info("is_readable"))  # an idle one has nothing to read but its end


class _UsualBody:
    """The body of an answer whose length is known."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, received: bytes, length: int) -> None:
        self._stream = stream
        self._received = received
        self._left = length

    @property
    def is_free(self) -> bool:
        """Whether the connection can be used for another exchange, after the end."""
        return not self._received

    async def piece(self) -> bytes:
        """Return the next bytes; empty at the end."""
        if not self._left:
            return b""
        data = self._received or await self._stream.read(_READ_SIZE)
        if not data:
            raise httpcore.RemoteProtocolError(f"peer closed connection, {self._left} bytes of the body are missing")
        found, self._received = data[: self._left], data[self._left :]
        self._left -= len(found)
        return found


class _Events:
    """An answer as h11 parses it."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, parser: h11.Connection, received: bytes) -> None:
        self._stream = stream
        self._parser = parser
        self._receive(received)

    async def next(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next part of the answer."""
        while (event := self._parsed()) is h11.NEED_DATA:
            self._receive(await self._stream.read(_READ_SIZE))
        return event  # type: ignore[return-value]  # it is not NEED_DATA

    def _receive(self, data: bytes) -> None:
        if not data and self._parser.their_state is h11.SEND_RESPONSE:
            raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
        self._parser.receive_data(data)

    def _parsed(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise httpcore.RemoteProtocolError(error) from error

    @property
    def is_free(self) -> bool:
        """Whether the connection can be used for another exchange, after the end."""
        states = {self._parser.our_state, self._parser.their_state}
        return states == {h11.DONE} and not any(self._parser.trailing_data)

    async def piece(self) -> bytes:
        """Return the next bytes of the body; empty at the end."""
        event = await self.next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""


class _Body:
    """The body of a response, in pieces."""

    def __init__(self, connection: ReusedConnection, rest: _UsualBody | _Events, is_whole: bool) -> None:
        """``is_whole``: whether the server could read the whole request."""
        self._connection = connection
        self._rest = rest
        self._is_whole = is_whole

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self._rest.piece():
            return piece
        self._connection.answered(is_free=self._is_whole and self._rest.is_free)
        raise StopAsyncIteration


def _parser_after(request: httpcore.Request, body: bytes) -> tuple[h11.Connection, bytes]:
    """Return a parser for the answer to a request, and the bytes of the request. Raises LocalProtocolError."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT)
    try:
        asked = h11.Request(method=request.method, target=request.url.target, headers=request.headers)
        events = [asked, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        return parser, b"".join([parser.send(event) or b"" for event in events])
    except h11.LocalProtocolError as error:
        raise httpcore.LocalProtocolError(error) from error
