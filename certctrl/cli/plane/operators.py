"""``plane operator`` and ``plane token``: who may operate the control plane, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from certctrl.cli.output import write_error
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, Yes, agreed, call_plane, show
from certctrl.cli.plane.listing import span
from certctrl.cli.plane.paging import ListCommand, show_list
from certctrl.errors import ExitStatus, UsageError
from certctrl.text import one_line

operator = typer.Typer(help="Add, list, change and delete operators.", **GROUP)
token = typer.Typer(help="Create, list and revoke API tokens of operators.", **GROUP)

_OPERATORS, _TOKENS = "/apiv1/operators", "/apiv1/operator-tokens"


class RoleName(StrEnum):
    """The roles of operators, the least first."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


Name = Annotated[str, typer.Argument(metavar="NAME", help="The operator.")]
NewRole = Annotated[RoleName, typer.Argument(metavar="ROLE", help="viewer, operator or admin.")]


@operator.command(cls=OperatorCommand)
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, such as alice or alice@example.com.")],
    role: Annotated[RoleName, typer.Option("--role", metavar="ROLE", help="viewer, operator or admin.")],
) -> None:
    """Add an operator.

    A viewer reads everything except secrets. An operator also changes devices, certificates and orders. An admin also
    changes issuers, CAs, users, operators and tokens.

    \b
    cert-ctrl plane operator add --data /var/lib/plane alice --role admin
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", _OPERATORS, {"name": name, "role": role.value})

    row = call_plane(ctx, request)
    show(
        ctx,
        row,
        f"operator {row['name']} is {row['role']}; next: cert-ctrl plane token create NAME --operator {row['name']}",
    )


@operator.command("list", cls=ListCommand)
def list_operators(ctx: typer.Context) -> None:
    """List the operators.

    \b
    cert-ctrl plane operator list --data /var/lib/plane
    cert-ctrl plane operator list --data /var/lib/plane --match admin
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", _OPERATORS)

    rows = call_plane(ctx, request)
    heads = ("name", "role", "status", "valid tokens", "token last used", "last sign-in", "created")
    names = ("name", "role", "status", "tokens", "last_used_at", "last_sign_in_at", "created_at")

    def cells(row: Mapping[str, Any]) -> list[str]:
        return ["never" if row.get(name) is None else str(row[name]) for name in names]

    show_list(ctx, rows, heads, cells, none="no operators: only the operator key")


@operator.command(cls=OperatorCommand)
def role(ctx: typer.Context, name: Name, new_role: NewRole) -> None:
    """Change the role of an operator.

    It applies immediately, also to existing tokens: a token never has more than the role of its operator.

    \b
    cert-ctrl plane operator role --data /var/lib/plane alice viewer
    """
    row = _change(ctx, name, {"role": new_role.value})
    show(ctx, row, f"operator {row['name']} is {row['role']}")


@operator.command(cls=OperatorCommand)
def disable(ctx: typer.Context, name: Name) -> None:
    """Disable an operator.

    Their tokens stop working immediately, and their browser sessions end.

    \b
    cert-ctrl plane operator disable --data /var/lib/plane alice
    """
    row = _change(ctx, name, {"disabled": True})
    show(ctx, row, f"operator {row['name']} is disabled")


@operator.command(cls=OperatorCommand)
def enable(ctx: typer.Context, name: Name) -> None:
    """Enable an operator again, with the tokens that have not expired.

    \b
    cert-ctrl plane operator enable --data /var/lib/plane alice
    """
    row = _change(ctx, name, {"disabled": False})
    show(ctx, row, f"operator {row['name']} is enabled, with {row['tokens']} valid tokens")


@operator.command(cls=OperatorCommand)
def delete(ctx: typer.Context, name: Name, yes: Yes = False) -> int:
    """Delete an operator with all tokens; the audit log keeps the name.

    Asks for confirmation on a terminal. Exit status: 0 deleted, 1 not confirmed.

    \b
    cert-ctrl plane operator delete --data /var/lib/plane alice
    """
    if not agreed(ctx, f"Delete operator {name} with all tokens?", yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        await api.call("DELETE", f"{_OPERATORS}/{quote(name, safe='')}")
        return {"name": name, "status": "deleted"}

    show(ctx, call_plane(ctx, request), f"operator {one_line(name)} is deleted")
    return ExitStatus.DONE


def _change(ctx: typer.Context, name: str, fields: dict[str, Any]) -> Any:
    async def request(api: OperatorApi) -> Any:
        return await api.call("PATCH", f"{_OPERATORS}/{quote(name, safe='')}", fields)

    return call_plane(ctx, request)


# --- tokens -----------------------------------------------------------------------------------------------------------


@token.command(cls=OperatorCommand)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the token is for, such as laptop or ci.")],
    of: Annotated[str, typer.Option("--operator", metavar="NAME", help="The operator who acts with it.")],
    expires_in: Annotated[
        str, typer.Option("--expires-in", metavar="TIME", help="Validity: 12h, 30d, 4w; at most 366d.")
    ],
    token_role: Annotated[
        RoleName | None,
        typer.Option("--role", metavar="ROLE", help="At most the role of the operator; default: always the same."),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Only for devices with this tag; if repeated, with all of the tags."),
    ] = None,
) -> None:
    """Create and print an API token of an operator.

    It cannot be shown again. Commands use it with --token-file; it also signs in on the approval page, unless it has tags.

    With --tag, it sees and changes only devices with these tags, and what only such devices have. It has at most the role
    operator.

    \b
    cert-ctrl plane token create --data /var/lib/plane laptop \\
        --operator alice --expires-in 90d > token
    chmod 0600 token
    cert-ctrl plane token create --data /var/lib/plane ci \\
        --operator alice --expires-in 30d --tag env=prod > ci-token
    """
    seconds = span(expires_in)

    async def request(api: OperatorApi) -> Any:
        body = {"operator": of, "name": name, "expires_in": seconds} | (
            {"role": token_role.value} if token_role else {}
        )
        if tags:
            await _require_scopes(api)
            body |= {"tags": tags}
        return await api.call("POST", _TOKENS, body)

    row = call_plane(ctx, request)
    only = f", for devices with {' and '.join(row['tags'])}" if tags else ""
    write_error(
        f"token {row['id']} ({row['name']}) of {row['operator']}, {row['role']}{only}, until {row['expires_at']}"
    )
    show(ctx, row, row["token"])


@token.command("list", cls=ListCommand)
def list_tokens(
    ctx: typer.Context,
    of: Annotated[str, typer.Option("--operator", metavar="NAME", help="Only tokens of this operator.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="Also those that ended in the last 90 days.")] = False,
) -> None:
    """List the tokens, without their texts.

    \b
    cert-ctrl plane token list --data /var/lib/plane --operator alice
    cert-ctrl plane token list --data /var/lib/plane --match env=prod --limit 20
    """

    async def request(api: OperatorApi) -> Any:
        found = await api.call("GET", _TOKENS, query={"operator": of} if of else {})
        return [row for row in found if all_ or row["status"] in ("valid", "disabled")]

    rows = call_plane(ctx, request)
    names = ("id", "name", "operator", "role", "tags", "status", "expires_at", "last_used_at", "last_address")
    heads = ("id", "name", "operator", "role", "devices", "status", "expires", "last used", "from")

    def cells(row: Mapping[str, Any]) -> list[str]:
        shown = {**row, "tags": " ".join(row.get("tags") or ["all"])}
        return ["never" if shown[name] is None else one_line(str(shown[name])) for name in names]

    show_list(ctx, rows, heads, cells, key="id", none="no tokens")


@token.command(cls=OperatorCommand)
def revoke(
    ctx: typer.Context,
    token_id: Annotated[
        str, typer.Argument(metavar="ID|NAME", help="The token; a name only if one valid token has it.")
    ],
) -> None:
    """Revoke a token, with the browser sessions that it opened.

    \b
    cert-ctrl plane token revoke --data /var/lib/plane 3
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("DELETE", f"{_TOKENS}/{await _token_id(api, token_id)}")

    row = call_plane(ctx, request)
    show(ctx, row, f"token {row['id']} ({row['name']}) of {row['operator']} is revoked")


async def _require_scopes(api: OperatorApi) -> None:
    """Raise UsageError if the control plane knows no tags of tokens: it would create one for all devices."""
    if "tags" not in await api.call("GET", "/apiv1/whoami"):
        raise UsageError("this control plane is too old for tokens with tags", fix="update it first")


async def _token_id(api: OperatorApi, named: str) -> int:
    if named.isascii() and named.isdigit():
        return int(named)
    found = [row for row in await api.call("GET", _TOKENS) if row["name"] == named and row["status"] != "revoked"]
    if len(found) != 1:
        fix = "cert-ctrl plane token list --all shows the ids"
        what = f"{len(found)} tokens are named" if found else "no token is named"
        raise UsageError(f"{what} {one_line(named, 60)!r}", fix=fix)
    return int(found[0]["id"])


def whoami(ctx: typer.Context) -> None:
    """Show the operator as whom commands act, role and tags.

    \b
    cert-ctrl plane whoami --token-file token --ca ca.pem \\
        --server https://plane.example.com:8443
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", "/apiv1/whoami")

    row = call_plane(ctx, request)
    via = f", by {row['via']}" if row["via"] else ""
    only = f", for devices with {' and '.join(row['tags'])}" if row.get("tags") else ""
    show(ctx, row, f"{row['who']}, {row['role']}{via}{only}, from {row['address'] or 'an unknown address'}")
