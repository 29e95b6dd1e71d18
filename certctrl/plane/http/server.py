"""A TLS server on Trio: listens, admits connections, and ends them in order."""

from __future__ import annotations

import logging
import resource
import socket
import ssl
from functools import partial

import trio

from certctrl.errors import TransportError
from certctrl.plane.http.authentication import CONNECTION
from certctrl.plane.http.connection import Address, Connection
from certctrl.plane.http.middleware import App
from certctrl.plane.limits import UnauthenticatedConnections, caller_of

UNAUTHENTICATED_PER_ADDRESS = 1000
"""Most unauthenticated connections of one address; after a restart, all hosts behind one NAT connect together."""
UNAUTHENTICATED_TOTAL = 10_000
"""Most unauthenticated connections of all addresses; both limits are lower if fewer files may be open."""
_GRACE_SECONDS = 3.0
_BACKLOG = 4096

log = logging.getLogger("certctrl.Plane.server")


class Server:
    """One listening socket and its connections."""

    def __init__(self, app: App, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Take over a socket of ``listen``; new certificates may be loaded into ``context`` at any time."""
        self._app = app
        self._sock = sock
        self._tls = context
        self._connections: set[Connection] = set()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        files = 2 * UNAUTHENTICATED_TOTAL if files == resource.RLIM_INFINITY else files
        self._unauthenticated = UnauthenticatedConnections(
            min(UNAUTHENTICATED_PER_ADDRESS, files // 4), min(UNAUTHENTICATED_TOTAL, files // 2), trio.current_time
        )

    async def serve(self, *, stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``stop``; then stop accepting, let requests finish, and cut the rest after a grace period."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._sock))
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, self._handle, [listener], handler_nursery=connections)
                )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            for connection in tuple(self._connections):
                connection.stop()
            connections.cancel_scope.deadline = trio.current_time() + _GRACE_SECONDS

    async def _handle(self, stream: trio.SocketStream) -> None:
        scope, client = trio.CancelScope(), _client(stream)
        admitted = self._unauthenticated.admit(caller_of(client[0]), scope.cancel)
        if admitted is None:  # before the handshake, which is expensive
            await trio.aclose_forcefully(stream)
            return
        secure = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        connection = Connection(self._app, secure, client, {CONNECTION: admitted})
        self._connections.add(connection)
        try:
            with scope:
                await connection.run()
        except Exception:  # isolate failing connections
            log.exception("a connection failed")
        finally:
            self._connections.discard(connection)
            admitted.leave()
            await trio.aclose_forcefully(secure)


def _client(stream: trio.SocketStream) -> Address:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:  # gone already
        return "", 0
    return host, port


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
