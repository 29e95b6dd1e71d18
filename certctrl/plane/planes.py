"""Planes: the planes that serve a database; each records itself with its housekeeping."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certctrl import __version__
from certctrl.plane.clock import rfc3339
from certctrl.plane.storage.database import Database, Reader

_FORGOTTEN_SECONDS = 86_400.0
RUNNING_SECONDS = 90.0
"""Seconds after which a plane that has not recorded itself has probably ended."""


def plane_name(directory: Path) -> str:
    """Return the name of the plane of a data directory: one that was killed is replaced by its successor."""
    return hashlib.sha256(f"{socket.gethostname()}:{directory.absolute()}".encode()).hexdigest()[:16]


class Planes:
    """The table of planes; methods run in the caller's unit of work."""

    def __init__(self, reader: Reader, name: str, wall_now: Callable[[], float]) -> None:
        """``name`` identifies this plane; with a mere ``Reader``, only ``shown`` works."""
        self._reader = reader
        self._name = name
        self._wall_now = wall_now
        self.started_at = wall_now()
        self.address = ""
        """URL of this plane on its own machine; empty before it listens."""
        self.connections: Callable[[], int] = lambda: 0
        """Returns the number of this plane's open connections."""
        self.noted = False
        """Whether this plane may have a row in the table."""

    @property
    def process(self) -> tuple[str, float]:
        """Name and start of this process, as in its row."""
        return self._name, self.started_at

    def note(self, *, polls: int) -> None:
        """Record that this plane is running, with its waiting polls and its connections."""
        now, connections, self.noted = self._wall_now(), self.connections(), True
        self._changed().run(
            "INSERT INTO planes VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
            " host = excluded.host, address = excluded.address, version = excluded.version,"
            " started_at = excluded.started_at, seen_at = excluded.seen_at, polls = excluded.polls,"
            " connections = excluded.connections",
            *(self._name, socket.gethostname(), self.address, __version__, self.started_at, now, polls, connections),
        )

    def delete_expired(self) -> None:
        """Delete planes that ended long ago."""
        self._changed().run("DELETE FROM planes WHERE seen_at < ?", self._wall_now() - _FORGOTTEN_SECONDS)

    def leave(self) -> None:
        """Delete this plane, which is ending."""
        self.noted = False
        self._changed().run("DELETE FROM planes WHERE name = ?", self._name)

    def _changed(self) -> Database:
        assert isinstance(self._reader, Database)
        return self._reader

    def shown(self) -> list[dict[str, Any]]:
        """Return all planes as operators see them, the longest running first."""
        now = self._wall_now()
        return [
            {
                "host": row["host"],
                "address": row["address"],
                "version": row["version"],
                "started_at": rfc3339(row["started_at"]),
                "seen_at": rfc3339(row["seen_at"]),
                "running": abs(now - row["seen_at"]) < RUNNING_SECONDS,
                "this": row["name"] == self._name,
                "polls": row["polls"],
                "connections": row["connections"],
            }
            for row in self._reader.all("SELECT * FROM planes ORDER BY started_at, name")
        ]
