"""``plane causes``, and the lists of devices and certificates by state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from certctrl import lean
from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.connection import OperatorApi, call_plane, show
from certctrl.cli.plane.paging import chosen
from certctrl.errors import PlaneError, UsageError
from certctrl.model.csv_rows import (
    CAUSE_COLUMNS,
    CERTIFICATE_COLUMNS,
    DEVICE_COLUMNS,
    csv_lines,
    flat_cause,
    flat_device,
)
from certctrl.text import counted

_PAGE = 50
_WHOLE_PAGE = 500
_MOST_ROWS = 1_000_000

States = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="Only those in this state; may be repeated: any of them."),
]
OfReason = Annotated[
    str, typer.Option("--reason", metavar="REASON", help="Only those with this reason, as plane causes shows it.")
]
Search = Annotated[
    str,
    typer.Option(
        "--search",
        metavar="TEXT",
        help="Only those with this in their name, or web-*; of devices also a certificate or address.",
    ),
]
Sort = Annotated[
    str,
    typer.Option("--sort", metavar="ORDER", help="worst (default), ends, name or id; of devices also contact."),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, max=500, help="Rows of a page; default: 50.")]
After = Annotated[
    str, typer.Option("--after", metavar="PLACE", help="Continue there: the place that the page before ended with.")
]
Csv = Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")]


@lean.frozen
class Wanted:
    """Which rows are wanted, and how."""

    query: Mapping[str, str]
    csv: bool


def wanted_rows(
    states: Sequence[str] | None, reason: str, search: str, sort: str, limit: int | None, after: str, *, csv: bool
) -> Wanted | None:
    """Return what these options ask for; None if none of them is given."""
    found = {"state": ",".join(states or ()), "reason": reason, "q": search, "sort": sort, "after": after}
    query = {name: value for name, value in found.items() if value} | ({} if limit is None else {"limit": str(limit)})
    return Wanted(query, csv) if query or csv else None


def causes(ctx: typer.Context, csv: Csv = False) -> None:
    """List what needs you, by cause, the worst first.

    Hosts that fail alike are one row: how many devices and certificates, since when, what ends first, an example with its
    message, and what to do. --reason of plane devices lists the devices of one.

    \b
    cert-ctrl plane causes --data /var/lib/plane
    cert-ctrl plane causes --data /var/lib/plane --match disk --limit 10
    """
    answer = call_plane(ctx, lambda api: _call(api, "causes", {}))
    rows = chosen(ctx, answer["causes"], lambda row: str(row["id"]), _cause_lines)
    if csv:
        _write_csv((flat_cause(row) for row in rows), CAUSE_COLUMNS)
        return
    show(ctx, answer | {"causes": rows}, lambda: _causes(answer, rows))


Fits = Callable[[Mapping[str, Any], str], bool]
"""Returns whether a row fits at the control plane's time, by what its lists cannot be asked for."""


def show_rows(
    ctx: typer.Context, kind: str, wanted: Wanted, tags: Sequence[str] | None, fits: Fits | None = None
) -> None:
    """Print a page of ``devices`` or ``certificates``, or all rows as CSV; only those that fit."""
    query = {"limit": str(_PAGE)} | dict(wanted.query) | ({"tag": ",".join(tags)} if tags else {})
    if wanted.csv:
        rows = call_plane(ctx, lambda api: _all_rows(api, kind, query, fits))
        columns = DEVICE_COLUMNS if kind == "devices" else CERTIFICATE_COLUMNS
        _write_csv((flat_device(row) if kind == "devices" else row for row in rows), columns)
        return
    answer = call_plane(ctx, lambda api: _call(api, kind, query) if fits is None else _fitting(api, kind, query, fits))
    show(ctx, answer, lambda: _rows(kind, answer))


async def _call(api: OperatorApi, kind: str, query: Mapping[str, str]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = await api.call("GET", f"fleet/{kind}", query=query)
    except PlaneError as error:
        if error.status == 404 and not await _has_fleet(api):
            raise UsageError("this control plane is older and does not know states", fix="update it") from None
        raise
    return answer


async def _has_fleet(api: OperatorApi) -> bool:
    """Return whether the control plane knows the path, so that the user is unknown."""
    try:
        await api.call("GET", "/apiv1/users/1/fleet/causes")
    except PlaneError as error:
        return error.status != 404
    return True


async def _pages(
    api: OperatorApi, kind: str, query: Mapping[str, str]
) -> list[tuple[Mapping[str, str], dict[str, Any]]]:
    """Return the pages from here to the end, each with its query."""
    found: list[tuple[Mapping[str, str], dict[str, Any]]] = []
    count = 0
    query = dict(query) | {"limit": str(_WHOLE_PAGE)}
    while count < _MOST_ROWS:
        answer = await _call(api, kind, query)
        found.append((query, answer))
        count += len(answer[kind])
        if not answer[kind] or answer["next"] is None:
            break
        query = query | {"after": answer["next"]}
    return found


async def _all_rows(api: OperatorApi, kind: str, query: Mapping[str, str], fits: Fits | None) -> list[dict[str, Any]]:
    pages = [answer for _, answer in await _pages(api, kind, query)]
    return [row for answer in pages for row in answer[kind] if fits is None or fits(row, answer["at"])]


async def _fitting(api: OperatorApi, kind: str, query: Mapping[str, str], fits: Fits) -> dict[str, Any]:
    """Return a page of the rows that fit, like an answer of the control plane; ``total`` is from this page on."""
    found: list[dict[str, Any]] = []
    last: Mapping[str, str] = {}
    answer: dict[str, Any] = {}
    for asked, answer in await _pages(api, kind, query):
        for number, row in enumerate(answer[kind], 1):
            if fits(row, answer["at"]):
                found.append(row)
                last = {**asked, "limit": str(number)} if len(found) == int(query["limit"]) else last
    shown = found[: int(query["limit"])]
    following = (await _call(api, kind, last))["next"] if len(shown) < len(found) else None
    return answer | {kind: shown, "total": len(found), "next": following}


# --- tables -----------------------------------------------------------------------------------------------------------


def _causes(answer: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    counts = answer["counts"]
    needing, total = counts.get("degraded", 0) + counts.get("stale", 0), sum(counts.values())
    if not answer["causes"]:
        write_line(f"nothing needs you: {counted(total, 'device')}")
        return
    write_line(f"{needing} of {counted(total, 'device')} {'needs' if needing == 1 else 'need'} you")
    for row in rows:
        write_line()
        for line in _cause_lines(row):
            write_line(line)
    if not rows:
        write_line("no cause fits")


def _cause_lines(row: Mapping[str, Any]) -> tuple[str, ...]:
    where = counted(row["devices"], "device")
    if row["certificates"]:
        where += f", {counted(row['certificates'], 'certificate')}"
    ends = f"; ends first: {_ends(row)}" if row["ends_first"] else ""
    example = row["example"]
    about = f"{example['device']} {example['certificate']}".strip()
    return (
        f"{row['state']}: {row['what']} ({', '.join(filter(None, (row['step'], row['reason'])))})",
        f"  where:   {where}; since {row['since'] or 'unknown'}{ends}",
        f"  example: {about}" + (f": {example['message']}" if example["message"] else ""),
        f"  fix:     {row['fix']}",
    )


def _rows(kind: str, answer: Mapping[str, Any]) -> None:
    rows, noun = answer[kind], kind.removesuffix("s")
    heads, cells = (_DEVICE_HEADS, _device_cells) if kind == "devices" else (_CERTIFICATE_HEADS, _certificate_cells)
    if rows:
        table(heads, [cells(row) for row in rows])
    fitting = f"{len(rows)} of {counted(answer['total'], noun)} that fit" if rows else f"no {noun} fits"
    counts = ", ".join(f"{count} {word}" for word, count in answer["counts"].items())
    write_line(f"{fitting}; in all: {counts or 'none'}")
    if answer["next"] is not None:
        write_error(f"note: there are more: add --after '{answer['next']}'")


_DEVICE_HEADS = ("id", "name", "state", "since", "why", "ends first", "last contact", "version", "tags")
_CERTIFICATE_HEADS = (
    "id",
    "name",
    "state",
    "ends first",
    "newest on",
    "seen at",
    "not served at",
    "stuck on",
    "last seen",
)


def _device_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    why = row["why"] or {}
    return (
        str(row["id"]),
        row["name"],
        row["state"],
        _minute(row["since"]),
        ": ".join(filter(None, (why.get("certificate", ""), why.get("what", "")))),
        _minute((row["ends_first"] or {}).get("at")),
        _minute(row["last_contact_at"]) or "never",
        row["agent"],
        ", ".join(row["tags"]),
    )


def _certificate_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(row["id"]),
        row["name"],
        row["state"],
        _minute(row["ends_first_at"]),
        f"{row['newest_deployed']} of {row['devices']}",
        str(row["newest_served"]),
        str(row.get("not_served", "")),
        str(row["stuck"]),
        _minute(row["last_proof_at"]),
    )


def _minute(time: str | None) -> str:
    """Return a time up to its minute, for a table."""
    return (time or "")[:16].replace("T", " ")


def _ends(row: Mapping[str, Any]) -> str:
    """Return when what ends first ends, and what it is."""
    return f"{row['ends_first']['at']} ({row['ends_first']['certificate']})" if row["ends_first"] else ""


# --- CSV --------------------------------------------------------------------------------------------------------------


def _write_csv(rows: Any, columns: Sequence[str]) -> None:
    """Print rows as CSV, with the names of their fields first."""
    sys.stdout.writelines(csv_lines(rows, columns))
