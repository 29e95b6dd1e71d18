"""``move``: move this host to another control plane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.errors import ExitStatus
from certctrl.text import counted


def move(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Config directory that is registered at the new control plane.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; a running agent may go on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Move this host to another control plane.

    SOURCE is a second config directory, which `init` and `register` have made for the new control plane. The move needs
    a certificate there for all names of each one in use here, and install items if there are some. Until then it
    changes nothing. The certificates on disk stay in use until those of the new control plane are deployed.

    Stop the agent first, and start it afterwards. An interrupted move is finished by repeating it. SOURCE can then be
    removed.

    Exit status: 0 moved, or ready to move with --dry-run; 1 the new control plane lacks something.

    \b
    cert-ctrl -c /etc/cert-ctrl.next init --server https://new.example.com \\
        --ca-fingerprint 9f86d081884c7d65
    cert-ctrl -c /etc/cert-ctrl.next register --enrolment-token-file token
    cert-ctrl -c /etc/cert-ctrl move /etc/cert-ctrl.next --dry-run
    """
    from certctrl.cli.runtime import run

    invoked = invocation(ctx)
    found = run(_move, invoked, source.absolute(), dry_run)
    if as_json:
        write_json(found)
    else:
        _print(found, dry_run=dry_run)
    return ExitStatus.DONE if found["ready"] else ExitStatus.FAILED


async def _move(invoked: Any, source: Path, dry_run: bool) -> dict[str, Any]:
    from certctrl.agent.move import move as move_host
    from certctrl.logs.setup import log_for_command
    from certctrl.store.layout import ConfigDir

    log_for_command(debug=invoked.debug, verbosity=invoked.verbosity)
    layout = invoked.layout()
    return await move_host(layout, ConfigDir(source), dry_run=dry_run)


def _print(found: Mapping[str, Any], *, dry_run: bool) -> None:
    server = found["server"]
    if found["moved"]:
        write_line(f"this host follows {server}; start the agent")
        if not found.get("finished", True):
            return
        write_line("then, at the former control plane: cert-ctrl plane device decommission NAME")
        return
    for name in found["missing"]:
        write_error(f"{server} has no certificate for all names of {name}; issue or assign one to this device there")
    for other in found["clashing"]:
        write_error(f"{other} has an id there that another certificate has here; issue it again there")
    if found["lacks_items"]:
        write_error(
            f"{server} has no install items for this device; put them there: cert-ctrl plane install-config put"
        )
    if found["ready"]:
        covered = counted(len(found["covered"]), "certificate")
        would = "this host can move" if dry_run else "this host moves"
        write_line(f"{would} to {server}: it has the names of {covered}, and {counted(found['items'], 'item')}")
    else:
        write_error("nothing was changed")
