"""The output of `list-certs`, from facts recorded at deployment; no certificate is parsed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from certctrl.cli.facts import awaited, certificates
from certctrl.cli.output import bar, on_terminal, remaining, short_serial, table, write_json, write_line
from certctrl.model.status import not_deployed

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation


def show_certificates(invoked: Invocation, *, as_json: bool = False) -> None:
    """Print the certificates of this host."""
    from certctrl.agent.clock import wall_now

    now = wall_now()
    layout = invoked.layout()
    rows = certificates(layout)
    if as_json:
        write_json([{**row, "remaining_seconds": round(row["not_after"] - now)} for row in rows])
        return
    if not rows:
        write_line("No certificates on this host yet.")
    else:
        drawn = on_terminal()
        heads = ("Domain", "Serial", "Remaining", "Deployed", "Last result")
        table(heads, [_cells(row, now, str(layout.root), drawn=drawn) for row in rows])
    for one in awaited(layout):
        write_line(f"Awaited: {one['name']} (certificate {one['cert_id']}): {not_deployed(one)}")


def _cells(row: dict[str, Any], now: float, root: str, *, drawn: bool) -> tuple[str, ...]:
    names = list(row["domains"]) or [row["name"]]
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    serial = row["serial"] or "-"
    return (
        names[0] + more,
        short_serial(serial),
        _life(row, now, drawn=drawn),
        _where(row, root),
        _result(row),
    )


def _life(row: dict[str, Any], now: float, *, drawn: bool) -> str:
    left = row["not_after"] - now
    whole = row["not_after"] - row["not_before"]
    if not row["generation"]:
        return "-"
    return f"{bar(left / whole if whole > 0 else 0)} {remaining(left)}" if drawn else remaining(left)


def _where(row: dict[str, Any], root: str) -> str:
    """Return the destinations of the install plan, or the agent's own file if there are none."""
    if row["stage"] == "withdrawn" or not row["generation"]:
        return "withdrawn" if row["stage"] == "withdrawn" else "not yet"
    elsewhere = [path for path in row["targets"] if not path.startswith(root + os.sep)]
    return ", ".join(elsewhere) or f"certs/{row['name']}.crt"


def _result(row: dict[str, Any]) -> str:
    result = "removed" if row["stage"] == "withdrawn" else row["last_outcome"] or "none"
    notes = []
    if row["held"]:
        notes.append("held")
    if row["staged"] and row["staged"] != row["generation"]:
        notes.append("newer one staged")
    if row["last_error"]:
        notes.append(row["last_error"])
    return f"{result} ({'; '.join(notes)})" if notes else str(result)
