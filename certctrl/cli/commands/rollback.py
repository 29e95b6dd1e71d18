"""``rollback``: switch one certificate back by hand and hold it there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.commands.apply import APPLY_SECONDS, show_outcome
from certctrl.cli.daemon_or_local import daemon_or_local
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_json, write_line
from certctrl.errors import ExitStatus, UsageError


def rollback(
    ctx: typer.Context,
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="A domain of the certificate.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="ID", help="Generation to go to; default: the previous one.")
    ] = None,
    release: Annotated[
        bool, typer.Option("--release", help="End the hold: the newest certificate goes live again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Put a previous certificate back and hold it, or let it go again.

    The switch, its reload and its probe are those of any deployment. While held, renewals are fetched and staged
    but not swapped in. `history --domain NAME` shows the generations. Needs no control plane.

    \b
    cert-ctrl -c /etc/cert-ctrl rollback --domain www.example.com
    cert-ctrl -c /etc/cert-ctrl rollback --domain www.example.com --release
    """
    if release and to is not None:
        raise UsageError("--release and --to do not go together", fix="give one of them")

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await (oneshot.release(root, domain) if release else oneshot.rollback(root, domain, to))

    op, fields = ("release", {}) if release else ("rollback", {"to": to})
    result: dict[str, Any] = daemon_or_local(invocation(ctx), op, local, seconds=APPLY_SECONDS, domain=domain, **fields)
    if not release:
        return show_outcome(result, as_json=as_json)
    if as_json:
        write_json(result)
    else:
        write_line(f"{result['name']} is no longer held")
    return ExitStatus.DONE
