"""Reports: signal outcomes as devices report them (docs/protocol.md)."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, assert_never

from certctrl import lean
from certctrl.model.features import SERVING_REPORTS
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import IDENTITY_FIELDS
from certctrl.plane.clock import when
from certctrl.plane.devices.acks import Ack as Ack
from certctrl.plane.devices.deployments import Deployments
from certctrl.plane.devices.endpoints import Endpoints
from certctrl.plane.devices.endpoints import EndpointsReport as EndpointsReport
from certctrl.plane.devices.features import stored
from certctrl.plane.devices.older_texts import cause_of_report
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import one_line

FEW_EVENTS = 5
"""Outcomes of one report that are stored in one transaction with other requests, on the event loop with SQLite."""
_OUTCOMES_PER_STATEMENT = 32
"""Outcomes per statement."""
_TO_NOTE = "outcomes_to_note"
"""The setting of a database of an earlier release: the last device whose outcomes were noted."""
_NOTED_DEVICES, _NOTED_OUTCOMES = 50, 50
"""Devices of one round, and the latest outcomes of each."""
_MAX_JSON = 4096
"""Characters of a stored reference or list; anything longer is stored empty."""

log = logging.getLogger("certctrl.Plane")


@lean.frozen
class AgentVersion:
    """The version of a device's agent and what it can do, sent once per start."""

    version: str
    features: Sequence[str] = ()


@lean.frozen
class OtherEvent:
    """An event of a type that this plane does not know; it is ignored."""

    type: str


Event = Ack | AgentVersion | EndpointsReport | OtherEvent


class Reports:
    """The latest outcome of each signal of each device."""

    def __init__(self, database: Database, settings: PlaneSettings, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._kept = settings.outcomes_kept
        self._wall_now = wall_now
        self.deployments = Deployments(database)
        self.endpoints = Endpoints(database)
        self.on_announced: Callable[[int], object] = lambda device_id: None
        """Called, in the unit of work, when the agent of a device has announced its features."""

    def store(self, device_id: int, events: Sequence[Event]) -> None:
        """Store a batch of events, oldest first, in one transaction."""
        with self._db.transaction():
            for event in events:
                match event:
                    case Ack():
                        self._insert([self._row(device_id, event)])
                        self.deployments.note([(device_id, event)], self._wall_now())
                    case AgentVersion(version, features):
                        said = (version, stored(features))
                        self._db.run(
                            "UPDATE devices SET app_version = ?, features = ?"
                            " WHERE id = ? AND (app_version != ? OR features != ?)",
                            *(*said, device_id, *said),
                        )
                        if SERVING_REPORTS not in features:
                            self.endpoints.forget(device_id)
                        self.on_announced(device_id)
                    case EndpointsReport():
                        self.endpoints.note(device_id, event, self._wall_now())
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
        acks = [(session.device_id, event) for session, events in reports for event in events if isinstance(event, Ack)]
        self.deployments.note(acks, self._wall_now())
        self._drop_excess_of(sorted({device_id for device_id, _ in rows}), len(rows))
        return [None] * len(reports)

    def note_earlier(self) -> None:
        """Note what some devices reported to an earlier release, which noted nothing, until all are done."""
        done = self._db.setting(_TO_NOTE)
        if not done:
            return
        ids = self._db.all("SELECT id FROM devices WHERE id > ? ORDER BY id LIMIT ?", int(done), _NOTED_DEVICES)
        for device_id in (row["id"] for row in ids):
            sql = "SELECT * FROM outcomes WHERE device_id = ? ORDER BY at DESC, ts_ms DESC LIMIT ?"
            for row in reversed(self._db.all(sql, device_id, _NOTED_OUTCOMES)):
                if ack := _ack_of(row):
                    self.deployments.note([(device_id, ack)], row["at"])
        if ids:
            self._db.run("UPDATE settings SET value = ? WHERE name = ?", str(ids[-1]["id"]), _TO_NOTE)
        else:
            self._db.run("DELETE FROM settings WHERE name = ?", _TO_NOTE)

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
                "step": row["step"],
                "reason": row["reason"],
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
            ack.cause.step.value if ack.cause is not None else "",
            ack.cause.reason.value if ack.cause is not None else "",
            _json(ack.deployed, "[]"),
            ack.duration_ms,
            self._wall_now(),
        )

    def _insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for start in range(0, len(rows), _OUTCOMES_PER_STATEMENT):
            some = rows[start : start + _OUTCOMES_PER_STATEMENT]
            self._db.run(
                "INSERT INTO outcomes (device_id, signal, type, ts_ms, ref, outcome, detail, step, reason, deployed,"
                " duration_ms, at)"
                f" VALUES {', '.join([f'({marks(some[0])})'] * len(some))} ON CONFLICT (device_id, signal) DO UPDATE"
                " SET ref = excluded.ref, outcome = excluded.outcome, detail = excluded.detail, step = excluded.step,"
                " reason = excluded.reason,"
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


def _ack_of(row: Row) -> Ack | None:
    """Return the outcome in a row, which an earlier release stored without codes; None if it is unreadable."""
    try:
        outcome, ref, deployed = OutcomeKind(row["outcome"]), json.loads(row["ref"]), json.loads(row["deployed"])
    except ValueError:
        outcome, ref, deployed = OutcomeKind.FAILED, None, None
    if not isinstance(ref, dict) or not isinstance(deployed, list):
        log.warning("device %d: skipped a stored outcome that cannot be read: %.100r", row["device_id"], row["signal"])
        return None
    cause = cause_of_report(outcome, row["step"], row["reason"], row["detail"])
    return Ack(
        type=row["type"],
        ts_ms=row["ts_ms"],
        ref=ref,
        outcome=outcome,
        detail=row["detail"],
        cause=cause,
        deployed=deployed,
        duration_ms=row["duration_ms"],
    )


def is_few_acks(events: Sequence[Event]) -> bool:
    """Return whether events may be stored together with those of other devices: `FEW_EVENTS`, only outcomes."""
    return len(events) <= FEW_EVENTS and not any(isinstance(event, AgentVersion | EndpointsReport) for event in events)


def is_costly(events: Sequence[Event]) -> bool:
    """Return whether events cost much more than a poll: they are limited, and stored in a long unit of work."""
    return len(events) > FEW_EVENTS or any(isinstance(event, EndpointsReport) for event in events)


def _id_text(value: Any) -> str:
    """Return an id for the identity of a signal; empty for anything but text and numbers."""
    shown = isinstance(value, str | int | float) and not isinstance(value, bool)
    return one_line(str(value), 40) if shown else ""


def _json(value: Any, empty: str) -> str:
    """Return the JSON text of a value, or ``empty`` if it is too long to store."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= _MAX_JSON else empty
