"""``status``: show the status of the agent."""

from typing import Annotated

import typer

from certctrl.cli.invocation import invocation
from certctrl.cli.status_view import show_status


def status(
    ctx: typer.Context,
    daemon: Annotated[bool, typer.Option("--daemon", help="Show only the daemon, without certificates.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch, one object per line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Update every second until Ctrl-C.")] = False,
) -> int:
    """Show the status of the agent; the exit status reflects its health.

    Asks the running daemon; without one, shows the state on disk. Takes no lock and changes nothing.

    Exit status: 0 healthy, 1 degraded or stale, 3 not running, 77 not registered or revoked.

    \b
    cert-ctrl -c /etc/cert-ctrl status
    cert-ctrl -c /etc/cert-ctrl status --daemon --watch
    cert-ctrl -c /etc/cert-ctrl status --json
    """
    return show_status(invocation(ctx), daemon=daemon, as_json=as_json, watch=watch)
