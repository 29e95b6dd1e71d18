"""serve_plane: a plane on HTTPS, and its orderly end.

Stopping is cancelling. The server itself runs shielded: it is told to stop, the plane answers every held poll (204,
``Connection: close``), connections close, and only what is left after a few seconds is cut.
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
from certctrl.plane.tls import ServerCertificate, host_for_url, names_of

_LAST_WORD = 10.0
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
        with listen(host, port) as sock:
            url = f"https://{host_for_url(host, hostnames)}:{sock.getsockname()[1]}"
            write_file(plane.data.address, f"{url}\n".encode(), mode=0o600)
            async with trio.open_nursery() as nursery:
                server = Server(make_app(plane, faults=faults), sock, certificate.context)
                await nursery.start(_run_server, plane, server)
                nursery.start_soon(plane.keep_house)
                nursery.start_soon(_renew_forever, certificate)
                log.info("control plane at %s", url)
                task_status.started(_address(url, plane.data))


async def _run_server(
    plane: Plane, server: Server, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the server until this task is cancelled, then let it finish what it is doing."""
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
