"""``plan``: what would change on this host, and why; changes nothing."""

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.daemon_or_local import daemon_or_local
from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import write_json, write_line, write_problems
from certctrl.errors import ExitStatus

PLAN_SECONDS = 60.0
_ALLOW = "to allow what is refused: cert-ctrl -c DIR policy allow"


def plan(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print steps, refusals and what waits as JSON.")] = False,
) -> int:
    """Show what would change on this host, and change nothing.

    Files with owner and mode, commands, probes, what the host's policy refuses with the line that would allow it,
    and what waits for a maintenance window. Compares with what has been delivered; `poll-now` fetches news.

    Exit status: 0 nothing to do, 2 changes, 1 no changes among the items that can be read, and there are others.

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
            write_line(line)
        if any(refusal.get("setting") for refusal in found["refusals"]):
            write_line()
            write_line(invoked.named(_ALLOW))
    write_problems(problems := found.get("problems", ()))
    if found["changes"]:
        return ExitStatus.CHANGES
    return ExitStatus.FAILED if problems else ExitStatus.DONE


def fetch_plan(invoked: Invocation) -> dict[str, Any]:
    """Return the plan as JSON, from the running daemon or worked out here."""

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.plan(root)

    found: dict[str, Any] = daemon_or_local(invoked, "plan", local, seconds=PLAN_SECONDS)
    return found
