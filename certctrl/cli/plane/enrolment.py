"""``plane enrolment-token``: create, list and end tokens for unattended registration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.plane.connection import OperatorApi, call_plane, show
from certctrl.cli.plane.listing import validity
from certctrl.cli.plane.paging import refuse_page, show_list
from certctrl.cli.plane.tags import NewTags
from certctrl.errors import UsageError
from certctrl.text import one_line


def enrolment_token(
    ctx: typer.Context,
    uses: Annotated[int, typer.Option("--uses", metavar="N", min=0, help="Maximum devices; 0: unlimited.")] = 1,
    expires_in: Annotated[
        str, typer.Option("--expires-in", metavar="TIME", help="Validity of the token: 12h, 30d, 4w, or seconds.")
    ] = "24h",
    label: Annotated[str, typer.Option("--label", metavar="TEXT", help="Note on its purpose.")] = "",
    tag: NewTags = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the valid tokens instead, with --label and --tag only such ones.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="With --list: also those that have ended.")] = False,
    end: Annotated[
        int | None, typer.Option("--end", metavar="ID", min=1, help="End this token instead; its devices stay.")
    ] = None,
) -> None:
    """Create and print a token for unattended registration.

    It cannot be shown again. --list shows who could still register, without the texts of the tokens, and --end ends one.
    --match, --limit and --after are for --list.

    \b
    cert-ctrl plane enrolment-token --data /var/lib/plane --tag web --uses 20 \\
        --expires-in 12h > token
    cert-ctrl plane enrolment-token --data /var/lib/plane --list --match web
    cert-ctrl plane enrolment-token --data /var/lib/plane --end 7
    """
    if end is not None and (listed or label or tag):
        raise UsageError("--end does not go with --list, --label and --tag", fix="leave them out")
    if all_ and not listed:
        raise UsageError("--all is for --list", fix="add --list")
    if listed:
        _list(ctx, label, tag or (), with_ended=all_)
        return
    refuse_page(ctx, "add --list")
    if end is not None:
        call_plane(ctx, lambda api: api.call("DELETE", f"enrolment-tokens/{end}"))
        show(ctx, {"id": end, "status": "ended"}, f"enrolment token {end} is ended; devices that it let in stay")
        return
    seconds = validity(expires_in)

    async def request(api: OperatorApi) -> Any:
        fields = {"uses": uses or None, "expires_in": seconds, "label": label, "tags": tag or []}
        return await api.operator.create_enrolment_token(api.user, **fields)

    row = call_plane(ctx, request)
    show(ctx, row, row["token"])


def _list(ctx: typer.Context, label: str, tags: Sequence[str], *, with_ended: bool) -> None:
    async def request(api: OperatorApi) -> list[dict[str, Any]]:
        now = await api.time()
        rows = await api.operator.fetch_list(api.user, "enrolment-tokens")
        rows = [row | {"status": _status(row, now)} for row in rows if label in ("", row["label"])]
        return [row for row in rows if set(tags) <= set(row["tags"]) and (with_ended or row["status"] == "valid")]

    rows = call_plane(ctx, request)
    heads = ("id", "label", "tags", "devices", "status", "created", "expires")
    show_list(ctx, rows, heads, _cells, key="id", none="no enrolment tokens")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["id"]),
        one_line(row["label"]),
        ", ".join(row["tags"]),
        f"{row['uses']} of {row['max_uses'] or 'any number'}",
        row["status"],
        row["created_at"],
        row["expires_at"],
    )


def _status(row: dict[str, Any], now: str) -> str:
    """Return whether a token can register a device at a time."""
    if row["ended_at"]:
        return "ended"
    if row["expires_at"] <= now:
        return "expired"
    return "used up" if row["max_uses"] and row["uses"] >= row["max_uses"] else "valid"
