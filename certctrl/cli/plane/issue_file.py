"""Read a file of certificates to issue, CSV or JSON; every error has its line and field. Sends nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from certctrl import lean
from certctrl.errors import UsageError
from certctrl.text import kind_of, nearest, one_line

MAX_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 20_000
MAX_NAMES = 100
SHOWN_ERRORS = 50
_TRUE, _FALSE = ("yes", "true", "1"), ("no", "false", "0")


@lean.frozen(kw_only=True)
class Entry:
    """One certificate of the file."""

    line: int
    domains: tuple[str, ...]
    devices: tuple[str, ...] = ()
    """Ids or names, as given."""
    fields: Mapping[str, Any]
    """Other fields of the request, only those that are given."""

    @property
    def key(self) -> tuple[frozenset[str], str, str]:
        """The identity of the certificate: names, key type and profile."""
        names = frozenset(name.strip().rstrip(".").lower() for name in self.domains)
        return names, str(self.fields.get("key_type", "")), str(self.fields.get("profile", ""))


@lean.frozen
class LineError:
    """An error in one field of a line."""

    line: int
    field: str
    what: str

    def __str__(self) -> str:
        where = f"line {self.line}, {self.field}" if self.field else f"line {self.line}"
        return f"{where}: {one_line(self.what)}"


def _texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts; ValueError for anything else. In CSV they are separated by spaces or semicolons."""
    if isinstance(value, str):
        value = value.replace(";", " ").split()
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise ValueError("expected a list of texts")
    return tuple(one.strip() for one in value)


def _devices(value: Any) -> tuple[str, ...]:
    """Return ids or names of devices; names may contain spaces, so that in CSV only semicolons separate them."""
    if isinstance(value, str):
        value = [one.strip() for one in value.split(";") if one.strip()]
    if not isinstance(value, list):
        raise ValueError("expected a list of ids and names")
    if not all((isinstance(one, str) and one) or (isinstance(one, int) and not isinstance(one, bool)) for one in value):
        raise ValueError("expected ids and names")
    return tuple(map(str, value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a text, not {kind_of(value)}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 12:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("expected a whole number above 0")
    return value


def _truth(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    if not isinstance(value, bool):
        raise ValueError("expected yes or no")
    return value


FIELDS: dict[str, Callable[[Any], Any]] = {
    "domains": _texts, "devices": _devices, "issuer": _text, "profile": _text, "key_type": _text,
    "key_origin": _text, "validity_seconds": _whole, "must_staple": _truth, "reuse_key": _truth,
}  # fmt: skip
"""Fields of an entry, and how they are read."""


def read_entries(file: Path) -> tuple[list[Entry], list[LineError]]:
    """Return the entries of a file and its errors. Raises UsageError if it cannot be read."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", fix="give a CSV or JSON file") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{file} has more than {MAX_BYTES} bytes", fix="split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}, line {line} is not UTF-8", fix=f"save {file} as UTF-8") from None
    try:
        return entries_of(text)
    except ValueError as error:
        raise UsageError(f"{file}: {error}", fix="correct the file; docs/issuers.md shows both forms") from None


def entries_of(text: str) -> tuple[list[Entry], list[LineError]]:
    """Return the entries of a text and their errors; ValueError if it is neither CSV nor JSON."""
    rows = _json_rows(text) if text.lstrip().startswith(("[", "{")) else _csv_rows(text)
    entries: list[Entry] = []
    errors: list[LineError] = []
    first: dict[tuple[frozenset[str], str, str], int] = {}
    for line, row in rows:
        if len(entries) >= MAX_ENTRIES:
            raise ValueError(f"there are more than {MAX_ENTRIES} certificates")
        entry, found = _entry(line, row)
        errors += found
        if entry is None:
            continue
        if entry.key in first:
            errors.append(LineError(line, "domains", f"the same certificate as in line {first[entry.key]}"))
        first.setdefault(entry.key, line)
        entries.append(entry)
    if not entries and not errors:
        raise ValueError("there are no certificates in it")
    return entries, errors


def _entry(line: int, row: Any) -> tuple[Entry | None, list[LineError]]:
    if not isinstance(row, dict):
        return None, [LineError(line, "", f"expected an object, not {kind_of(row)}")]
    fields: dict[str, Any] = {}
    errors = []
    for name, value in row.items():
        if name not in FIELDS:
            errors.append(LineError(line, str(name), _unknown(str(name))))
            continue
        try:
            fields[name] = FIELDS[name](value)
        except ValueError as error:
            errors.append(LineError(line, name, str(error)))
    domains = fields.pop("domains", ())
    if not domains and not any(error.field == "domains" for error in errors):
        errors.append(LineError(line, "domains", "at least one name is needed"))
    if len(domains) > MAX_NAMES:
        errors.append(LineError(line, "domains", f"a certificate may have at most {MAX_NAMES} names"))
    if errors:
        return None, errors
    return Entry(line=line, domains=domains, devices=fields.pop("devices", ()), fields=fields), []


def _unknown(name: str) -> str:
    meant = nearest(name, FIELDS)
    return (
        f"there is no such field; did you mean {meant}?"
        if meant
        else f"there is no such field; use {', '.join(FIELDS)}"
    )


def _csv_rows(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    line = 1
    try:
        heads = [head.strip() for head in next(reader, [])]
        _check_heads(heads)
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, _csv_row(heads, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line} is not CSV: {error}") from None


def _check_heads(heads: list[str]) -> None:
    for head in heads:
        if head not in FIELDS:
            raise ValueError(f"line 1, {one_line(head)}: {_unknown(head)}")
    if len(set(heads)) != len(heads):
        raise ValueError("line 1: a column is given twice")
    if "domains" not in heads:
        raise ValueError("line 1: there is no column domains")


def _csv_row(heads: list[str], cells: list[str]) -> dict[str, Any]:
    """Return the fields with a value; empty cells have none."""
    row: dict[str, Any] = {head: cell.strip() for head, cell in zip(heads, cells, strict=False) if cell.strip()}
    if len(cells) > len(heads):
        row[f"column {len(heads) + 1}"] = cells[len(heads)]
    return row


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the objects of a JSON list with their lines."""
    at = _after_blanks(text, 0)
    if text[at] != "[":
        raise ValueError("expected a list: [{…}, {…}]")
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    at = _after_blanks(text, at + 1)
    line, counted, comma = 1, 0, -1
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _not_json(text, error.pos, error.msg) from None
        except RecursionError:
            raise _not_json(text, at, "too deep") from None
        yield line, value
        at, comma = _after_blanks(text, at), -1
        if text[at : at + 1] == ",":
            at, comma = _after_blanks(text, at + 1), at
        elif text[at : at + 1] != "]":
            raise _not_json(text, at, "expected , or ]")
    if comma >= 0:
        raise _not_json(text, comma, "a comma after the last certificate")
    if text[at + 1 :].strip():
        raise _not_json(text, _after_blanks(text, at + 1), "text after the list")


def _not_json(text: str, at: int, what: str) -> ValueError:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return ValueError(f"line {line}, column {column} is not JSON: {what}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a name that is given twice becomes an unknown field."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[f"{name} (twice)" if name in found else name] = value
    return found


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n") and at < len(text):
        at += 1
    return at
