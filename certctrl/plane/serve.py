"""serve_plane: serve a plane over HTTPS, and stop it in order.

Cancelling stops it. The server runs shielded: the plane answers all held polls (204, ``Connection: close``,
``Retry-After``), connections close, and the rest is cut after a few seconds.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import trio
from trio_util import RepeatedEvent

from certctrl import lean
from certctrl.errors import BusyError, CertctrlError, ConfigError, TransportError
from certctrl.net.metrics_listener import answer_scrapes
from certctrl.plane.ca.domains import clean_name
from certctrl.plane.challenges import plane_http
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.http.app import make_app
from certctrl.plane.http.faults import Faults
from certctrl.plane.http.plain_app import make_plain_app
from certctrl.plane.http.proxies import Proxies
from certctrl.plane.http.server import NO_PROXIES, Server, listen
from certctrl.plane.http.shared_port import HandOver
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.data_dir import DataDir, GivenKeys, keep_file
from certctrl.plane.storage.database import Database
from certctrl.plane.tls import ServerCertificate, host_for_url, local_host, names_of

_STOP_SECONDS = 10.0
_CERTIFICATE_CHECK_SECONDS = 3600.0
_LOCK_PAUSE = 0.1
ALONE = HandOver()

log = logging.getLogger("certctrl.Plane")


@lean.frozen
class PlaneAddress:
    """The address of a running plane, and the files that its clients need."""

    url: str
    ca_file: Path
    """The root CA of the plane's own certificate, in PEM."""
    operator_key_file: Path
    metrics_url: str = ""
    """Address of the metrics; empty: off."""
    acme_http_url: str = ""
    """Address at which CAs find the answers of http-01; empty: off."""
    http_url: str = ""
    """Address of the listener without TLS; empty: off."""
    ca_fingerprint: str = ""
    """SHA-256 of the root CA in lower-case hex, by which operators recognise it."""

    @property
    def issuing_ca_file(self) -> Path:
        """The root CA of the certificates that the plane issues, in PEM."""
        return DataDir(self.ca_file.parent).issuing_ca


async def serve_plane(
    data: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    hostnames: Sequence[str] = (),
    settings: PlaneSettings | None = None,
    faults: Faults | None = None,
    connect: Callable[[], Database] | None = None,
    keys: GivenKeys | None = None,
    proxies: Proxies = NO_PROXIES,
    metrics: tuple[str, int] | None = None,
    acme_http: tuple[str, int] | None = None,
    listening: socket.socket | None = None,
    without_tls: socket.socket | None = None,
    hand_over: HandOver = ALONE,
    reload: RepeatedEvent | None = None,
    task_status: trio.TaskStatus[PlaneAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the plane of a data directory until cancelled; ``started`` returns its address.

    ``hostnames`` go into the plane's certificate, the first also into its URL; ``connect`` opens the database if it is
    not in the data directory, and ``keys`` are those that are not; ``proxies`` may name clients; ``metrics`` is the
    address of Prometheus metrics, ``acme_http`` that of the answers of http-01; ``listening`` is a socket of ``listen``
    for the same host, to be used instead of a new one, and ``without_tls`` one for what needs no TLS; ``hand_over``: how
    another process shares these; ``reload`` makes it read its TLS certificate again. Raises TransportError if it cannot
    listen, and the errors of ``Plane.open``.
    """
    opening = partial(Plane.open, data, settings=settings, offload=trio.to_thread.run_sync, connect=connect, keys=keys)
    with await _opened(opening, hand_over.wait_seconds) as plane:
        assert plane.data is not None
        certificate = ServerCertificate(plane, plane.data, names_of(host, hostnames))
        await certificate.load()
        await _reserve(plane, certificate)
        plane.anchor.on_switch = partial(_replace_anchor, plane, certificate)
        with listening or listen(host, port) as sock, without_tls or contextlib.nullcontext():
            url = _kept_url(plane.data, host, hostnames, sock.getsockname()[1])
            async with trio.open_nursery() as nursery:
                serving = partial(Server, proxies=proxies, stays_open=hand_over.stays_open)
                server = serving(make_app(plane, faults=faults), sock, certificate.context)
                plane.planes.connections, plane.counters.refused = lambda: server.connections, server.refused
                plane.planes.address = url
                urls = await _start_small(nursery, plane, metrics, acme_http)
                await nursery.start(_run_server, plane, server)
                if without_tls is not None:
                    await nursery.start(_run_server, plane, serving(make_plain_app(plane), without_tls, None))
                _start_tasks(nursery, plane, certificate, reload)
                _log_start(plane, url)
                task_status.started(_address(url, plane, *urls, _http_url(without_tls)))


async def _opened(opening: Callable[[], Plane], wait_seconds: float) -> Plane:
    """Return the opened plane; raises BusyError if another one has not left its directory in time."""
    deadline, logged = trio.current_time() + wait_seconds, False
    while True:
        try:
            return opening()
        except BusyError as error:
            if trio.current_time() >= deadline:
                raise
            if not logged:
                log.info("waiting for the other control plane to stop: %s", error)
                logged = True
        await trio.sleep(_LOCK_PAUSE)


def _kept_url(data: DataDir, host: str, hostnames: Sequence[str], port: int) -> str:
    """Return the URL of the plane, and store it with its local one for commands."""
    url = f"https://{host_for_url(host, hostnames)}:{port}"
    keep_file(data.address, f"{url}\n".encode(), mode=0o600)
    keep_file(data.local_address, f"https://{local_host(host)}:{port}\n".encode(), mode=0o600)
    return url


async def _start_small(
    nursery: trio.Nursery, plane: Plane, metrics: tuple[str, int] | None, acme_http: tuple[str, int] | None
) -> tuple[str, str]:
    """Start the small listeners, and return their URLs; empty: off."""
    metrics_url = "" if metrics is None else await nursery.start(_serve_metrics, plane, *metrics)
    acme_url = "" if acme_http is None else await nursery.start(_answer_challenges, plane, *acme_http)
    return metrics_url, acme_url


def _log_start(plane: Plane, url: str) -> None:
    log.info("control plane at %s", url)
    if not plane.settings.crl_url:
        log.info("certificates name no revocation list, so clients do not learn of revocations; see --http")


def _start_tasks(
    nursery: trio.Nursery, plane: Plane, certificate: ServerCertificate, reload: RepeatedEvent | None
) -> None:
    plane.issuers.load_kinds()
    tasks = (
        plane.housekeeping.run,
        plane.storage_check.run,
        plane.exchange_wakes,
        plane.stream.pace_wakes,
        plane.push.run,
    )
    for task in tasks:
        nursery.start_soon(task)
    nursery.start_soon(plane.order_runner.run, name="orders")
    nursery.start_soon(plane.revocation_runner.run, name="revocations")
    nursery.start_soon(plane.renewals.run, name="renewals")
    nursery.start_soon(plane.profiles.run, name="profiles")
    nursery.start_soon(plane.rollout_runner.run, name="rollouts")
    nursery.start_soon(plane.alerts.runner.run, name="alerts")
    nursery.start_soon(plane.leftovers.run, name="leftovers")
    nursery.start_soon(_renew_forever, plane, certificate)
    if reload is not None:
        nursery.start_soon(_reload_forever, plane, certificate, reload)


async def _serve_metrics(
    plane: Plane, host: str, port: int, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve metrics until cancelled; ``started`` returns the URL.

    Raises TransportError if it cannot listen, ConfigError without the library.
    """
    try:
        from certctrl.plane.health.metric_families import scraped
    except ModuleNotFoundError:
        what = "metrics need the Python package prometheus-client"
        raise ConfigError(what, fix="pip install 'certctrl[metrics]'") from None
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        what = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise TransportError(what, fix="choose another --metrics HOST:PORT") from None
    port = listeners[0].socket.getsockname()[1]
    task_status.started(f"http://{local_host(host)}:{port}/metrics")
    await answer_scrapes(listeners, partial(scraped, plane))


async def _answer_challenges(
    plane: Plane, host: str, port: int, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer http-01 until cancelled; ``started`` returns the URL. Raises TransportError if it cannot listen."""
    with listen(host, port, "--acme-http") as sock:
        task_status.started(f"http://{local_host(host)}:{sock.getsockname()[1]}")
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        await plane_http.answer_challenges([listener], plane.database, plane.wall_now)


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


async def _renew_forever(plane: Plane, certificate: ServerCertificate) -> None:
    while True:
        await trio.sleep(_CERTIFICATE_CHECK_SECONDS)
        try:
            if await certificate.renew_when_due():
                log.info("renewed the plane's own certificate")
        except CertctrlError as error:
            plane.problems.report(ProblemName.TLS_CERTIFICATE, str(error))


async def _reload_forever(plane: Plane, certificate: ServerCertificate, reload: RepeatedEvent) -> None:
    async for _ in reload.events(repeat_last=False):
        try:
            await certificate.load()
            log.info("read the TLS certificate again")
            await _reserve(plane, certificate)
        except CertctrlError as error:
            plane.problems.report(ProblemName.TLS_CERTIFICATE, str(error))
            log.error("TLS certificate rejected, keeping the old one: %s", error)


async def _reserve(plane: Plane, certificate: ServerCertificate) -> None:
    """Reserve the plane's names, so that no issued certificate can impersonate it; log those that exist."""
    page = urlsplit(plane.settings.public_url).hostname
    pages = [_canonical(page)] if page else []  # first: the names of an operator's certificate may be too many
    names = (*pages, *certificate.names())
    try:
        found = await plane.work_long(plane.certificates.reserve, names)
    except CertctrlError as error:  # housekeeping stores the names once the database accepts them
        plane.storage_check.note_failure(error)
        return
    for row in found:
        log.warning(
            "certificate %d (%s) is valid for a name of this control plane; it cannot be renewed, revoke it",
            row["id"],
            row["domain_name"],
        )


def _canonical(host: str) -> str:
    """Return a host in the form of certificates; unchanged if no certificate can contain it."""
    try:
        return clean_name(host)
    except ErrorResponse:
        return host


async def _replace_anchor(plane: Plane, certificate: ServerCertificate) -> None:
    plane.write_cas()
    if await certificate.renew_when_due():
        log.info("the control plane's own certificate is from its own CA now: %s", plane.anchor.own.root_fingerprint)


def _address(url: str, plane: Plane, metrics_url: str, acme_http_url: str, http_url: str) -> PlaneAddress:
    assert plane.data is not None
    files = plane.data.ca.absolute(), plane.data.operator_key.absolute()
    return PlaneAddress(url, *files, metrics_url, acme_http_url, http_url, plane.anchor.ca.root_fingerprint)


def _http_url(without_tls: socket.socket | None) -> str:
    """Return the URL of a listener without TLS on this machine; empty: off."""
    if without_tls is None:
        return ""
    host, port = without_tls.getsockname()[:2]
    return f"http://{local_host(host)}:{port}"
