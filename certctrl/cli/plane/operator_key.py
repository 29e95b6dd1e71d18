"""``plane operator-key`` and ``plane rotate``: turn the operator key off and on, and replace it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
from certctrl.cli.plane.secrets import OPERATOR_CREDENTIAL, StorageKeyFile, given_keys, read_secret
from certctrl.errors import ExitStatus, UsageError
from certctrl.text import counted

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
    data: DataDirectory = "",
    database: DatabaseUrl = "",
    database_file: DatabaseFile = "",
    operator_key_file: Annotated[
        str,
        typer.Option(
            "--operator-key-file",
            metavar="FILE",
            help="The new key, for control planes that get it from outside DIR; default: the systemd credential"
            f" {OPERATOR_CREDENTIAL}, otherwise a new operator.key in DIR.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Replace the operator key, on the control plane's machine.

    The old key and the browser sessions with it stop working immediately, also at the other control planes of the
    database. The control plane may be running. Tokens of operators are not affected. Repeat it if it was interrupted.
    With --operator-key-file, the key in that file becomes the current one: write it there first.

    \b
    cert-ctrl plane rotate operator-key --data /var/lib/plane
    """
    secret = read_secret(operator_key_file, OPERATOR_CREDENTIAL, os.environ, "the new operator key")
    directory, who, connect = _opened(data, database, database_file)
    with needed_modules("plane"):
        from certctrl.plane.access.on_disk import rotate_key
        from certctrl.plane.storage.data_dir import GivenKey

    file = rotate_key(directory, who, connect, secret and GivenKey(*secret))
    if as_json:
        write_json({"operator_key_file": str(file)}, pretty=False)
        return
    write_line(f"the operator key is new: {file}")
    write_line("the old one and its browser sessions no longer work; running control planes need no restart")
    if secret is not None:
        write_line("restart the control planes with it when it suits: until then, they warn that theirs is another one")
    elif connect is not None:
        write_line("copy the file to the data directories of the other control planes, for commands with --data there")
    write_line("give it to those who need it, or better: cert-ctrl plane operator add NAME --role admin")


@rotate.command("storage-key")
def rotate_storage_key(
    data: DataDirectory = "",
    database: DatabaseUrl = "",
    database_file: DatabaseFile = "",
    storage_key_file: StorageKeyFile = "",
    new_storage_key_file: Annotated[
        str,
        typer.Option(
            "--new-storage-key-file",
            metavar="FILE",
            help="The new key, if the present one is given from outside DIR: 32 random bytes in base64.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Replace the storage key of a stopped control plane.

    Seals all secrets in the database under a new key. Stop all control planes on the database first, and give them the
    new key before they start. Repeat it if it was interrupted: until then, none starts. The old key is kept, for
    backups.

    \b
    cert-ctrl plane rotate storage-key --data /var/lib/plane
    """
    given = given_keys(storage_key_file, "", os.environ)
    secret = read_secret(new_storage_key_file, "", {}, "the new storage key")
    directory, who, connect = _opened(data, database, database_file)
    with needed_modules("plane"):
        from certctrl.plane.access.on_disk import note
        from certctrl.plane.storage.data_dir import DataDir, GivenKey
        from certctrl.plane.storage.key_rotation import rotate as rotate_key

    noted = partial(note, who=who, action="storage-key.rotate")
    done = rotate_key(DataDir(directory, given), connect, noted, secret and GivenKey(*secret))
    if as_json:
        result = {"storage_key_file": str(done.key), "old_storage_key_file": str(done.old), "secrets": done.secrets}
        write_json(result, pretty=False)
        return
    write_line(f"sealed {counted(done.secrets, 'secret')} under the new key: {done.key}")
    write_line(
        f"earlier backups can be read only with the old key, {done.old}: keep it with them, or make a new backup "
        "and remove it"
    )
    if connect is not None:
        write_line("copy the new key to the other control planes before they start")


def _opened(data: str, database: str, database_file: str) -> tuple[Path, str, Any]:
    """Return the data directory, as whose owner this process then runs, who runs it, and what opens the database."""
    directory = data or os.environ.get("CERTCTRL_PLANE_DATA", "")
    if not directory:
        raise UsageError("no data directory for the control plane", fix="add --data DIR")
    connect, who = connector(database_address(database, database_file, os.environ), migrate=False), local_user()
    become_owner(directory)
    return Path(directory), who, connect
