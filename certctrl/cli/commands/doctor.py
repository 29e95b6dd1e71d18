"""``doctor``: check host, control plane, certificates and daemon; print a fix for each problem."""

import os
import sys
from functools import partial
from typing import Annotated, Any

import typer

from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import on_terminal, write_json, write_line
from certctrl.errors import ExitStatus
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
    from certctrl.cli.doctor.examine import context_of, examine, findings_json
    from certctrl.cli.runtime import run

    invoked = invocation(ctx)
    show = None if as_json else partial(_show, invoked)
    findings = run(partial(examine, context_of(invoked.layout()), offline=offline, show=show))
    if as_json:
        write_json(findings_json(invoked, findings))
    else:
        _sum_up(findings)
    return ExitStatus.FAILED if any(finding.level == "FAIL" for finding in findings) else ExitStatus.DONE


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
