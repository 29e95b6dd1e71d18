"""``rollback``: restore a previous certificate and hold it, or end the hold."""

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
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="A domain name of the certificate.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="ID", help="Generation to restore; default: the previous one that served."),
    ] = None,
    release: Annotated[bool, typer.Option("--release", help="End the hold and deploy the newest certificate.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Restore a previous certificate and hold it, or end the hold.

    Switches, reloads and probes like any deployment. While a certificate is held, renewals are fetched and staged but
    not deployed. `history --domain NAME` lists the generations. Works without the control plane.

    Exit status: 0 done, 1 failed or rolled back (the current certificate stays live).

    \b
    cert-ctrl -c /etc/cert-ctrl rollback --domain www.example.com
    cert-ctrl -c /etc/cert-ctrl rollback --domain www.example.com --release
    """
    if release and to is not None:
        raise UsageError("--release cannot be combined with --to", fix="give only one of them")

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
