"""Reports: what devices say became of their signals (api.md §5)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from certctrl.model.signals import IDENTITY_FIELDS
from certctrl.plane.clock import when
from certctrl.plane.errors import bad_request
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.plane.texts import line

SCHEMA = "certctrl.device.notify.v1"
OUTCOMES = ("applied", "unchanged", "ignored", "superseded", "failed", "rolled_back")
_MOST = 100
_LONGEST_JSON = 4096


class Reports:
    """The last outcome of each signal of each device."""

    def __init__(self, database: Database, settings: PlaneSettings, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._kept = settings.outcomes_kept
        self._wall_now = wall_now

    def notify(self, device_id: int, report: Mapping[str, Any]) -> None:
        """Store a batch of events, oldest first; all or nothing. Unknown kinds of events are passed over."""
        events = report.get("events")
        if report.get("schema") != SCHEMA:
            raise bad_request(f"schema must be {SCHEMA}", field="schema")
        if not isinstance(events, list) or len(events) > _MOST:
            raise bad_request(f"events must be a list of at most {_MOST}", field="events")
        with self._db.transaction():
            for position, event in enumerate(events):
                if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                    raise bad_request(f"events[{position}] must be an object with a type", field="events")
                if event["type"] == "signal.ack":
                    self._store(device_id, event, position)
                elif event["type"] == "agent_version":
                    self._db.run(
                        "UPDATE devices SET app_version = ? WHERE id = ?", line(event.get("version"), 100), device_id
                    )
            self._forget_old(device_id)

    def outcomes(self, device_id: int, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest outcomes of a device, newest first."""
        rows = self._db.all(
            "SELECT * FROM outcomes WHERE device_id = ? ORDER BY at DESC, ts_ms DESC LIMIT ?", device_id, limit
        )
        return [
            {
                "signal": {"type": row["type"], "ts_ms": row["ts_ms"], "ref": json.loads(row["ref"])},
                "outcome": row["outcome"],
                "detail": row["detail"],
                "deployed": json.loads(row["deployed"]),
                "duration_ms": row["duration_ms"],
                "at": when(row["at"]),
            }
            for row in rows
        ]

    def _store(self, device_id: int, event: Mapping[str, Any], position: int) -> None:
        signal, outcome = event.get("signal"), event.get("outcome")
        if not isinstance(signal, dict) or outcome not in OUTCOMES:
            raise bad_request(f"events[{position}] needs a signal and a known outcome", field="events")
        type_, ts_ms = line(signal.get("type"), 100), _whole(signal.get("ts_ms"))
        given = signal.get("ref")
        ref: dict[str, Any] = given if isinstance(given, dict) else {}
        ids = ",".join(f"{name}={line(ref[name], 40)}" for name in IDENTITY_FIELDS if name in ref)
        self._db.run(
            "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            device_id,
            f"{type_}|{ids}|{ts_ms}",
            type_,
            ts_ms,
            _json(ref, "{}"),
            outcome,
            line(event.get("detail"), 500),
            _json(event.get("deployed"), "[]"),
            _whole(event.get("duration_ms")),
            self._wall_now(),
        )

    def _forget_old(self, device_id: int) -> None:
        oldest = self._db.one(
            "SELECT at FROM outcomes WHERE device_id = ? ORDER BY at DESC LIMIT 1 OFFSET ?", device_id, self._kept
        )
        if oldest is not None:
            self._db.run("DELETE FROM outcomes WHERE device_id = ? AND at <= ?", device_id, oldest["at"])


def _whole(value: Any) -> int:
    """Return a number of a report within bounds; anything else counts as 0."""
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if fits else 0


def _json(value: Any, empty: str) -> str:
    """Return JSON text of the kind of ``empty``, or ``empty`` for another kind or a text too long to keep."""
    if not isinstance(value, type(json.loads(empty))):
        return empty
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= _LONGEST_JSON else empty
