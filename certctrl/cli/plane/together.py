"""``plane together``: certificates that are always renewed together, and batches that wait for certificates."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from certctrl.cli.output import write_line
from certctrl.cli.plane.connection import OperatorApi, call_plane, show
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

    Without NAME, shows the sets and the waiting batches.

    When one of a set is renewed, all are. Devices receive the new ones in one batch, once all are issued, and switch to
    all of them or to none. A failed order keeps its batch waiting: repeat it (plane orders retry), or dissolve the batch.

    \b
    cert-ctrl plane together --data /var/lib/plane shop 3 4 5
    cert-ctrl plane together --data /var/lib/plane shop --end
    cert-ctrl plane together --data /var/lib/plane
    """
    if bool(name) != bool(certificates or end) or (certificates and end) or (dissolve and name):
        raise UsageError("name a set and its certificates", fix="cert-ctrl plane together NAME ID ID...")

    async def request(api: OperatorApi) -> dict[str, Any]:
        if dissolve:
            await api.call("POST", f"batches/{dissolve}/dissolve", {})
        if name:
            ids = [await api.certificate(one) for one in certificates or ()]
            await api.call("POST", "certificate-sets", {"name": name, "cert_ids": ids})
        return {"sets": await api.call("GET", "certificate-sets"), "batches": await api.call("GET", "batches")}

    found = call_plane(ctx, request)
    show(ctx, found, lambda: _print(found))


def _print(found: dict[str, Any]) -> None:
    for one in found["sets"]:
        write_line(f"set {one['name']}: certificates {', '.join(map(str, one['cert_ids']))}")
    for one in found["batches"]:
        waits = ", ".join(map(str, one["waiting_for"])) or "none"
        problem = f"; {one['problem']}" if one["problem"] else ""
        write_line(
            f"batch {one['id']}, ordered {one['created_at']}: {one['state']}, missing certificates {waits}{problem}"
        )
    if not found["sets"] and not found["batches"]:
        write_line("no sets, and no waiting batches")
