"""Publish metrics if enabled: a small listener for Prometheus, a textfile for its node exporter.

Disabled by default. The listener has a loopback address; any other needs ``metrics_public``, because metrics contain
the names of certificates and of the plane.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import certctrl
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.metric_families import View, render
from certctrl.agent.reporter import snapshot
from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.model.config import listen_address
from certctrl.net.metrics_listener import serve_metrics
from certctrl.store.disk.atomic import write_atomic
from certctrl.store.layout import PUBLIC_MODE

if TYPE_CHECKING:
    from certctrl.agent.context import Agent

TEXTFILE_SECONDS = 30.0


async def publish_metrics(agent: Agent) -> None:
    """Serve and write the configured metrics until cancelled; failures are reported, not raised."""
    settings = agent.config.application

    def text() -> bytes:
        return render(view_of(agent))

    async def scrape() -> bytes:
        return text()

    async def listen() -> None:
        host, port = listen_address(settings.metrics_listen, public=settings.metrics_public)
        await serve_metrics(
            host, port, scrape, lambda address: log_line(agent.log, Line.METRICS_LISTENING, address=address)
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
