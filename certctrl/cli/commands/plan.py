"""``plan``: show what would change on this host, and why."""

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.daemon_or_local import daemon_or_local
from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import write_json, write_line, write_problems
from certctrl.errors import ExitStatus

PLAN_SECONDS = 60.0
_ALLOW = "to allow refused items: cert-ctrl -c DIR policy allow"


def plan(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print steps, refusals and waiting items as JSON.")] = False,
) -> int:
    """Show what would change on this host; change nothing.

    Shows files with owner and mode, commands, probes, items refused by the policy with the line that allows them, and
    items waiting for a maintenance window. Uses what has been fetched already; `poll-now` fetches updates.

    Exit status: 0 no changes, 2 changes, 1 no changes, but some items are refused or invalid.

    \b
    cert-ctrl -c /etc/cert-ctrl plan
    cert-ctrl -c /etc/cert-ctrl plan --json
    """
    invoked = invocation(ctx)
    found = fetch_plan(invoked)
    if as_json:
        write_json(found)
    else:
        for line in found["diff"].splitlines():
            write_line(invoked.with_directory(line))
        if any(refusal.get("setting") for refusal in found["refusals"]):
            write_line()
            write_line(invoked.with_directory(_ALLOW))
    write_problems(problems := found.get("problems", ()))
    if found["changes"]:
        return ExitStatus.CHANGES
    return ExitStatus.FAILED if problems or found["refusals"] else ExitStatus.DONE


def fetch_plan(invoked: Invocation) -> dict[str, Any]:
    """Return the plan as JSON, from the daemon or computed in this process."""

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.plan(root)

    found: dict[str, Any] = daemon_or_local(invoked, "plan", local, seconds=PLAN_SECONDS)
    return found
