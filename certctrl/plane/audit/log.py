"""The table of the audit log, which only grows, except for entries beyond the retention.

All methods run in the caller's unit of work, so that a change and its entry are stored together or not at all.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from certctrl import lean
from certctrl.plane.access.roles import Caller
from certctrl.plane.clock import rfc3339, when
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import counted

EXPIRED = "audit.expire"
MAX_PAGE = 1000
MAX_PAGE_CHARACTERS = 600_000
"""Of the entries on a page, so that clients accept it: they read 4 MiB, in which a character may have four bytes."""
_ENTRY, _OBJECT = 300, 200
"""Characters of an entry or an object besides its values."""
_MAX_VALUES = 16 * 1024
"""Characters of the values before or after a change; longer ones are shortened."""
_MAX_VALUE = 1024
_SIZE = f"length(o.before_json) + length(o.after_json) + {_OBJECT}"
_ESCAPED = re.compile("[!%_]")

log = logging.getLogger("certctrl.Plane")


@lean.frozen(kw_only=True)
class Filter:
    """Which entries to list; an empty field selects all."""

    who: str = ""
    what: str = ""
    """An action, or the part before its dot."""
    device_id: int | None = None
    since: float | None = None
    until: float | None = None


@lean.frozen(kw_only=True)
class Change:
    """An object that an entry is about, with the values that differ."""

    kind: str
    object_id: str
    name: str = ""
    before: Mapping[str, Any]
    after: Mapping[str, Any]


class AuditLog:
    """The entries with their objects."""

    def __init__(self, database: Database, wall_now: Callable[[], float], *, days: int) -> None:
        """``days``: for how long entries are kept."""
        self._db = database
        self._wall_now = wall_now
        self._days = days

    def add(self, caller: Caller, action: str, detail: Mapping[str, Any] | None = None) -> int:
        """Add an entry, and return its id."""
        return self._db.insert(
            "INSERT INTO audit (at, who, via, address, action, detail) VALUES (?, ?, ?, ?, ?, ?)",
            *(self._wall_now(), caller.who, caller.via, caller.address, action, _text(detail or {})),
        )

    def add_change(self, entry_id: int, change: Change) -> None:
        """Add an object to an entry of this unit of work, or of an earlier one of the same request."""
        self._db.insert(
            "INSERT INTO audit_objects (audit_id, kind, object_id, name, before_json, after_json)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            *(entry_id, change.kind, change.object_id, change.name, _text(change.before), _text(change.after)),
        )

    def page(self, chosen: Filter, before_id: int, limit: int) -> list[dict[str, Any]]:
        """Return up to ``limit`` entries with ids below ``before_id`` (0: all), the newest first.

        There are fewer if they are too long for a page, but none only if none is left.
        """
        ids = self._ids_of_page(chosen, before_id, limit)
        rows = self._in_portions("SELECT * FROM audit WHERE id IN ({}) ORDER BY id DESC", ids)
        objects: dict[int, list[Row]] = {}
        for row in self._in_portions("SELECT * FROM audit_objects WHERE audit_id IN ({}) ORDER BY id", ids):
            objects.setdefault(row["audit_id"], []).append(row)
        return [_shown(row, objects.get(row["id"], ())) for row in rows]

    def _ids_of_page(self, chosen: Filter, before_id: int, limit: int) -> list[int]:
        """Return the ids of the entries of a page, whose values are not read for it."""
        where, parameters = _condition(chosen, before_id)
        of_objects = f"SELECT sum({_SIZE}) FROM audit_objects o WHERE o.audit_id = a.id"
        sizes = self._db.all(
            f"SELECT a.id, {_ENTRY} + length(a.detail) + coalesce(({of_objects}), 0) AS size FROM audit a"
            f" WHERE {where} ORDER BY a.id DESC LIMIT ?",
            *(*parameters, limit),
        )
        sums = accumulate(row["size"] for row in sizes)
        return [
            row["id"]
            for number, (row, size) in enumerate(zip(sizes, sums, strict=True))
            if not number or size <= MAX_PAGE_CHARACTERS
        ]

    def _in_portions(self, sql: str, ids: Sequence[int]) -> list[Row]:
        found: list[Row] = []
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            found += self._db.all(sql.format(marks(some)), *some)
        return found

    def delete_expired(self) -> None:
        """Delete entries beyond the retention, at most once a day, with an entry that says so."""
        last = self._wall_now() - self._days * DAY
        oldest = self._db.one("SELECT min(at) AS at FROM audit")
        if oldest is None or oldest["at"] is None or oldest["at"] > last - DAY:
            return
        self._db.run("DELETE FROM audit_objects WHERE audit_id IN (SELECT id FROM audit WHERE at < ?)", last)
        count = self._db.run("DELETE FROM audit WHERE at < ?", last)
        detail = {"entries": count, "older_than": rfc3339(last), "days": self._days}
        self.add(Caller.of_plane(), EXPIRED, detail)
        log.info("audit log: deleted %s from before %s", counted(count, "change"), rfc3339(last))


def _condition(chosen: Filter, before_id: int) -> tuple[str, list[Any]]:
    """Return the condition for entries, and its parameters."""
    conditions, parameters = ["a.id > 0"], list[Any]()
    for sql, value in (
        ("a.who = ?", chosen.who or None),
        ("a.at >= ?", chosen.since),
        ("a.at <= ?", chosen.until),
        ("a.id < ?", before_id or None),
    ):
        if value is not None:
            conditions.append(sql)
            parameters.append(value)
    if chosen.what:
        conditions.append("(a.action = ? OR a.action LIKE ? ESCAPE '!')")
        parameters += [chosen.what, _ESCAPED.sub(r"!\g<0>", chosen.what) + ".%"]
    if chosen.device_id is not None:
        of_device = "SELECT audit_id FROM audit_objects WHERE kind = 'device' AND object_id = ?"
        conditions.append(f"a.id IN ({of_device})")
        parameters.append(str(chosen.device_id))
    return " AND ".join(conditions), parameters


def _shown(row: Row, objects: Sequence[Row]) -> dict[str, Any]:
    """Return an entry; if it is too long for a page, without the values of its last objects."""
    sizes = accumulate(len(each["before_json"]) + len(each["after_json"]) + _OBJECT for each in objects)
    return {
        "id": row["id"],
        "at": when(row["at"]),
        "who": row["who"],
        "via": row["via"],
        "address": row["address"],
        "action": row["action"],
        "detail": json.loads(row["detail"]),
        "objects": [
            {
                "kind": each["kind"],
                "id": each["object_id"],
                "name": each["name"],
                "before": json.loads(each["before_json"]) if size <= MAX_PAGE_CHARACTERS else {},
                "after": json.loads(each["after_json"]) if size <= MAX_PAGE_CHARACTERS else {"shortened": True},
            }
            for each, size in zip(objects, sizes, strict=True)
        ],
    }


def _text(values: Mapping[str, Any]) -> str:
    """Return values as JSON, the longest ones shortened if they are too long."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if len(text) <= _MAX_VALUES:
        return text
    short = {name: _shortened(value) for name, value in list(values.items())[: _MAX_VALUES // _MAX_VALUE]}
    return json.dumps(short | {"shortened": True}, ensure_ascii=False, separators=(",", ":"))


def _shortened(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) < _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
