"""The database of a control plane on the command line: its URL, where its password comes from, and what moves,
copies and restores it."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import typer

from certctrl.cli.output import write_json, write_line
from certctrl.cli.owner import become_owner
from certctrl.cli.plane.secrets import OperatorKeyFile, StorageKeyFile, given_keys, read_secret
from certctrl.errors import ConfigError, UsageError, install_extra
from certctrl.text import counted

_SCHEMES = ("postgresql", "postgres")
_EXAMPLE = "postgresql://USER@HOST/DATABASE"
CREDENTIAL = "certctrl-database"
"""Name of the systemd credential with the password or the whole URL."""

DatabaseUrl = Annotated[
    str,
    typer.Option("--database", metavar="URL", help=f"PostgreSQL database, {_EXAMPLE}; default: a file in DIR."),
]
ListenDatabaseUrl = Annotated[
    str,
    typer.Option(
        "--listen-database",
        metavar="URL",
        help="The PostgreSQL server itself, for notifications, if --database is a pooler such as PgBouncer in "
        "transaction mode.",
    ),
]
DatabaseFile = Annotated[
    str,
    typer.Option(
        "--database-file",
        metavar="FILE",
        help=f"File with the password, or with the whole URL; default: the systemd credential {CREDENTIAL}, then "
        "libpq's password file.",
    ),
]

DataDirectory = Annotated[
    str,
    typer.Option("--data", metavar="DIR", help="Data directory of the control plane; default: CERTCTRL_PLANE_DATA."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]


class DatabaseAddress(NamedTuple):
    """Where the database is."""

    url: str
    password: str | None
    """None: in the URL, or libpq finds it."""
    listen_url: str = ""
    """The server itself, if ``url`` is that of a pooler."""

    def __repr__(self) -> str:
        return "DatabaseAddress(…)"


def database_address(url: str, file: str, environ: Mapping[str, str], listen_url: str = "") -> DatabaseAddress | None:
    """Return the database of the options and the credential; None: the one in the data directory.

    Raises UsageError for a URL that is not one or contains a password, and ConfigError for an unusable file.
    """
    for option, text in (("--database", url), ("--listen-database", listen_url)):
        if text:
            _check_url(option, text)
    found = _address(url, file, environ)
    if listen_url and found is None:
        raise UsageError("--listen-database, but no database is given", fix=f"add --database {_EXAMPLE}")
    return found and found._replace(listen_url=listen_url)


def _address(url: str, file: str, environ: Mapping[str, str]) -> DatabaseAddress | None:
    found = read_secret(file, CREDENTIAL, environ, "the password or the URL")
    secret = found.text if found else ""
    if "://" in secret:
        if url:
            raise UsageError("two databases are given", fix="give either --database or a file with the whole URL")
        if secret.partition("://")[0] not in _SCHEMES:
            raise ConfigError("contains a URL that is not PostgreSQL's", file=file or CREDENTIAL, fix=f"use {_EXAMPLE}")
        return DatabaseAddress(secret, None)
    if not url and secret:
        raise UsageError("a password, but no database is given", fix=f"add --database {_EXAMPLE}")
    return DatabaseAddress(url, secret or None) if url else None


def _check_url(option: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        raise UsageError(f"{option} is not a URL", fix=f"use {_EXAMPLE}") from None
    if secret:
        raise UsageError(
            f"{option} contains a password, which all users of this machine can read",
            fix="remove it, write it to a file of mode 0600, and add --database-file FILE",
        )
    if parts.scheme not in _SCHEMES:
        raise UsageError(f"{option} {url!r} is not a PostgreSQL URL", fix=f"use {_EXAMPLE}")


@contextlib.contextmanager
def needed_modules(extra: str) -> Iterator[None]:
    """Turn a missing module into ConfigError with the extra that installs it, and a missing libpq likewise."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"the Python module {error.name} is not installed", fix=install_extra(extra)) from None
    except ImportError as error:  # of psycopg, which has several lines about each way to find libpq
        what = f"psycopg cannot be used: {str(error).strip().partition(chr(10))[0]}"
        raise ConfigError(what, fix="install libpq, such as Debian's libpq5") from None


def connector(
    address: DatabaseAddress | None, *, migrate: bool = True, again: Callable[[], DatabaseAddress | None] | None = None
) -> Callable[[], Any] | None:
    """Return the function that opens a database; None: the one in the data directory.

    ``migrate``: update its schema first. ``again`` returns the current address, whose password new connections use.
    """
    if address is None:
        return None
    with needed_modules("plane-postgres"):
        from certctrl.plane.storage.postgres import PostgresDatabase
    url, password, listen_url = address

    def read_again() -> tuple[str, str | None]:
        url, password, _ = (again and again()) or address
        return url, password

    return lambda: PostgresDatabase(
        url, password=password, listen_url=listen_url, migrate=migrate, read_again=again and read_again
    )


def migrate_to(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="[URL]", help=f"The database, {_EXAMPLE}.")] = "",
    data: DataDirectory = "",
    database_file: DatabaseFile = "",
    as_json: AsJson = False,
) -> None:
    """Move a stopped control plane's data to PostgreSQL.

    Moves them from DIR to an empty database. All ids, tokens and cursors stay the same, so agents are not affected.
    Afterwards, serve the data with --database; DIR keeps the keys and an unused copy.

    \b
    cert-ctrl plane migrate-to postgresql://plane@db.example.com/plane \\
        --data /var/lib/plane
    """
    connect = connector(database_address(url, database_file, os.environ))
    if connect is None:
        raise UsageError("no database is given", fix=f"add {_EXAMPLE}")
    who, directory = local_user(), _owned(data)
    from certctrl.plane.access.on_disk import note
    from certctrl.plane.storage.data_dir import DataDir
    from certctrl.plane.storage.moving import move

    moved = move(DataDir(directory), connect, partial(note, who=who, action="plane.migrate"))
    if as_json:
        write_json(moved._asdict(), pretty=False)
    else:
        devices, certificates = counted(moved.devices, "device"), counted(moved.certificates, "certificate")
        write_line(f"moved {devices}, {certificates} and {counted(moved.signals, 'signal')}")
        write_line("serve them with plane serve --data DIR --database URL")


def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write; it must not exist.")],
    data: DataDirectory = "",
    database: DatabaseUrl = "",
    database_file: DatabaseFile = "",
    as_json: AsJson = False,
) -> None:
    """Write all data of a control plane to one file.

    It may serve meanwhile. Restoring the file requires storage.key: keep both, in separate places. Private keys in the
    file are sealed with that key; names, hosts and install configs are readable.

    \b
    cert-ctrl plane backup /backup/plane-$(date +%F).db --data /var/lib/plane
    cert-ctrl plane backup plane.db --data /var/lib/plane \\
        --database postgresql://plane@db.example.com/plane
    """
    connect = connector(database_address(database, database_file, os.environ))
    root = _owned(data)
    from certctrl.plane.clock import wall_now
    from certctrl.plane.storage.backup import back_up
    from certctrl.plane.storage.data_dir import DataDir

    directory = DataDir(root)
    contents = back_up(directory, Path(file), now=wall_now(), connect=connect)
    if as_json:
        write_json(contents._asdict(), pretty=False)
    else:
        write_line(f"{file}: {counted(contents.devices, 'device')}, {counted(contents.certificates, 'certificate')}")
        write_line(f"also keep {directory.storage_key} and {directory.operator_key}, in another place")


def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file that plane backup has written.")],
    data: DataDirectory = "",
    database: DatabaseUrl = "",
    database_file: DatabaseFile = "",
    storage_key_file: StorageKeyFile = "",
    operator_key_file: OperatorKeyFile = "",
    old_storage_key_file: Annotated[
        str,
        typer.Option(
            "--old-storage-key-file",
            metavar="FILE",
            help="The storage key of the backup, if it was replaced since: such as storage.key.old.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Restore a stopped control plane from a backup.

    Replaces all of its data. The directory must contain the storage.key of the backup, unless one is given. Every agent
    compares its host with the control plane at its next poll and keeps what is in use. Changes since the backup are
    lost: repeat revocations, and register new devices again.

    \b
    cert-ctrl plane restore /backup/plane-2026-11-29.db --data /var/lib/plane
    """
    connect = connector(database_address(database, database_file, os.environ))
    keys = given_keys(storage_key_file, operator_key_file, os.environ)
    old = read_secret(old_storage_key_file, "", {}, "the storage key of the backup")
    who, root = local_user(), _owned(data)
    from certctrl.plane.access.on_disk import note
    from certctrl.plane.clock import rfc3339, wall_now
    from certctrl.plane.storage.backup import BEFORE_RESTORE
    from certctrl.plane.storage.backup import restore as restore_backup
    from certctrl.plane.storage.data_dir import DataDir, GivenKey

    directory, old_key = DataDir(root, keys), old and GivenKey(*old)
    noted = partial(note, who=who, action="plane.restore", file=file)
    contents = restore_backup(directory, Path(file), now=wall_now(), connect=connect, note=noted, old_key=old_key)
    if as_json:
        write_json(contents._asdict(), pretty=False)
        return
    taken = f" of {rfc3339(contents.taken_at)}" if contents.taken_at else ""
    devices, certificates = counted(contents.devices, "device"), counted(contents.certificates, "certificate")
    write_line(f"restored {devices} and {certificates}{taken}")
    if connect is None and (kept := directory.root / BEFORE_RESTORE).exists():
        write_line(f"the replaced data are in {kept}")
    write_line("start the control plane; revoke again what was revoked since the backup, operator tokens included")


def _owned(data: str) -> Path:
    """Become the owner of the data directory and return it. Raises UsageError without one, ConfigError, DiskError."""
    directory = data or os.environ.get("CERTCTRL_PLANE_DATA", "")
    if not directory:
        raise UsageError("no data directory for the control plane", fix="add --data DIR")
    become_owner(directory)
    return Path(directory)


def local_user() -> str:
    """Return who runs this command, for the audit log: the user who became root, if sudo says so."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    sudo = os.environ.get("SUDO_USER", "") if os.getuid() == 0 else ""
    return f"{f'{sudo} as ' if sudo.isprintable() and 0 < len(sudo) <= 64 else ''}{name} on {socket.gethostname()}"
