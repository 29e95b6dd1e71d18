"""``plane audit``: list the changes that operators made."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from certctrl.cli.output import write_line
from certctrl.cli.plane.connection import OperatorApi, call_plane, show
from certctrl.cli.plane.listing import span
from certctrl.errors import UsageError
from certctrl.text import one_line

PATH = "/apiv1/audit"
_PAGE = 500
_COLUMNS = ("id", "at", "who", "via", "address", "action", "objects", "detail", "before", "after")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would run."""


def audit(
    ctx: typer.Context,
    who: Annotated[str, typer.Option("--who", metavar="NAME", help="Only changes by this operator.")] = "",
    what: Annotated[
        str,
        typer.Option("--what", metavar="ACTION", help="Only these changes: certificate, or certificate.revoke."),
    ] = "",
    device: Annotated[str, typer.Option("--device", metavar="ID|NAME", help="Only changes of this device.")] = "",
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Only from then on: 12h, 30d, or 2026-11-30T12:00:00Z.")
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Only until then, as --since.")] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="At most N entries; 0: all.")] = 100,
    before_id: Annotated[
        int, typer.Option("--before-id", metavar="ID", min=0, help="Only entries before this one: the next page.")
    ] = 0,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with the values before and after.")] = False,
) -> None:
    """List the changes that operators made, the newest first.

    Shows who changed what, when and from where; --json and --csv add the values before and after. Entries are kept for
    the days that plane serve --audit-days gives.

    \b
    cert-ctrl plane audit --data /var/lib/plane --since 7d --who alice
    cert-ctrl plane audit --data /var/lib/plane --what certificate.revoke
    cert-ctrl plane audit --data /var/lib/plane --limit 0 --csv > audit.csv
    """
    query = {"who": who, "what": what} | {
        name: str(int(moment(text, name))) for name, text in (("since", since), ("until", until)) if text
    }

    async def request(api: OperatorApi) -> list[dict[str, Any]]:
        of_device = {"device": str(await api.device(device))} if device else {}
        asked = {name: value for name, value in (query | of_device).items() if value}
        return await _entries(api, asked, limit, before_id)

    rows = call_plane(ctx, request)
    if as_csv:
        for line in _csv(rows):
            write_line(line)
        return
    show(ctx, rows, lambda: _lines(rows, limit))


async def _entries(api: OperatorApi, asked: Mapping[str, str], limit: int, before_id: int) -> list[dict[str, Any]]:
    """Return entries; a page may be shorter than requested, and only an empty one is the end."""
    rows: list[dict[str, Any]] = []
    while not limit or len(rows) < limit:
        most = min(_PAGE, limit - len(rows)) if limit else _PAGE
        last = rows[-1]["id"] if rows else before_id
        page = await api.call("GET", PATH, query={**asked, "limit": str(most), "before_id": str(last)})
        if not page:
            break
        rows += page
    return rows


def moment(text: str, name: str) -> float:
    """Return the seconds since the epoch of ``12h``, ``30d`` (before now), a date or an RFC 3339 time. Raises UsageError."""
    if text[-1:] in ("h", "d", "w"):
        return time_now() - span(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        fix = "use 12h, 30d, 2026-11-30 or 2026-11-30T12:00:00Z"
        raise UsageError(f"--{name} {text!r} is not a time", fix=fix) from None
    return max(0.0, (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def time_now() -> float:
    """Return seconds since the epoch."""
    from certctrl.agent.clock import wall_now

    return wall_now()


def _lines(rows: Sequence[dict[str, Any]], limit: int) -> None:
    """Print one line for each entry; its last part may be long, so it is not a table."""
    if not rows:
        write_line("no changes")
        return
    names = [one_line(row["who"]) + (f" ({one_line(row['via'])})" if row["via"] else "") for row in rows]
    who_width, what_width = max(map(len, names)), max(len(row["action"]) for row in rows)
    id_width = len(str(rows[0]["id"]))
    for row, name in zip(rows, names, strict=True):
        place = f"from {row['address']}" if row["address"] else ""
        about = ": ".join(part for part in (_objects(row["objects"]), _change(row)) if part)
        start = f"{row['id']:>{id_width}}  {row['at']}  {name:<{who_width}}  {row['action']:<{what_width}}"
        write_line("  ".join(part for part in (start, about, place) if part).rstrip())
    if limit and len(rows) == limit:
        write_line(f"older entries: --before-id {rows[-1]['id']}")


def _objects(objects: Sequence[dict[str, Any]]) -> str:
    named = [
        f"{each['kind']} {each['id']}" + (f" ({one_line(each['name'])})" if each["name"] else "") for each in objects
    ]
    return ", ".join(named[:2]) + (f" and {len(named) - 2} more" if len(named) > 2 else "")


def _change(row: Mapping[str, Any]) -> str:
    """Return the values that were changed, in short; otherwise what was requested."""
    found = []
    for each in row["objects"][:2]:
        for name in each["after"] if each["before"] else ():
            found.append(f"{name} {_short(each['before'].get(name))} -> {_short(each['after'][name])}")
    requested = [f"{name} {_short(value)}" for name, value in row["detail"].items()]
    return one_line("; ".join(found[:4] or requested[:4]), 160)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text or '""', 40)


def _csv(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of CSV; no cell contains a line break."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        objects = {f"{each['kind']} {each['id']}": each for each in row["objects"]}
        parts = [{key: each[side] for key, each in objects.items() if each[side]} for side in ("before", "after")]
        texts = [json.dumps(part, ensure_ascii=False) if part else "" for part in (row["detail"], *parts)]
        plain = [str(row[name]) for name in _COLUMNS[:6]]
        writer.writerow([_safe(cell) for cell in (*plain, ", ".join(objects), *texts)])
    return out.getvalue().rstrip("\n").split("\n")


def _safe(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
