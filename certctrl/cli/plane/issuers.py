"""``plane issuers``: the CAs that certificates come from, and the rules that choose one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from certctrl.cli.output import write_error, write_line
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, Yes, agreed, call_plane, show
from certctrl.cli.plane.documents import parsed_json
from certctrl.cli.plane.paging import ListCommand, refuse_page, show_list
from certctrl.cli.plane.secrets import refuse_readable
from certctrl.errors import ExitStatus, UsageError

issuers = typer.Typer(help="Manage the CAs and programs that issue certificates.", **GROUP)

_MAX_FILE_BYTES = 64 * 1024
_ISSUERS, _RULES = "/apiv1/issuers", "/apiv1/issuer-rules"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The issuer.")]


@issuers.command("add", cls=OperatorCommand)
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice, such as letsencrypt.")],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="acme or command.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, as JSON or plain text; may be repeated."),
    ] = None,
    settings_file: Annotated[
        str, typer.Option("--settings", metavar="FILE", help="Settings as a JSON object; -: stdin. --set wins.")
    ] = "",
    secrets: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="KEY=FILE", help="A secret, read from a file; -: stdin; may be repeated."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an issuer of this name; its other secrets stay.")
    ] = False,
) -> int:
    """Add an issuer, and check it.

    docs/issuers.md has the settings of each kind. Secrets are read from files, never from options. Exit status: 0 added
    and it works, 69 added, but it cannot issue at present.

    \b
    cert-ctrl plane issuers add --data /var/lib/plane le --kind acme \\
        --set directory_url=letsencrypt --set contact=admin@example.com \\
        --set terms_agreed=true --set 'challenges=[{"type": "plane-http"}]'
    """
    body = {
        "name": name,
        "kind": kind,
        "settings": _settings(settings_file, settings or ()),
        "secrets": _secrets(secrets or (), settings_file),
        "replace": replace,
    }

    async def request(api: OperatorApi) -> Any:
        await api.call("POST", _ISSUERS, body)
        return await api.call("POST", f"{_path(name)}/check")

    row = call_plane(ctx, request)
    show(ctx, row, f"added issuer {row['name']} ({row['kind']}){_facts_after(row)}")
    return _reported(row)


@issuers.command("list", cls=ListCommand)
def list_issuers(ctx: typer.Context) -> None:
    """Check and list all issuers.

    Shows health, last use, remaining limits and problems. Viewers see the list without the checks.

    \b
    cert-ctrl plane issuers list --data /var/lib/plane
    cert-ctrl plane issuers list --data /var/lib/plane --match acme
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", _ISSUERS, query={"check": "1"})

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        used = row["used_at"] or ""
        return row["name"], row["kind"], _health(row), used, _facts(row), row["problem"], row["fix"]

    heads = ("name", "kind", "health", "last use", "facts", "problem", "fix")
    show_list(ctx, call_plane(ctx, request), heads, cells, none="no issuers")


@issuers.command("show", cls=OperatorCommand)
def show_issuer(ctx: typer.Context, name: Name) -> None:
    """Show the settings of an issuer, and the names of its secrets.

    \b
    cert-ctrl plane issuers show --data /var/lib/plane le
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", _path(name))

    row = call_plane(ctx, request)

    def text() -> None:
        for key in ("name", "kind", "problem", "fix", "used_at", "updated_at"):
            if row[key]:
                write_line(f"{key.replace('_at', '')}: {row[key]}")
        for key, value in row["settings"].items():
            write_line(f"{key} = {json.dumps(value)}")
        for secret in row["secrets"]:
            write_line(f"secret {secret} is set")

    show(ctx, row, text)


@issuers.command("remove", cls=OperatorCommand)
def remove(ctx: typer.Context, name: Name, yes: Yes = False) -> int:
    """Remove an issuer and its secrets.

    Refused while a certificate or rule uses it. Asks for confirmation on a terminal. Exit status: 0 removed, 1 in use
    or not confirmed.

    \b
    cert-ctrl plane issuers remove --data /var/lib/plane le
    """
    if not agreed(ctx, f"Remove issuer {name} with its account and secrets?", yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        await api.call("DELETE", _path(name))
        return {"name": name}

    row = call_plane(ctx, request)
    show(ctx, row, f"removed issuer {name}")
    return ExitStatus.DONE


@issuers.command("check", cls=OperatorCommand)
def check(ctx: typer.Context, name: Name) -> int:
    """Check whether an issuer can issue now.

    Shows its remaining limits. Exit status: 0 it can, 69 it cannot.

    \b
    cert-ctrl plane issuers check --data /var/lib/plane le
    """
    return _ask(ctx, name, "check", done=f"issuer {name} works", failed=f"issuer {name} cannot issue")


@issuers.command("change-key", cls=OperatorCommand)
def change_key(ctx: typer.Context, name: Name) -> int:
    """Replace the key of an ACME issuer's account at its CA.

    Orders and certificates stay. If it is interrupted, the next use of the issuer completes it. Exit status: 0 changed,
    69 the CA cannot be reached or refuses.

    \b
    cert-ctrl plane issuers change-key --data /var/lib/plane le
    """
    done, failed = f"issuer {name} has a new account key", f"issuer {name} has no new account key"
    return _ask(ctx, name, "change-key", done=done, failed=failed)


@issuers.command("deactivate", cls=OperatorCommand)
def deactivate(ctx: typer.Context, name: Name, yes: Yes = False) -> int:
    """Deactivate an ACME issuer's account at its CA permanently.

    Its certificates stay valid, but can be neither renewed nor revoked by this issuer. Asks for confirmation on a
    terminal. Exit status: 0 deactivated, 1 not confirmed, 69 the CA cannot be reached or refuses.

    \b
    cert-ctrl plane issuers deactivate --data /var/lib/plane le
    """
    if not agreed(ctx, f"Permanently deactivate the account of issuer {name} at its CA?", yes=yes):
        return ExitStatus.FAILED
    account = f"the account of issuer {name} is"
    return _ask(ctx, name, "deactivate", done=f"{account} deactivated", failed=f"{account} not deactivated")


@issuers.command("rule", cls=ListCommand)
def rule(
    ctx: typer.Context,
    domain: Annotated[
        str, typer.Argument(metavar="[DOMAIN]", help="example.com, *.example.com, 192.0.2.0/24, or * for all others.")
    ] = "",
    issuer: Annotated[str, typer.Argument(metavar="[NAME]", help="The issuer of certificates for the domain.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the rule for the domain.")] = False,
) -> None:
    """List, set or remove rules that choose the issuer.

    A rule for a domain includes the names below it; the most specific rule counts. Without a rule, certificates come
    from the control plane's own CA. --match, --limit and --after choose the rules that are listed.

    \b
    cert-ctrl plane issuers rule --data /var/lib/plane example.com le
    cert-ctrl plane issuers rule --data /var/lib/plane '*' le
    cert-ctrl plane issuers rule --data /var/lib/plane --match example.com
    """
    if remove and (not domain or issuer):
        raise UsageError("--remove needs the domain of a rule, and no issuer", fix="add the domain alone")
    if domain and not issuer and not remove:
        raise UsageError("no issuer given", fix=f"cert-ctrl plane issuers rule {domain} NAME")
    if domain:
        refuse_page(ctx, "leave them out")

    async def request(api: OperatorApi) -> Any:
        if remove:
            await api.call("DELETE", _RULES, query={"domain": domain})
        elif domain:
            await api.call("POST", _RULES, {"domain": domain, "issuer": issuer})
        return await api.call("GET", _RULES)

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        return row["domain"], row["issuer"]

    show_list(ctx, call_plane(ctx, request), ("domain", "issuer"), cells, key="domain", none="no rules")


def _ask(ctx: typer.Context, name: str, action: str, *, done: str, failed: str) -> ExitStatus:
    """Have an issuer do something at its CA, print the result, and return the exit status."""

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", f"{_path(name)}/{action}")

    row = call_plane(ctx, request)
    show(ctx, row, f"{done if row['ok'] else failed}{_facts_after(row)}")
    return _reported(row)


def _path(name: str) -> str:
    return f"{_ISSUERS}/{quote(name, safe='')}"


def _health(row: dict[str, Any]) -> str:
    return "not checked" if "ok" not in row else "OK" if row["ok"] else "failed"


def _facts(row: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.get("facts", {}).items())


def _facts_after(row: dict[str, Any]) -> str:
    return f"; {_facts(row)}" if row.get("facts") else ""


def _reported(row: dict[str, Any]) -> ExitStatus:
    """Print the problem of a checked issuer; return the exit status."""
    if row["ok"]:
        return ExitStatus.DONE
    write_error(f"problem: {row['problem']}")
    if row["fix"]:
        write_error(f"fix: {row['fix']}")
    return ExitStatus.UNAVAILABLE


def _settings(file: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a file and of options. Raises UsageError."""
    found: dict[str, Any] = {}
    if file:
        try:
            found = parsed_json(_read(file, "the settings", secret=False))
        except ValueError as error:
            raise UsageError(f"{file} is not JSON: {error}", fix="correct the file") from None
        if not isinstance(found, dict):
            raise UsageError(f"{file} does not contain a JSON object", fix='write {"directory_url": …}')
    for setting in given:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting!r} is not KEY=VALUE", fix="use for example --set terms_agreed=true")
        try:
            found[key] = parsed_json(value)
        except ValueError:
            found[key] = value
    return found


def _secrets(given: Sequence[str], settings_file: str) -> dict[str, str]:
    """Return secrets in base64. Raises UsageError for unusable files, and for those that others can read."""
    import base64

    found = {}
    for secret in given:
        key, equals, file = secret.partition("=")
        if not equals or not key or not file:
            raise UsageError("--secret is not KEY=FILE", fix="name a file that contains the secret, or - for stdin")
        if file == "-" and ("-" in (settings_file, *(one.partition("=")[2] for one in given if one != secret))):
            raise UsageError("stdin can be read once only", fix="use files")
        data = _read(file, f"the secret {key}", secret=True)
        found[key] = base64.b64encode(data.removesuffix(b"\n")).decode()
    return found


def _read(file: str, what: str, *, secret: bool) -> bytes:
    """Return a file's content. Messages about secrets do not contain its name, which may be the secret by mistake."""
    shown = what if secret else f"{what} in {file}"
    try:
        with open(0 if file == "-" else Path(file), "rb", closefd=file != "-") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            data = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {shown}: {error.strerror}", fix="name a readable file") from None
    if secret:
        refuse_readable(mode, f"the file of {what}", file)
    if len(data) > _MAX_FILE_BYTES or not data:
        size = "empty" if not data else f"larger than {_MAX_FILE_BYTES} bytes"
        raise UsageError(f"the file of {what} is {size}", fix="name another file")
    return data
