"""``plane certificates``: list certificates, or the calendar of those that expire soon."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from certctrl.cli.output import duration, short_serial, table, write_line
from certctrl.cli.plane.connection import OperatorApi, call_plane, show
from certctrl.cli.plane.documents import joined
from certctrl.cli.plane.fleet import After, Csv, Fits, Limit, OfReason, Search, Sort, States, show_rows, wanted_rows
from certctrl.cli.plane.revocation import unfinished
from certctrl.cli.plane.tags import OnTagged, tagged
from certctrl.errors import UsageError

_SPAN = re.compile(r"(\d{1,6})([hdw])", re.ASCII)
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_MOST_DAYS = 36_500

Expiring = Annotated[
    str,
    typer.Option("--expiring", metavar="SPAN", help="Only those that expire within 12h, 30d, 4w, …, earliest first."),
]


def certificates(
    ctx: typer.Context,
    expiring: Expiring = "",
    tag: OnTagged = None,
    state: States = None,
    reason: OfReason = "",
    search: Search = "",
    sort: Sort = "",
    limit: Limit = None,
    after: After = "",
    csv: Csv = False,
) -> None:
    """List the certificates, or those that expire soon, by day.

    With --state, --reason, --search, --sort, --limit, --after or --csv it shows the state of each certificate instead, and
    on how many devices the newest is served.

    \b
    cert-ctrl plane certificates --data /var/lib/plane
    cert-ctrl plane certificates --data /var/lib/plane --state stuck --sort ends
    cert-ctrl plane certificates --data /var/lib/plane --expiring 30d --tag web
    cert-ctrl plane certificates --data /var/lib/plane --expiring 30d --csv
    """
    seconds = span(expiring) if expiring else None
    if (wanted := wanted_rows(state, reason, search, sort, limit, after, csv=csv)) is not None:
        show_rows(ctx, "certificates", wanted, tag, None if seconds is None else _ends_within(seconds))
        return

    async def request(api: OperatorApi) -> tuple[list[dict[str, Any]], str]:
        now = await api.time() if seconds is not None else ""
        return await tagged(api, "certificates", tag), now

    rows, now = call_plane(ctx, request)
    if seconds is None:
        show(ctx, rows, lambda: _list(rows))
        return
    found = ending(rows, _time(now), seconds)
    show(ctx, found, lambda: _calendar(found, _time(now), expiring))


def span(text: str) -> int:
    """Return the seconds of ``12h``, ``30d`` or ``4w``. Raises UsageError."""
    match = _SPAN.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _MOST_DAYS * 86_400:
        raise UsageError(f"{text!r} is not a duration", fix="use hours, days or weeks: 12h, 30d, 4w")
    return seconds


def validity(text: str) -> int:
    """Return the seconds for which a token is valid: a span, or a number of seconds. Raises UsageError."""
    return int(text) if re.fullmatch("[1-9][0-9]{0,9}", text) else span(text)


def ending(rows: Sequence[dict[str, Any]], now: float, seconds: float) -> list[dict[str, Any]]:
    """Return the certificates that expire within some seconds, and those that have expired, by time."""
    found = [
        row
        for row in rows
        if row["status"] in ("active", "expired") and row["not_after"] and _time(row["not_after"]) <= now + seconds
    ]
    return sorted(found, key=lambda row: (row["not_after"], row["id"]))


def _ends_within(seconds: float) -> Fits:
    """Return whether a row with a state is of a certificate that expires within some seconds, like `ending`."""

    def fits(row: Mapping[str, Any], now: str) -> bool:
        ends = row["newest_ends_at"]
        return bool(row["state"] != "revoked" and ends and _time(ends) <= _time(now) + seconds)

    return fits


def _time(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def _list(rows: Sequence[dict[str, Any]]) -> None:
    heads = ("id", "domain", "status", "not after", "serial", "issuer", "devices")
    cells = [
        (
            str(row["id"]),
            row["domain_name"],
            row["status"],
            (row["not_after"] or "")[:16].replace("T", " "),
            short_serial(row["serial_number"]),
            row["issuer"],
            joined(row["device_ids"]) + (" *" if row["key_origin"] == "device" else ""),
        )
        for row in rows
    ]
    table(heads, cells)
    if any(row["key_origin"] == "device" for row in rows):
        write_line("* the key is made on the device, and only there")
    for row in rows:
        if row["template_id"]:
            write_line(f"certificate {row['id']} was made from {row['template_id']} for a further device")
        for line in unfinished(row):
            write_line(line)
        if row["problem"]:
            write_line(f"{row['id']} ({row['domain_name']}): {row['problem']}")


def _calendar(rows: Sequence[dict[str, Any]], now: float, within: str) -> None:
    if not rows:
        write_line(f"no certificate expires within {within}")
        return
    heads = ("expires", "left", "id", "domain", "issuer", "renewal", "devices")
    cells, day = [], ""
    for row in rows:
        left = _time(row["not_after"]) - now
        cells.append(
            (
                row["not_after"].replace("T", " ").removesuffix("Z")
                if row["not_after"][:10] != day
                else row["not_after"][11:19].rjust(19),
                duration(left) if left > 0 else "expired",
                str(row["id"]),
                row["domain_name"],
                row["issuer"],
                _renewal(row, now),
                joined(row["device_ids"]),
            )
        )
        day = row["not_after"][:10]
    table(heads, cells)


def _renewal(row: dict[str, Any], now: float) -> str:
    """Return how and when a certificate is renewed."""
    if row["issuer"] == "import":
        return "import it again"
    if row["order_id"] is not None:
        return f"order {row['order_id']}"
    if not row["device_ids"]:
        return "unused"
    return f"due {row['renew_at'][:10]}" if row["renew_at"] else ""
