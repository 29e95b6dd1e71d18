"""KeptConnections: the HTTP library's connections without its pool.

The library's pool examines all its connections, under locks, for each request. And a request that is cancelled at the
wrong moment leaves a connection in it that is neither idle nor closed, forever. Here, an exchange owns its connection
until the answer has been read. The connection is used again if it is idle then, and closed otherwise, also after an error
or a cancellation.

The library opens connections, which includes TLS and proxies, and makes the first exchange. The others on the same
connection are made here with its parser (`reused.py`): its locks and traces cost as much as the parser.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpcore
import trio

from certctrl.net.reused import ReusedConnection
from certctrl.net.tls_stream import TlsStream

BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)
"""The library's exceptions for a connection that could not be opened, or that broke."""
_CLOSE_SECONDS = 1.0

Connection = httpcore.AsyncConnectionInterface
T = TypeVar("T")


class Progress:
    """Progress of one exchange."""

    def __init__(self) -> None:
        self.is_new = False
        """Whether it opened its connection."""
        self.sent = False
        """Whether the server may have received something of the request."""

    def on_new(self, request: httpcore.Request) -> None:
        """Follow a request on a new connection, by the library's trace hook; its calls cost a fifth of an exchange."""
        self.is_new = True
        request.extensions["trace"] = self._note

    async def _note(self, name: str, info: Mapping[str, Any]) -> None:
        if name == "http11.send_request_headers.started":
            self.sent = info["request"].method != b"CONNECT"


class KeptConnections:
    """Connections to any number of origins; the caller bounds how many exchanges run at a time."""

    def __init__(
        self,
        *,
        context: ssl.SSLContext | None,
        keepalive_seconds: float,
        proxy: httpcore.Proxy | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """``context`` None: without TLS; ``keepalive_seconds``: how long an idle connection is kept; ``backend``: the network, in tests."""
        self.keepalive_seconds = keepalive_seconds
        self._has_tls = context is not None
        self._opener = httpcore.AsyncConnectionPool(
            ssl_context=context,
            proxy=proxy,
            keepalive_expiry=keepalive_seconds,
            network_backend=backend or TcpBackend(),
        )
        """Only creates connections; it is the library's interface to those through a proxy."""
        self._is_direct = proxy is None
        self._idle: list[Connection] = []
        """The one that was used last is the last."""
        self._busy: set[Connection] = set()

    def __repr__(self) -> str:
        return f"KeptConnections({len(self._idle)} idle, {len(self._busy)} busy)"

    @property
    def open(self) -> list[Connection]:
        """The connections that are idle or in use."""
        return [*self._idle, *self._busy]

    def new(self, origin: httpcore.Origin) -> Connection:
        """Return a connection that is not kept: the caller closes it."""
        if origin.scheme == b"https" and not self._has_tls:
            raise ValueError("https needs a context: the library's own would trust other CAs")
        return self._opener.create_connection(origin)

    async def exchange(
        self, request: httpcore.Request, read: Callable[[httpcore.Response], Awaitable[T]], progress: Progress
    ) -> T:
        """Send one request and return what ``read`` makes of its response.

        The connection is used again only if ``read`` has read everything.
        """
        origin = request.url.origin
        connection = await self._kept(origin)
        if connection is None:
            progress.on_new(request)
            connection = self.new(origin)
        else:
            progress.sent = True
        self._busy.add(connection)
        try:
            response = await connection.handle_async_request(request)
            found = await read(response)
            await response.aclose()
            if connection.is_idle():
                self._idle.append(self._reused(connection, response))
                return found
        except BaseException:
            await close(connection)
            raise
        finally:
            self._busy.discard(connection)
        await close(connection)
        return found

    def _reused(self, connection: Connection, response: httpcore.Response) -> Connection:
        """Return an idle connection for its next exchange; a proxy may need more than the request."""
        if isinstance(connection, ReusedConnection):
            connection.used_at = trio.current_time()
        elif self._is_direct:
            return ReusedConnection(connection, response.extensions["network_stream"], self.keepalive_seconds)
        return connection

    async def aclose(self) -> None:
        """Close all connections, even those in use."""
        connections, self._idle = self.open, []
        for connection in connections:
            await close(connection)

    async def _kept(self, origin: httpcore.Origin) -> Connection | None:
        """Return the idle connection to an origin that was used last, after closing those that have expired."""
        expired = [one for one in self._idle if one.has_expired()]
        usable = self._idle = [one for one in self._idle if one not in expired]
        found = next((one for one in reversed(usable) if one.can_handle_request(origin)), None)
        if found is not None:
            usable.remove(found)
        for connection in expired:
            await close(connection)
        return found


def connect_proxy(url: str, login: tuple[str, str] | None) -> httpcore.Proxy:
    """Return the CONNECT proxy at ``url``, ``http://HOST:PORT``, with the user and password that it asks for, if any."""
    return httpcore.Proxy(url, auth=None if login is None else (login[0].encode(), login[1].encode()))


async def close(connection: Connection) -> None:
    """Close a connection in any state, also while being cancelled."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
        await connection.aclose()


class TcpBackend(httpcore.AsyncNetworkBackend):
    """TCP by Trio. Unlike the library's own, it closes the socket of a cancelled TLS handshake.

    It has no time limits for reading and writing, since each exchange has one; they cost a cancel scope per call. Host
    names, which are ASCII, become bytes: Python's codec for international names would be loaded for those of ``str``.
    """

    async def connect_tcp(  # the library passes the time limits
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                return _Stream(await trio.open_tcp_stream(host.encode("ascii"), port, local_address=local_address))
        except trio.TooSlowError as error:
            raise httpcore.ConnectTimeout(error) from error
        except OSError as error:
            raise httpcore.ConnectError(error) from error


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: trio.SocketStream | TlsStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.ReadError(error) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if not buffer:
            return
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.WriteError(error) from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        if not isinstance(self._stream, trio.SocketStream) or not server_hostname:
            raise httpcore.ConnectError("no TLS within TLS, nor without the server's name")
        opened: TlsStream | trio.SocketStream = self._stream
        try:
            secured = opened = TlsStream(self._stream, ssl_context, server_hostname=server_hostname.encode("ascii"))
            with trio.fail_after(math.inf if timeout is None else timeout):
                await secured.do_handshake()
        except BaseException as error:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                await opened.aclose()
            if isinstance(error, trio.TooSlowError):
                raise httpcore.ConnectTimeout(error) from error
            if isinstance(error, trio.BrokenResourceError):
                raise httpcore.ConnectError(error) from error
            raise
        return _Stream(secured)

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        return self._stream.is_readable() if isinstance(self._stream, TlsStream) else self._stream.socket.is_readable()


class RequestBody:
    """The body of a request, in one piece.

    The library's own is an async generator, which it abandons if the server answers or the request is cancelled before
    everything is sent.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> RequestBody:
        return RequestBody(self._content)  # an attempt that is repeated reads it again

    async def __anext__(self) -> bytes:
        content, self._content = self._content, b""
        if not content:
            raise StopAsyncIteration
        return content

    def __repr__(self) -> str:
        return f"RequestBody({len(self._content)} bytes)"
