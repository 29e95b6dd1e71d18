"""serve_plane: serve a plane over HTTPS, and stop it in order.

Cancelling stops it. The server runs shielded: it stops accepting, the plane answers all held polls (204,
``Connection: close``), connections close, and the rest is cut after a few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio

from certctrl.errors import CertctrlError
from certctrl.plane.core import Plane
from certctrl.plane.http.app import make_app
from certctrl.plane.http.faults import Faults
from certctrl.plane.http.server import Server, listen
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.data_dir import DataDir, write_file
from certctrl.plane.tls import ServerCertificate, host_for_url, local_host, names_of

_STOP_SECONDS = 10.0
_CERTIFICATE_CHECK_SECONDS = 3600.0

log = logging.getLogger("certctrl.Plane")


@attrs.frozen
class PlaneAddress:
    """The address of a running plane, and the files that its clients need."""

    url: str
    ca_file: Path
    """The root CA of the plane's own certificate and of all certificates it issues, in PEM."""
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
    """Serve the plane of a data directory until cancelled; ``started`` returns its address.

    ``hostnames`` go into the plane's certificate, the first also into its URL. Raises TransportError if it cannot
    listen, and the errors of ``Plane.open``.
    """
    with Plane.open(data, settings=settings, offload=trio.to_thread.run_sync) as plane:
        assert plane.data is not None
        certificate = ServerCertificate(plane, plane.data, names_of(host, hostnames))
        await certificate.load()
        with listen(host, port) as sock:
            port = sock.getsockname()[1]
            url = f"https://{host_for_url(host, hostnames)}:{port}"
            write_file(plane.data.address, f"{url}\n".encode(), mode=0o600)
            write_file(plane.data.local_address, f"https://{local_host(host)}:{port}\n".encode(), mode=0o600)
            async with trio.open_nursery() as nursery:
                server = Server(make_app(plane, faults=faults), sock, certificate.context)
                await nursery.start(_run_server, plane, server)
                nursery.start_soon(plane.run_housekeeping)
                nursery.start_soon(_renew_forever, certificate)
                log.info("control plane at %s", url)
                task_status.started(_address(url, plane.data))


async def _run_server(
    plane: Plane, server: Server, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the server until cancelled, then let it finish its requests."""
    stop = trio.Event()
    scope = trio.CancelScope(shield=True)

    async def shielded(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with scope:
            await server.serve(stop=stop, task_status=task_status)

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(shielded)
            task_status.started()
            await trio.sleep_forever()
        finally:
            plane.stop_polls()
            stop.set()
            scope.deadline = trio.current_time() + _STOP_SECONDS


async def _renew_forever(certificate: ServerCertificate) -> None:
    while True:
        await trio.sleep(_CERTIFICATE_CHECK_SECONDS)
        try:
            if await certificate.renew_when_due():
                log.info("renewed the plane's own certificate")
        except CertctrlError as error:
            log.error("cannot renew the plane's own certificate: %s", error)


def _address(url: str, data: DataDir) -> PlaneAddress:
    return PlaneAddress(url, data.ca.absolute(), data.operator_key.absolute())
