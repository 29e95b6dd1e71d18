"""Reports: signal outcomes as devices report them (docs/protocol.md)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, assert_never

from certctrl import lean
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import IDENTITY_FIELDS
from certctrl.plane.clock import when
from certctrl.plane.devices.features import stored
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database, marks
from certctrl.text import one_line

FEW_EVENTS = 5
"""Outcomes of one report that are stored in one transaction with other requests, on the event loop with SQLite."""
_TOGETHER = 32
"""Outcomes per statement."""
_MAX_JSON = 4096
"""Characters of a stored reference or list; anything longer is stored empty."""


@lean.frozen(kw_only=True)
class Ack:
    """The outcome of one signal."""

    type: str
    ts_ms: int
    ref: Mapping[str, Any]
    outcome: OutcomeKind
    detail: str = ""
    deployed: Sequence[Any] = ()
    duration_ms: int = 0


@lean.frozen
class AgentVersion:
    """The version of a device's agent and what it can do, sent once per start."""

    version: str
    features: Sequence[str] = ()


@lean.frozen
class OtherEvent:
    """An event of a type that this plane does not know; it is ignored."""

    type: str


Event = Ack | AgentVersion | OtherEvent


class Reports:
    """The latest outcome of each signal of each device."""

    def __init__(self, database: Database, settings: PlaneSettings, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._kept = settings.outcomes_kept
        self._wall_now = wall_now
        self.on_announced: Callable[[int], object] = lambda device_id: None
        """Called, in the unit of work, when the agent of a device has announced its features."""

    def store(self, device_id: int, events: Sequence[Event]) -> None:
        """Store a batch of events, oldest first, in one transaction."""
        with self._db.transaction():
            for event in events:
                match event:
                    case Ack():
                        self._insert([self._row(device_id, event)])
                    case AgentVersion(version, features):
                        said = (version, stored(features))
                        self._db.run(
                            "UPDATE devices SET app_version = ?, features = ?"
                            " WHERE id = ? AND (app_version != ? OR features != ?)",
                            *(*said, device_id, *said),
                        )
                        self.on_announced(device_id)
                    case OtherEvent():
                        pass
                    case _:
                        assert_never(event)
            self._drop_excess(device_id)

    def store_acks(self, reports: Sequence[tuple[DeviceSession, Sequence[Event]]]) -> list[None]:
        """Store the outcomes of several devices, which are ``is_few_acks``, with few statements."""
        rows: dict[tuple[int, str], tuple[Any, ...]] = {}
        for session, events in reports:
            for event in events:
                if isinstance(event, Ack):
                    row = self._row(session.device_id, event)
                    rows[row[:2]] = row  # the last one, if a device has several for one signal
        self._insert([rows[key] for key in sorted(rows)])
        self._drop_excess_of(sorted({device_id for device_id, _ in rows}), len(rows))
        return [None] * len(reports)

    def outcomes(self, device_id: int, limit: int = 100) -> list[dict[str, Any]]:
        """Return the latest outcomes of a device, newest first."""
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

    def _row(self, device_id: int, ack: Ack) -> tuple[Any, ...]:
        ids = ",".join(f"{name}={_id_text(ack.ref[name])}" for name in IDENTITY_FIELDS if name in ack.ref)
        return (
            device_id,
            f"{ack.type}|{ids}|{ack.ts_ms}",
            ack.type,
            ack.ts_ms,
            _json(ack.ref, "{}"),
            ack.outcome.value,
            ack.detail,
            _json(ack.deployed, "[]"),
            ack.duration_ms,
            self._wall_now(),
        )

    def _insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            self._db.run(
                "INSERT INTO outcomes (device_id, signal, type, ts_ms, ref, outcome, detail, deployed, duration_ms, at)"
                f" VALUES {', '.join([f'({marks(some[0])})'] * len(some))} ON CONFLICT (device_id, signal) DO UPDATE"
                " SET ref = excluded.ref, outcome = excluded.outcome, detail = excluded.detail,"
                " deployed = excluded.deployed, duration_ms = excluded.duration_ms, at = excluded.at",
                *chain.from_iterable(some),
            )

    def _drop_excess_of(self, device_ids: Sequence[int], stored: int) -> None:
        """Drop the excess outcomes of devices, at one time out of those that so many outcomes exceed the limit by 5 %."""
        if not device_ids or random.randrange(max(1, self._kept // 20)) >= stored:
            return
        rows = self._db.all(
            f"SELECT device_id FROM outcomes WHERE device_id IN ({marks(device_ids)}) GROUP BY device_id"
            " HAVING count(*) > ?",
            *(*device_ids, self._kept),
        )
        for row in rows:
            self._drop_excess(row["device_id"])

    def _drop_excess(self, device_id: int) -> None:
        oldest = self._db.one(
            "SELECT at FROM outcomes WHERE device_id = ? ORDER BY at DESC LIMIT 1 OFFSET ?", device_id, self._kept
        )
        if oldest is not None:
            self._db.run("DELETE FROM outcomes WHERE device_id = ? AND at <= ?", device_id, oldest["at"])


def is_few_acks(events: Sequence[Event]) -> bool:
    """Return whether events may be stored together with those of other devices: `FEW_EVENTS`, without announcements."""
    return len(events) <= FEW_EVENTS and not any(isinstance(event, AgentVersion) for event in events)


def _id_text(value: Any) -> str:
    """Return an id for the identity of a signal; empty for anything but text and numbers."""
    shown = isinstance(value, str | int | float) and not isinstance(value, bool)
    return one_line(str(value), 40) if shown else ""


def _json(value: Any, empty: str) -> str:
    """Return the JSON text of a value, or ``empty`` if it is too long to store."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= _MAX_JSON else empty
