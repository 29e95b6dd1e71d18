"""serve_plane: a plane on HTTPS (Hypercorn's Trio worker), and its orderly end.

Stopping is cancelling. The server itself runs shielded: it is told to stop, the plane answers every held poll (204,
``Connection: close``), connections close, and only what is left after a few seconds is cut.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve

from certctrl.errors import CertctrlError, TransportError
from certctrl.plane.app import make_app
from certctrl.plane.core import Plane
from certctrl.plane.edge import App
from certctrl.plane.faults import Faults
from certctrl.plane.files import DataDir, write_file
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.tls import ServerCertificate, host_for_url, names_of

_KEEP_ALIVE = 120.0
"""Seconds an idle connection is kept: longer than agents' poll intervals, so that they need no new handshakes."""
_READ_TIMEOUT = 150
_GRACE = 3.0
_LAST_WORD = 10.0
_BACKLOG = 4096
_UNACKED_MS = 20_000
"""The kernel drops a peer that takes nothing off us for this long: sending cannot hang for ever."""
_CERTIFICATE_CHECK = 3600.0

log = logging.getLogger("certctrl.Plane")


@attrs.frozen
class PlaneAddress:
    """Where a plane listens and what its clients need."""

    url: str
    ca_file: Path
    """PEM of the root that signed the plane's certificate, and every certificate it issues."""
    operator_key_file: Path


async def serve_plane(
    data: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    hostnames: Sequence[str] = (),
    settings: PlaneSettings | None = None,
    faults: Faults | None = None,
    task_status: trio.TaskStatus[PlaneAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the plane of a data directory until cancelled; ``started`` gives its address.

    ``hostnames`` go into the plane's certificate, the first of them into its URL. Raises TransportError when it
    cannot listen, and what ``Plane.open`` raises.
    """
    with Plane.open(data, settings=settings, offload=trio.to_thread.run_sync) as plane:
        assert plane.data is not None
        certificate = ServerCertificate(plane, plane.data, names_of(host, hostnames))
        await certificate.load()
        sock = _listen(host, port)
        url = f"https://{host_for_url(host, hostnames)}:{sock.getsockname()[1]}"
        write_file(plane.data.address, f"{url}\n".encode(), mode=0o600)
        async with trio.open_nursery() as nursery:
            await nursery.start(_run_server, plane, make_app(plane, faults=faults), _Config(sock, certificate.context))
            nursery.start_soon(plane.keep_house)
            nursery.start_soon(_renew_forever, certificate)
            log.info("control plane at %s", url)
            task_status.started(_address(url, plane.data))


async def _run_server(
    plane: Plane, app: App, config: _Config, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run Hypercorn until this task is cancelled, then let it finish what it is doing."""
    stop = trio.Event()
    scope = trio.CancelScope(shield=True)

    async def shielded(task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            await serve(app, config, shutdown_trigger=stop.wait, task_status=task_status)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(shielded)
            task_status.started()
            await trio.sleep_forever()
        finally:
            plane.stop_polls()
            stop.set()
            scope.deadline = trio.current_time() + _LAST_WORD


async def _renew_forever(certificate: ServerCertificate) -> None:
    while True:
        await trio.sleep(_CERTIFICATE_CHECK)
        try:
            if await certificate.renew_when_due():
                log.info("the plane's own certificate was renewed")
        except CertctrlError as error:
            log.error("the plane's own certificate could not be renewed: %s", error)


def _address(url: str, data: DataDir) -> PlaneAddress:
    return PlaneAddress(url, data.ca.absolute(), data.operator_key.absolute())


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; TransportError names what is in the way."""
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
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKED_MS)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" means every address
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise TransportError(f"cannot listen on {host}:{port}: {error.strerror or error}", fix=fix) from None
    return sock


class _Config(Config):
    """Hypercorn's settings for one listening socket and one TLS context, both made by us."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__()
        self._sock = sock
        self._context = context
        self.accesslog = None
        self.errorlog = logging.getLogger("certctrl.Plane.server")
        self.errorlog.setLevel(logging.WARNING)
        self.alpn_protocols = ["http/1.1"]
        self.backlog = _BACKLOG
        self.graceful_timeout = _GRACE
        self.include_date_header = False  # the plane's own clock dates its answers
        self.include_server_header = False
        self.keep_alive_timeout = _KEEP_ALIVE
        self.keep_alive_max_requests = 10_000
        self.read_timeout = _READ_TIMEOUT
        self.ssl_handshake_timeout = 10.0

    @property
    def ssl_enabled(self) -> bool:
        """Plain HTTP is not offered."""
        return True

    def create_sockets(self) -> Sockets:
        """Return the one socket; Hypercorn listens again, which does no harm."""
        return Sockets([self._sock], [], [])

    def create_ssl_context(self) -> ssl.SSLContext:
        """Return the context that the plane keeps renewing."""
        return self._context
