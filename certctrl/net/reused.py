"""ReusedConnection: the exchanges after the first one on a connection of the HTTP library, with its parser.

The library's own code around the parser, with its locks, traces and generators, took as long as the parser.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import httpcore
import trio

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
        self._is_whole = True
        """Whether the server could read all requests; otherwise it may take the rest of a body for the next one."""
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request, and return the response, whose body is still to be read."""
        try:
            data = [self._parser.send(event) or b"" for event in [event async for event in _events(request)]]
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(error) from error
        try:
            await self._stream.write(b"".join(data))
        except httpcore.WriteError:  # a server may refuse a request before it has read everything
            self._is_whole = False
        while isinstance(event := await self.next_event(), h11.InformationalResponse):
            pass
        if not isinstance(event, h11.Response):
            raise httpcore.RemoteProtocolError("the server sent something else than a response")
        return httpcore.Response(
            status=event.status_code,
            headers=event.headers.raw_items(),
            content=_Body(self),
            extensions={"network_stream": self._stream},
        )

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next part of the answer."""
        while (event := self._parsed()) is h11.NEED_DATA:
            data = await self._stream.read(_READ_SIZE)
            if not data and self._parser.their_state is h11.SEND_RESPONSE:
                raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
            self._parser.receive_data(data)
        if {self._parser.our_state, self._parser.their_state} == {h11.DONE} and not any(self._parser.trailing_data):
            self._parser.start_next_cycle()  # what follows an answer would be taken for the next one
        return event  # type: ignore[return-value]  # it is not NEED_DATA

    def _parsed(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise httpcore.RemoteProtocolError(error) from error

    async def aclose(self) -> None:
        await self._opened.aclose()

    def info(self) -> str:
        return self._opened.info()

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return self._opened.can_handle_request(origin)

    def is_available(self) -> bool:
        return self.is_idle()

    def is_idle(self) -> bool:
        return bool(self._is_whole and self._parser.our_state is h11.IDLE) and not self._opened.is_closed()

    def is_closed(self) -> bool:
        return self._opened.is_closed()

    def has_expired(self) -> bool:
        if trio.current_time() > self.used_at + self._keepalive_seconds:
            return True
        return bool(self._stream.get_extra_info("is_readable"))  # an idle one has nothing to read but its end


class _Body:
    """The body of a response, in pieces."""

    def __init__(self, connection: ReusedConnection) -> None:
        self._connection = connection

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        event = await self._connection.next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        raise StopAsyncIteration


async def _events(request: httpcore.Request) -> AsyncIterator[h11.Event]:
    yield h11.Request(method=request.method, target=request.url.target, headers=request.headers)
    async for chunk in request.stream:  # type: ignore[union-attr]
        yield h11.Data(data=chunk)
    yield h11.EndOfMessage()
