"""A server on Trio: listens, admits connections, and ends them in order."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import ssl
from collections import Counter
from functools import partial
from math import inf

import trio

from certctrl.errors import TransportError
from certctrl.net.tls_stream import TlsStream
from certctrl.plane.http.authentication import CONNECTION
from certctrl.plane.http.connection import HEAD_SECONDS, LAST_SECONDS, Connection
from certctrl.plane.http.middleware import App
from certctrl.plane.http.plain_stream import PlainStream
from certctrl.plane.http.proxies import Address, ForwardedFor, Proxies, ProxyHeaderError, read_header
from certctrl.plane.http.shared_port import take_over
from certctrl.plane.limits import UnauthenticatedConnections, caller_of, plain_address

UNAUTHENTICATED_PER_ADDRESS = 1000
"""Most unauthenticated connections of one address; after a restart, all hosts behind one NAT connect together."""
UNAUTHENTICATED_TOTAL = 10_000
"""Most unauthenticated connections of all addresses; both limits are lower if fewer files may be open."""
CONNECTIONS = 60_000
"""Most connections, including authenticated ones; fewer if fewer files may be open."""
NO_PROXIES = Proxies()
_OTHER_FILES = 256
_LOG_SECONDS = 60.0
_GRACE_SECONDS = 8.0
"""Seconds for requests to finish at a stop: thousands of held polls are answered one after the other."""
_BACKLOG = 4096

log = logging.getLogger("certctrl.Plane.server")


class Server:
    """One listening socket and its connections."""

    def __init__(
        self,
        app: App,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        *,
        proxies: Proxies = NO_PROXIES,
        stays_open: bool = False,
    ) -> None:
        """Take over a socket of ``listen``; new certificates may be loaded into ``context`` at any time.

        Without ``context``, connections are without TLS. ``stays_open``: another process keeps the socket open, so that
        connections that this one does not accept wait for the next one.
        """
        self._stays_open = stays_open
        self._proxies = proxies
        self._app: App = ForwardedFor(app, proxies) if proxies.http else app
        self._sock = sock
        self._tls = context
        self._connections: set[Connection] = set()
        self._stopping = False
        self._finishing: set[Connection] = set()
        """Connections from before the stop that have not ended."""
        self._all_finished = trio.Event()
        self._refusals = _Refusals()
        self.refused = self._refusals.totals
        """Refused connections by reason: ``all``, ``proxy``, ``unauthenticated``."""
        self.connections = 0
        """Connections that are open now."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        files = 2 * CONNECTIONS if files == resource.RLIM_INFINITY else files
        self._most = min(CONNECTIONS, max(files - _OTHER_FILES, files // 2))
        # Without TLS, no client authenticates: both servers together must leave files to the database.
        share = files // 8 if context is None else files // 2
        self._unauthenticated = UnauthenticatedConnections(
            min(UNAUTHENTICATED_PER_ADDRESS, share // 2), min(UNAUTHENTICATED_TOTAL, share), trio.current_time
        )

    async def serve(self, *, stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``stop``; then let requests finish, and cut the rest after a grace period.

        New connections are accepted, for one request each, as long as requests from before the stop run: after that,
        nothing answers at this address unless another process keeps the socket open or shares the port.
        """
        listener = _Listener(trio.socket.from_stdlib_socket(self._sock))
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, self._handle, [listener], handler_nursery=connections)
                )
                task_status.started()
                await stop.wait()
                connections.cancel_scope.deadline = trio.current_time() + _GRACE_SECONDS
                self._stop_connections()
                if not self._stays_open:
                    with trio.move_on_after(_GRACE_SECONDS - LAST_SECONDS):
                        await self._all_finished.wait()
                accepting.cancel_scope.cancel()
            if not self._stays_open:
                self._accept_waiting(connections)
            listener.socket.close()

    def _accept_waiting(self, connections: trio.Nursery) -> None:
        """Accept the connections that wait now."""
        with contextlib.suppress(OSError):  # none is left
            while True:
                sock, _ = self._sock.accept()
                connections.start_soon(self._handle, trio.SocketStream(trio.socket.from_stdlib_socket(sock)))

    def _stop_connections(self) -> None:
        self._stopping = True
        self._finishing = set(self._connections)
        if not self._finishing:
            self._all_finished.set()
        for connection in tuple(self._finishing):
            connection.stop()

    async def _handle(self, stream: trio.SocketStream) -> None:
        """Serve a connection, or refuse it before the handshake, which is expensive."""
        self.connections += 1
        try:
            if self.connections > self._most:
                self._refusals.note("all", f"{self._most} connections are open")
            elif (client := await self._client(stream)) is not None:
                await self._serve(stream, client)
        except Exception:  # isolate failing connections
            log.exception("a connection failed")
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)

    async def _client(self, stream: trio.SocketStream) -> Address | None:
        """Return the client's address and port, from the PROXY header of a listed proxy; None to refuse it."""
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # already gone
            return None
        peer = (plain_address(host), port)
        if not self._proxies.sends_header(peer[0]):
            return peer
        try:
            with trio.fail_after(HEAD_SECONDS):
                return await read_header(stream) or peer
        except (ProxyHeaderError, trio.TooSlowError) as error:
            what = str(error) if isinstance(error, ProxyHeaderError) else "no PROXY header arrived in time"
            self._refusals.note("proxy", f"{what}; its proxy {peer[0]} is listed in --proxy")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return None

    async def _serve(self, stream: trio.SocketStream, client: Address) -> None:
        scope = trio.CancelScope()
        # The connections of an HTTP proxy are those of many clients.
        counted = f"{client[0]}:{client[1]}" if self._proxies.forwards(client[0]) else caller_of(client[0])
        admitted = self._unauthenticated.admit(counted, scope.cancel)
        if admitted is None:
            self._refusals.note("unauthenticated", f"too many unauthenticated ones, the last of {client[0]}")
            return
        try:
            opened = PlainStream(stream) if self._tls is None else TlsStream(stream, self._tls)
            with scope, contextlib.closing(opened):
                await self._converse(Connection(self._app, opened, client, {CONNECTION: admitted}))
        except trio.BrokenResourceError:
            pass
        finally:
            admitted.leave()

    async def _converse(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._stopping:
            connection.stop()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._finishing.discard(connection)
            if self._stopping and not self._finishing:
                self._all_finished.set()


class _Listener(trio.abc.Listener[trio.SocketStream]):
    """A listener whose socket stays open until the last connections are accepted."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.socket = sock
        self._listener = trio.SocketListener(sock)

    async def accept(self) -> trio.SocketStream:
        """Accept a connection."""
        return await self._listener.accept()

    async def aclose(self) -> None:
        """Leave the socket open."""
        await trio.lowlevel.checkpoint()


class _Refusals:
    """Refused connections in the log: at most one line a minute per reason."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        """Reason → number since the start."""
        self._counts: dict[str, tuple[int, float]] = {}
        """Reason → (number since the last line, time of that line)."""

    def note(self, reason: str, what: str) -> None:
        """Count a refused connection, and log it if the last line is a minute old."""
        now = trio.current_time()
        count, since = self._counts.get(reason, (0, -inf))
        count += 1
        self.totals[reason] += 1
        if now - since >= _LOG_SECONDS:
            log.warning("connections refused: %d; %s", count, what)
            count, since = 0, now
        self._counts[reason] = (count, since)


def listen(host: str, port: int, option: str = "--listen", *, share: bool = False) -> socket.socket:
    """Return a listening socket; raises TransportError if it cannot listen.

    ``share``: with other processes that share the port; new connections then go to this one.
    """
    fix = f"choose another {option} HOST:PORT"
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
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        if share:
            take_over(sock)
    except OSError as error:
        sock.close()
        if isinstance(error, PermissionError):
            fix = f"give the control plane CAP_NET_BIND_SERVICE, or {fix}"
        elif share:
            fix = f"restart the process there with --reuse-port, too, or {fix}"
        raise TransportError(f"cannot listen on {host}:{port}: {error.strerror or error}", fix=fix) from None
    return sock
