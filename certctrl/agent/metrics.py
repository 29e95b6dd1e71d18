"""Publish metrics if enabled: a small listener for Prometheus, a textfile for its node exporter.

Disabled by default. The listener answers only ``GET /metrics``, on a loopback address; any other address needs
``metrics_public``, because metrics contain the names of certificates and of the plane.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import trio

import certctrl
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.metric_families import View, render
from certctrl.agent.reporter import snapshot
from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.model.config import listen_address
from certctrl.store.disk.atomic import write_atomic
from certctrl.store.layout import PUBLIC_MODE

if TYPE_CHECKING:
    from certctrl.agent.context import Agent

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = 5.0
CONNECTIONS = 16  # a scraper needs one
LARGEST_REQUEST = 16 * 1024
TEXTFILE_SECONDS = 30.0


async def publish_metrics(agent: Agent) -> None:
    """Serve and write the configured metrics until cancelled; failures are reported, not raised."""
    settings = agent.config.application

    def text() -> bytes:
        return render(view_of(agent))

    async def listen() -> None:
        host, port = listen_address(settings.metrics_listen, public=settings.metrics_public)
        await serve_metrics(
            host, port, text, lambda address: log_line(agent.log, Line.METRICS_LISTENING, address=address)
        )

    async with trio.open_nursery() as nursery:
        if settings.metrics_listen:
            nursery.start_soon(_or_report, agent, listen)
        if settings.metrics_textfile:
            path = agent.layout.root / settings.metrics_textfile
            nursery.start_soon(_or_report, agent, lambda: write_textfile_forever(agent, path, text))


async def _or_report(agent: Agent, task: Callable[[], Awaitable[None]]) -> None:
    try:
        await task()
    except* (OSError, CertctrlError) as errors:  # a nursery raises groups
        error = _first(errors)
        log_line(agent.log, Line.METRICS_FAILED, why=error)
        agent.report_problem(
            "metrics",
            f"metrics are disabled: {error}",
            "correct metrics_listen or metrics_textfile, then restart the daemon",
        )


def _first(error: BaseException) -> BaseException:
    """Return the first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def view_of(agent: Agent) -> View:
    """Return the data of one scrape."""
    records = tuple(agent.installer.records.values())
    retries = {record.cert_id: agent.installer.retries.of(cert_resource(record.cert_id)) for record in records}
    return View(
        counters=agent.counters,
        status=snapshot(agent),
        records=records,
        failed_attempts={
            record.cert_id: retry.attempts
            for record in records
            if record.failing and (retry := retries[record.cert_id]) is not None
        },
        version=certctrl.__version__,
    )


async def serve_metrics(
    host: str,
    port: int,
    text: Callable[[], bytes],
    ready: Callable[[str], None] = lambda _address: None,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer scrapes until cancelled; ``started`` with the bound port. Raises OSError if it cannot bind."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    bound = listeners[0].socket.getsockname()[1]
    limiter = trio.CapacityLimiter(CONNECTIONS)

    async def answer(stream: trio.SocketStream) -> None:
        async with limiter, stream:
            with trio.move_on_after(REQUEST_SECONDS):
                try:
                    await _answer(stream, text)
                except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
                    return

    async with trio.open_nursery() as nursery:
        ready(f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}")
        task_status.started(bound)
        await trio.serve_listeners(answer, listeners, handler_nursery=nursery)


async def _answer(stream: trio.SocketStream, text: Callable[[], bytes]) -> None:
    """Answer one request and close; keep-alive would not help rare scrapes."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_REQUEST)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some(4096))
    if not isinstance(event, h11.Request):
        return
    path = event.target.partition(b"?")[0]
    status, body = 200, b""
    if event.method not in (b"GET", b"HEAD"):
        status, body = 405, b"only GET\n"
    elif path != b"/metrics":
        status, body = 404, b"only /metrics\n"
    else:
        body = text()
    headers = [
        ("Content-Type", CONTENT_TYPE),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
    ]
    data = connection.send(h11.Response(status_code=status, headers=headers))
    if event.method != b"HEAD":
        data = (data or b"") + (connection.send(h11.Data(body)) or b"")
    await stream.send_all(data or b"")


async def write_textfile_forever(agent: Agent, path: Path, text: Callable[[], bytes]) -> None:
    """Replace the textfile every 30 seconds until cancelled; a failing disk is reported once."""
    while True:
        try:
            await agent.offload(_write, agent, path, text())
        except DiskError as error:
            if agent.report_problem("metrics-textfile", f"the metrics file is not written: {error}", error.fix or ""):
                log_line(agent.log, Line.METRICS_FAILED, why=error)
        else:
            agent.clear_problem("metrics-textfile")
        await trio.sleep(TEXTFILE_SECONDS)


def _write(agent: Agent, path: Path, data: bytes) -> None:
    write_atomic(agent.fs, path, data, mode=PUBLIC_MODE, durable=False, keep_attributes=True)
