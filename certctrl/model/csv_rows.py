"""Lists of a control plane as CSV, the same from the command line and from the console. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from certctrl.text import one_line

# The columns of lists that have no rows; rows of another version may have others.
CAUSE_COLUMNS = (
    "id", "state", "step", "reason", "what", "fix", "devices", "certificates", "since", "ends_first", "ends_first_at",
    "example_device_id", "example_device", "example_certificate_id", "example_certificate", "example_message",
)  # fmt: skip
DEVICE_COLUMNS = (
    "id", "name", "state", "since", "last_contact_at", "agent", "ends_first", "ends_first_at", "tags", "cause", "certificate",
    "step", "reason", "message", "fix", "attempts",
)  # fmt: skip
CERTIFICATE_COLUMNS = (
    "id", "name", "state", "issuer", "ends_first_at", "newest_ends_at", "devices", "newest_deployed", "newest_served",
    "not_served", "stuck", "last_proof_at",
)  # fmt: skip


def flat_cause(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cause without nested values."""
    flat = {name: value for name, value in row.items() if name not in ("example", "ends_first")}
    return flat | _flat_end(row) | {f"example_{name}": value for name, value in row["example"].items()}


def flat_device(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a device without nested values."""
    flat = {name: value for name, value in row.items() if name not in ("why", "tags", "ends_first")} | _flat_end(row)
    why = row["why"] or {}
    shown = ("cause", "certificate", "step", "reason", "message", "fix", "attempts")
    return flat | {"tags": " ".join(row["tags"])} | {name: why.get(name, "") for name in shown}


def _flat_end(row: Mapping[str, Any]) -> dict[str, Any]:
    first = row["ends_first"] or {}
    return {"ends_first": first.get("certificate", ""), "ends_first_at": first.get("at", "")}


def csv_lines(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> Iterator[str]:
    """Yield rows as lines of CSV, the names of their fields first: ``columns`` if there are no rows."""
    none = True
    for row in rows:
        if none:
            yield _line(row)
        none = False
        yield _line(_cell(value) for value in row.values())
    if none and (heads := tuple(columns)):
        yield _line(heads)


def _line(values: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _cell(value: Any) -> str:
    """Return the text of a cell; one that a spreadsheet would take for a formula begins with a quote."""
    text = "" if value is None else one_line(str(value), None)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
