"""A TLS server on Trio, built on Hypercorn's HTTP/1.1 parts.

Hypercorn parses and writes HTTP; this module ends connections, to fix these problems, each covered by a test:

* the socket of a client that left while idle stayed open until the keep-alive timeout (two minutes here, thousands of
  dead sockets); that of a client that left during a paused request stayed open forever;
* an exception in one connection ended all connections;
* sending to a client that does not read could not be cancelled, so the server could not stop;
* any client could switch its connection to HTTP/2, with which the plane is not tested;
* one client could open connections until the plane had no descriptors left.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import ssl
from functools import partial
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from certctrl.errors import TransportError
from certctrl.plane.http.authentication import CONNECTION
from certctrl.plane.http.middleware import App
from certctrl.plane.limits import UnauthenticatedConnections, caller_of

KEEP_ALIVE = 120.0
"""Seconds an idle connection stays open: longer than agents' poll intervals, to avoid new handshakes."""
UNAUTHENTICATED_PER_ADDRESS = 1000
"""Most unauthenticated connections of one address; after a restart, all hosts behind one NAT connect together."""
UNAUTHENTICATED_TOTAL = 10_000
"""Most unauthenticated connections of all addresses; both limits are lower if fewer files may be open."""
_READ_TIMEOUT = 150
_GRACE_SECONDS = 3.0
_BACKLOG = 4096
_MAX_BUFFERED = 64 * 1024
_CONTINUE = b"HTTP/1.1 100 "
_SEND_SECONDS = 20.0
"""How long sending may block before the connection is dropped."""

log = logging.getLogger("certctrl.Plane.server")


class Server:
    """One listening socket and its connections."""

    def __init__(self, app: App, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Take over a socket of ``listen``; new certificates may be loaded into ``context`` at any time."""
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]
        self._config = _config()
        self._context = WorkerContext(None)
        self._sock = sock
        self._tls = context
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        files = 2 * UNAUTHENTICATED_TOTAL if files == resource.RLIM_INFINITY else files
        self._unauthenticated = UnauthenticatedConnections(
            min(UNAUTHENTICATED_PER_ADDRESS, files // 4), min(UNAUTHENTICATED_TOTAL, files // 2), trio.current_time
        )

    async def serve(self, *, stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``stop``; then stop accepting, let requests finish, and cut the rest after a grace period."""
        sock = trio.socket.from_stdlib_socket(self._sock)
        listener = trio.SSLListener(trio.SocketListener(sock), self._tls, https_compatible=True)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, self._handle, [listener], handler_nursery=connections)
                )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await self._context.terminated.set()  # idle connections close now, busy ones after their response
            connections.cancel_scope.deadline = trio.current_time() + _GRACE_SECONDS

    async def _handle(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        scope = trio.CancelScope()
        connection = self._unauthenticated.admit(caller_of(_peer(stream)), scope.cancel)
        if connection is None:  # before the handshake, which is expensive
            await trio.aclose_forcefully(stream)
            return
        try:
            state = ConnectionState({CONNECTION: connection})
            with scope:
                await _Connection(self._app, self._config, self._context, state, stream)
        except Exception:  # isolate failing connections
            log.exception("a connection failed")
        finally:
            connection.leave()


def _peer(stream: trio.SSLStream[trio.SocketStream]) -> str:
    try:
        return str(stream.transport_stream.socket.getpeername()[0])
    except OSError:  # gone already
        return ""


class _Connection(TCPServer):
    """Hypercorn's connection with its own endings, HTTP/1.1 only, which sends each response in one write.

    One TLS record and one system call instead of two or three save a third of the work of answering thousands of held
    polls.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._reading = trio.CancelScope()
        self._unsent = bytearray()
        self._left = False
        """Whether reading has ended."""

    async def protocol_send(self, event: Event) -> None:
        """Send within a time limit; a connection that can no longer send also stops reading."""
        if isinstance(event, RawData):
            self._unsent += event.data
            if event.data and len(self._unsent) < _MAX_BUFFERED and not self._unsent.startswith(_CONTINUE):
                return  # sent with the end of the response (an empty event), so that head and body leave together
            await self._flush()
            return
        await self._flush()
        if isinstance(event, Updated) and event.idle and self._left:
            return  # the client has left: there is no next request
        await super().protocol_send(event)
        if isinstance(event, Closed):
            self._reading.cancel()

    async def _flush(self) -> None:
        async with self.send_lock:
            data, self._unsent = bytes(self._unsent), bytearray()
            if not data:
                return
            with trio.move_on_after(_SEND_SECONDS, shield=True):  # a partial response would be worse than a slow stop
                try:
                    await self.stream.send_all(data)
                    return
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
        self._reading.cancel()
        await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        # Bypass the wrapper that would switch protocols.
        self.protocol = self.protocol.protocol  # type: ignore[assignment]
        with self._reading:
            with contextlib.suppress(H2CProtocolRequiredError, H2ProtocolAssumedError):
                await super()._read_data()
        self._left = True
        await self.protocol.handle(Closed())
        await self.idle_task.stop()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises TransportError if it cannot listen."""
    fix = "choose another --listen HOST:PORT"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        sock = socket.socket(family, kind)
    except OSError as error:
        raise TransportError(f"cannot listen on {host}: {error.strerror or error}", fix=fix) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" listens on IPv4, too
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise TransportError(f"cannot listen on {host}:{port}: {error.strerror or error}", fix=fix) from None
    return sock


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_date_header = False  # the plane dates responses by its own clock
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE
    config.keep_alive_max_requests = 10_000
    config.read_timeout = _READ_TIMEOUT
    config.ssl_handshake_timeout = 10.0
    return config
