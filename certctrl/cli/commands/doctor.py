"""``doctor``: check host, control plane, certificates and daemon; print a fix for each problem."""

import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import attrs
import typer

from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import on_terminal, write_json, write_line
from certctrl.errors import CertctrlError, ExitStatus
from certctrl.text import counted

_COLOURS = {"OK": "\x1b[32m", "WARN": "\x1b[33m", "FAIL": "\x1b[31m"}


def doctor(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Skip the checks that use the network.")] = False,
) -> int:
    """Check host, control plane, certificates and daemon; print a fix for each problem.

    Checks configuration, permissions, disk space, state files, device key and policy; DNS, TLS, clock and access
    token; every certificate on disk and every endpoint that should serve it; what the policy refuses; the daemon.
    Takes no lock, changes nothing, and works with or without a running daemon.

    Exit status: 0 no failures (warnings are possible), 1 at least one failure.

    \b
    cert-ctrl -c /etc/cert-ctrl doctor
    cert-ctrl -c /etc/cert-ctrl doctor --json
    """
    from certctrl.cli.runtime import run

    invoked = invocation(ctx)
    findings = run(_examine, _context(invoked), offline, None if as_json else lambda one: _show(invoked, one))
    if as_json:
        write_json([attrs.asdict(finding) | {"fix": invoked.with_directory(finding.fix)} for finding in findings])
    else:
        _sum_up(findings)
    return ExitStatus.FAILED if any(finding.level == "FAIL" for finding in findings) else ExitStatus.DONE


def _context(invoked: Invocation) -> Any:
    from certctrl.agent.clock import wall_now
    from certctrl.cli.doctor.finding import CheckContext
    from certctrl.store.config.files import load_config
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.state.store import StateStore

    layout, fs = invoked.layout(), RealFs()
    try:
        config = load_config(layout, os.environ).config
    except CertctrlError:
        config = None  # reported by the check of the configuration
    return CheckContext(
        layout=layout, fs=fs, store=StateStore(layout, fs), environ=os.environ, now=wall_now, config=config
    )


async def _examine(context: Any, offline: bool, show: Any) -> list[Any]:
    """Run every check, the clock first; show each finding immediately."""
    from certctrl.agent.setup import real_http
    from certctrl.cli.doctor.certs import check_endpoints
    from certctrl.cli.doctor.clock import blame_clock, far_off
    from certctrl.cli.doctor.daemon import check_plan
    from certctrl.cli.doctor.finding import ok
    from certctrl.cli.doctor.plane import check_plane
    from certctrl.net.server_date import server_date

    found = []

    def note(finding: Any) -> None:
        found.append(finding)
        if show is not None:
            show(finding)

    report: Any = note

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


def _on_disk(context: Any) -> Iterator[Any]:
    from certctrl.cli.doctor.certs import certificate_findings
    from certctrl.cli.doctor.daemon import daemon_findings
    from certctrl.cli.doctor.finding import guarded
    from certctrl.cli.doctor.host import host_findings

    yield from host_findings(context)
    yield from certificate_findings(context)
    yield from guarded("daemon", lambda: daemon_findings(context))


def _show(invoked: Invocation, finding: Any) -> None:
    level = str(finding.level)
    if on_terminal() and "NO_COLOR" not in os.environ:
        sys.stdout.write(_COLOURS[level])
        sys.stdout.write(f"{level:<4}\x1b[0m  ")
        write_line(f"{finding.check}: {finding.what}")
    else:
        write_line(f"{level:<4}  {finding.check}: {finding.what}")
    if finding.fix:
        write_line(f"      fix: {invoked.with_directory(finding.fix)}")


def _sum_up(findings: list[Any]) -> None:
    bad = sum(finding.level == "FAIL" for finding in findings)
    odd = sum(finding.level == "WARN" for finding in findings)
    write_line()
    write_line(f"{counted(len(findings), 'finding')}: {counted(bad, 'failure')}, {counted(odd, 'warning')}")
