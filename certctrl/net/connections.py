"""KeptConnections: the HTTP library's connections without its pool.

The library's pool examines all its connections, under locks, for each request. And a request that is cancelled at the
wrong moment leaves a connection in it that is neither idle nor closed, forever. Here, an exchange owns its connection
until the answer has been read. The connection is used again if it is idle then, and closed otherwise, whatever happened.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpcore
import httpx
import trio

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
        proxy: httpx.Proxy | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """``keepalive_seconds``: how long an idle connection is kept; ``backend``: the network, in tests."""
        self.keepalive_seconds = keepalive_seconds
        self._opener = httpcore.AsyncConnectionPool(
            ssl_context=context,
            proxy=None if proxy is None else _proxy(proxy),
            keepalive_expiry=keepalive_seconds,
            network_backend=backend or _Backend(),
        )
        """Only creates connections; it is the library's interface to those through a proxy."""
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
                self._idle.append(connection)
                return found
        except BaseException:
            await close(connection)
            raise
        finally:
            self._busy.discard(connection)
        await close(connection)
        return found

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


async def close(connection: Connection) -> None:
    """Close a connection in any state, also while being cancelled."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
        await connection.aclose()


def _proxy(proxy: httpx.Proxy) -> httpcore.Proxy:
    url = proxy.url
    where = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Proxy(where, auth=proxy.raw_auth, headers=proxy.headers.raw)


class _Backend(httpcore.TrioBackend):
    """The library's network backend, except that a cancelled TLS handshake closes its socket."""

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        stream = await super().connect_tcp(*args, **kwargs)
        handshake = stream.start_tls

        async def start_tls(*args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
            try:
                return await handshake(*args, **kwargs)
            except BaseException:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                    await stream.aclose()
                raise

        stream.start_tls = start_tls  # type: ignore[method-assign]
        return stream


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
