"""``keystore-password``: set the password of a certificate's keystores."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.errors import UsageError

if TYPE_CHECKING:
    from certctrl.store.state.installed import InstalledState

STDIN = "-"
MAX_BYTES = 4096


class Kind(StrEnum):
    """Keystores that share a password."""

    PFX = "pfx"
    JKS = "jks"


def keystore_password(
    ctx: typer.Context,
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="A domain name of the certificate.")],
    kind: Annotated[
        Kind, typer.Option("--format", help="pfx: bundle.pfx and bundle-legacy.pfx; jks: bundle.jks.")
    ] = Kind.PFX,
    from_file: Annotated[
        str | None,
        typer.Option("--from-file", metavar="FILE", help="File with the password on one line; -: standard input."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print name and file as JSON.")] = False,
) -> None:
    """Set the password of a certificate's keystores.

    Without --from-file, prompts for it twice on the terminal. It is never read from the command line or the
    environment, which other users could see. Without this command, the agent generates a password at the first
    delivery. `apply` makes the keystores again and runs the commands of their items; `plan` shows it before.

    Before the first delivery, NAME is the primary domain of the certificate to come.

    \b
    cert-ctrl -c /etc/cert-ctrl keystore-password --domain www.example.com
    cert-ctrl -c /etc/cert-ctrl keystore-password --domain www.example.com \\
        --format jks --from-file password.txt
    """
    from certctrl.install.material.formats import password_fault
    from certctrl.store.disk.fs import RealFs
    from certctrl.store.state.installed import InstalledState

    password = _prompted() if from_file is None else _read(from_file)  # before root becomes the owner of the directory
    if fault := password_fault(kind, password):
        raise UsageError(f"the password {fault}", fix="choose another one")
    invoked = invocation(ctx)
    store = InstalledState(invoked.layout(), RealFs())
    name, here = _name(store, domain)
    path = store.set_password(name, kind, password)
    if as_json:
        write_json({"name": name, "format": kind.value, "file": str(path), "delivered": here})
    elif here:
        write_line(f"Password of the {kind} keystores of {name} stored")
        write_line(invoked.with_directory("next: cert-ctrl -c DIR apply"))
    else:
        write_line(f"No certificate {name} on this host yet; its first {kind} keystore gets this password")


def _name(store: InstalledState, domain: str) -> tuple[str, bool]:
    """Return the directory name of a certificate, and whether it is on this host."""
    from certctrl.agent.operations import record_for
    from certctrl.store.layout import safe_name
    from certctrl.text import ascii_name

    try:
        return record_for(store.load_certificates().values(), domain).name, True
    except UsageError:
        return safe_name(ascii_name(domain)), False


def _prompted() -> str:
    if not sys.stdin.isatty():
        fix = "add --from-file FILE, or --from-file - to read standard input"
        raise UsageError("no password given, and stdin is not a terminal", fix=fix)
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


def _read(source: str) -> str:
    """Return the line of a file, without its end."""
    import os
    import stat

    try:
        with open(sys.stdin.fileno() if source == STDIN else source, "rb", closefd=source != STDIN) as file:
            data = file.read(MAX_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"cannot read --from-file {source}: {error.strerror}", fix="give a readable file") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        write_error(f"warning: other users can read {source}; see chmod 0600")
    if len(data) > MAX_BYTES:
        raise UsageError(f"{source} has more than {MAX_BYTES} bytes", fix="give a file with one line")
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError(f"{source} is not text in UTF-8", fix="give a file with one line") from None
