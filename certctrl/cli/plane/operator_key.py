"""``plane operator-key`` and ``plane rotate``: turn the operator key off and on, and replace it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from certctrl.cli.output import write_json, write_line
from certctrl.cli.owner import become_owner
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, Yes, agreed, call_plane, show
from certctrl.cli.plane.database import (
    AsJson,
    DatabaseFile,
    DatabaseUrl,
    DataDirectory,
    connector,
    database_address,
    local_user,
    needed_modules,
)
from certctrl.errors import ExitStatus, UsageError

operator_key = typer.Typer(help="Turn the operator key off or on.", **GROUP)
rotate = typer.Typer(help="Replace a key of the control plane.", **GROUP)
_PATH = "/apiv1/plane/operator-key"


@operator_key.command("show", cls=OperatorCommand)
def show_key(ctx: typer.Context) -> None:
    """Show whether the operator key is on.

    \b
    cert-ctrl plane operator-key show --data /var/lib/plane
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", _PATH)

    row = call_plane(ctx, request)
    show(ctx, row, f"the operator key is {row['state']}")


@operator_key.command(cls=OperatorCommand)
def off(ctx: typer.Context, yes: Yes = False) -> int:
    """Turn the operator key off: from then on, operators need tokens.

    Refused while no admin has a valid token. Its browser sessions end. To turn it on again, run plane operator-key on
    on the control plane's machine. Asks for confirmation on a terminal. Exit status: 0 off, 1 not confirmed.

    \b
    cert-ctrl plane operator-key off --data /var/lib/plane
    """
    if not agreed(ctx, "Turn the operator key off?", yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        return await api.call("DELETE", _PATH)

    row = call_plane(ctx, request)
    show(ctx, row, "the operator key is off; commands need --token-file")
    return ExitStatus.DONE


@operator_key.command()
def on(
    data: DataDirectory = "", database: DatabaseUrl = "", database_file: DatabaseFile = "", as_json: AsJson = False
) -> None:
    """Turn the operator key on, on the control plane's machine.

    It changes the database directly, so a user who can write the data directory cannot be locked out. The control plane
    may be running.

    \b
    cert-ctrl plane operator-key on --data /var/lib/plane
    """
    directory, who, connect = _opened(data, database, database_file)
    with needed_modules("plane"):
        from certctrl.plane.access.on_disk import turn_key_on

    turn_key_on(directory, who, connect)
    if as_json:
        write_json({"state": "on"}, pretty=False)
    else:
        write_line("the operator key is on")


@rotate.command("operator-key")
def rotate_operator_key(
    data: DataDirectory = "", database: DatabaseUrl = "", database_file: DatabaseFile = "", as_json: AsJson = False
) -> None:
    """Replace the operator key, on the control plane's machine.

    The old key and the browser sessions with it stop working immediately, also at the other control planes of the
    database. The control plane may be running. Tokens of operators are not affected. Repeat it if it was interrupted.

    \b
    cert-ctrl plane rotate operator-key --data /var/lib/plane
    """
    directory, who, connect = _opened(data, database, database_file)
    with needed_modules("plane"):
        from certctrl.plane.access.on_disk import rotate_key

    file = rotate_key(directory, who, connect)
    if as_json:
        write_json({"operator_key_file": str(file)}, pretty=False)
        return
    write_line(f"the operator key is new: {file}")
    write_line("the old one and its browser sessions no longer work; running control planes need no restart")
    if connect is not None:
        write_line("copy the file to the data directories of the other control planes, for commands with --data there")
    write_line("give it to those who need it, or better: cert-ctrl plane operator add NAME --role admin")


def _opened(data: str, database: str, database_file: str) -> tuple[Path, str, Any]:
    """Return the data directory, as whose owner this process then runs, who runs it, and what opens the database."""
    directory = data or os.environ.get("CERTCTRL_PLANE_DATA", "")
    if not directory:
        raise UsageError("no data directory for the control plane", fix="add --data DIR")
    connect, who = connector(database_address(database, database_file, os.environ), migrate=False), local_user()
    become_owner(directory)
    return Path(directory), who, connect
