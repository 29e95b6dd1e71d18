"""Run all checks of `doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from certctrl.cli.doctor.finding import CheckContext, Finding, Report, guarded, ok
from certctrl.errors import CertctrlError

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation
    from certctrl.store.layout import ConfigDir


def context_of(layout: ConfigDir) -> CheckContext:
    """Return the input of the checks."""
    from certctrl.agent.clock import wall_now
    from certctrl.store.config.files import load_config
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.state.store import StateStore

    fs = RealFs()
    try:
        config = load_config(layout, os.environ).config
    except CertctrlError:
        config = None  # reported by the check of the configuration
    return CheckContext(
        layout=layout, fs=fs, store=StateStore(layout, fs), environ=os.environ, now=wall_now, config=config
    )


async def examine(context: CheckContext, *, offline: bool = False, show: Report | None = None) -> list[Finding]:
    """Run every check, the clock first; show each finding immediately."""
    from certctrl.agent.setup import real_http
    from certctrl.cli.doctor.certs import check_endpoints
    from certctrl.cli.doctor.clock import blame_clock, far_off
    from certctrl.cli.doctor.daemon import check_plan
    from certctrl.cli.doctor.plane import check_plane
    from certctrl.net.server_date import server_date

    found: list[Finding] = []

    def note(finding: Finding) -> None:
        found.append(finding)
        if show is not None:
            show(finding)

    report: Report = note

    wrong_clock = await far_off(context, None if offline else server_date)
    if wrong_clock is not None:
        note(wrong_clock)
        report = blame_clock(note)

    for finding in _on_disk(context):
        report(finding)
    await check_plan(context, report)
    if offline:
        report(ok("plane", "skipped (--offline)"))
        return found
    if context.config is not None:
        await check_plane(context, context.config, real_http, report)
    await check_endpoints(context, report)
    return found


def findings_json(invoked: Invocation, findings: list[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain JSON."""
    return [attrs.asdict(finding) | {"fix": invoked.with_directory(finding.fix)} for finding in findings]


def _on_disk(context: CheckContext) -> Iterator[Finding]:
    from certctrl.cli.doctor.certs import certificate_findings
    from certctrl.cli.doctor.daemon import daemon_findings
    from certctrl.cli.doctor.helper import helper_findings
    from certctrl.cli.doctor.host import host_findings

    yield from host_findings(context)
    yield from guarded("helper", lambda: helper_findings(context))
    yield from certificate_findings(context)
    yield from guarded("daemon", lambda: daemon_findings(context))
