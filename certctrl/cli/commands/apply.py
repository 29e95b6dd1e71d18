"""``apply``: bring this host in line with the control plane and the install plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.daemon_or_local import daemon_or_local
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_error, write_json, write_line, write_problems
from certctrl.errors import ExitStatus

APPLY_SECONDS = 620.0


def apply(
    ctx: typer.Context,
    now: Annotated[bool, typer.Option("--now", help="Ignore the maintenance window.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Bring this host in line with the control plane and the install plan.

    Compares this host with the control plane, then fetches, deploys, reloads and verifies what differs. Also retries
    failed items and quarantined signals. If the control plane is unreachable, deploys what is already on disk.

    Exit status: 0 this host is in line, 1 something failed (the old certificates stay live).

    \b
    cert-ctrl -c /etc/cert-ctrl apply
    cert-ctrl -c /etc/cert-ctrl apply --now
    """

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.apply(root, now=now)

    result: dict[str, Any] = daemon_or_local(invocation(ctx), "apply", local, seconds=APPLY_SECONDS, now=now)
    return show_outcome(result, as_json=as_json)


def show_outcome(result: dict[str, Any], *, as_json: bool) -> int:
    """Print the result of an apply or rollback and return its exit status."""
    from certctrl.model.plan import OutcomeKind

    failed, problems = result.get("failed", ()), result.get("problems", ())
    if as_json:
        write_json(result)
    else:
        detail = f": {result['detail']}" if result.get("detail") else ""
        name = f"{result['name']} " if result.get("name") else ""
        write_line(f"{name}{result['outcome']}{detail}")
        if result.get("plane"):
            write_error(f"warning: control plane not reached: {result['plane']}")
        for reason in failed:
            write_error(f"failed: {reason}")
    write_problems(problems)
    bad = result["outcome"] in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
    return ExitStatus.FAILED if bad or failed or problems else ExitStatus.DONE
