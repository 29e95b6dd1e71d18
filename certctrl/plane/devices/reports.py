"""Reports: signal outcomes as devices report them (docs/protocol.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from certctrl import lean
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import IDENTITY_FIELDS
from certctrl.plane.clock import when
from certctrl.plane.devices.features import stored
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.text import one_line

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
                        self._store_ack(device_id, event)
                    case AgentVersion(version, features):
                        self._db.run(
                            "UPDATE devices SET app_version = ?, features = ? WHERE id = ?",
                            *(version, stored(features), device_id),
                        )
                        self.on_announced(device_id)
                    case OtherEvent():
                        pass
                    case _:
                        assert_never(event)
            self._drop_excess(device_id)

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

    def _store_ack(self, device_id: int, ack: Ack) -> None:
        ids = ",".join(f"{name}={_id_text(ack.ref[name])}" for name in IDENTITY_FIELDS if name in ack.ref)
        self._db.run(
            "INSERT INTO outcomes (device_id, signal, type, ts_ms, ref, outcome, detail, deployed, duration_ms, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device_id, signal) DO UPDATE SET ref = excluded.ref,"
            " outcome = excluded.outcome, detail = excluded.detail, deployed = excluded.deployed,"
            " duration_ms = excluded.duration_ms, at = excluded.at",
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

    def _drop_excess(self, device_id: int) -> None:
        oldest = self._db.one(
            "SELECT at FROM outcomes WHERE device_id = ? ORDER BY at DESC LIMIT 1 OFFSET ?", device_id, self._kept
        )
        if oldest is not None:
            self._db.run("DELETE FROM outcomes WHERE device_id = ? AND at <= ?", device_id, oldest["at"])


def _id_text(value: Any) -> str:
    """Return an id for the identity of a signal; empty for anything but text and numbers."""
    shown = isinstance(value, str | int | float) and not isinstance(value, bool)
    return one_line(str(value), 40) if shown else ""


def _json(value: Any, empty: str) -> str:
    """Return the JSON text of a value, or ``empty`` if it is too long to store."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= _MAX_JSON else empty
