"""``plane together``: certificates that are always renewed together, and batches that wait for certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.output import write_line
from certctrl.cli.plane.connection import OperatorApi, call_plane, show
from certctrl.cli.plane.paging import chosen, refuse_page
from certctrl.errors import UsageError


def together(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the set.")] = "",
    certificates: Annotated[
        list[str] | None, typer.Argument(metavar="[ID|DOMAIN...]", help="The certificates of the set.")
    ] = None,
    end: Annotated[bool, typer.Option("--end", help="End the set; its certificates stay.")] = False,
    dissolve: Annotated[
        str, typer.Option("--dissolve", metavar="BATCH", help="Deliver what a waiting batch has, one by one.")
    ] = "",
) -> None:
    """Make a set that is renewed together, or show sets.

    Without NAME, shows the sets and the waiting batches, or those that --match, --limit and --after choose.

    When one of a set is renewed, all are. Devices receive the new ones in one batch, once all are issued, and switch to
    all of them or to none. A failed order keeps its batch waiting: repeat it (plane orders retry), or dissolve the batch.

    \b
    cert-ctrl plane together --data /var/lib/plane shop 3 4 5
    cert-ctrl plane together --data /var/lib/plane shop --end
    cert-ctrl plane together --data /var/lib/plane --match shop
    """
    if bool(name) != bool(certificates or end) or (certificates and end) or (dissolve and name):
        raise UsageError("name a set and its certificates", fix="cert-ctrl plane together NAME ID ID...")
    if name or dissolve:
        refuse_page(ctx, "leave them out")

    async def request(api: OperatorApi) -> dict[str, Any]:
        if dissolve:
            await api.call("POST", f"batches/{dissolve}/dissolve", {})
        if name:
            ids = [await api.certificate(one) for one in certificates or ()]
            await api.call("POST", "certificate-sets", {"name": name, "cert_ids": ids})
        return {"sets": await api.call("GET", "certificate-sets"), "batches": await api.call("GET", "batches")}

    found = call_plane(ctx, request)
    rows = [*found["sets"], *found["batches"]]
    shown = chosen(ctx, rows, lambda row: str(row["name" if "name" in row else "id"]), lambda row: (_line(row),))
    parts = {kind: [row for row in found[kind] if row in shown] for kind in ("sets", "batches")}
    show(ctx, found | parts, lambda: _print(shown, "no row fits" if rows else "no sets, and no waiting batches"))


def _print(rows: Sequence[dict[str, Any]], none: str) -> None:
    for row in rows:
        write_line(_line(row))
    if not rows:
        write_line(none)


def _line(row: dict[str, Any]) -> str:
    if "name" in row:
        return f"set {row['name']}: certificates {', '.join(map(str, row['cert_ids']))}"
    waits = ", ".join(map(str, row["waiting_for"])) or "none"
    problem = f"; {row['problem']}" if row["problem"] else ""
    return f"batch {row['id']}, ordered {row['created_at']}: {row['state']}, missing certificates {waits}{problem}"
