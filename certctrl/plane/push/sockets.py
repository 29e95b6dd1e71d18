"""Sockets: the table of open push sockets of all processes of the control plane, one per device.

A row counts while its process runs, which it names as the table ``planes`` does, by name and start. So the rows of a
killed process do no harm until they are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain

from certctrl import lean
from certctrl.plane.planes import RUNNING_SECONDS, Planes
from certctrl.plane.storage.database import Database, Row, marks

_ROWS_PER_STATEMENT = 100
"""Rows per statement."""


@lean.frozen(kw_only=True)
class Socket:
    """One open socket."""

    device_id: int
    name: str
    """Random; another name in the table means that another socket has replaced this one."""
    opened_at: float
    address: str = ""
    """Source address of the device."""


class Sockets:
    """The table; methods run in the caller's unit of work."""

    def __init__(self, database: Database, planes: Planes, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._planes = planes
        self._wall_now = wall_now

    def elsewhere(self, device_ids: Collection[int]) -> list[int]:
        """Return those devices that have a socket at another process."""
        ids = list(device_ids)
        sql = f"SELECT device_id FROM sockets WHERE device_id IN ({marks(ids)}) AND NOT (plane = ? AND plane_started_at = ?)"
        return [row["device_id"] for row in self._db.all(sql, *ids, *self._planes.process)]

    def add(self, sockets: Iterable[Socket], *, late: bool = False) -> None:
        """Record sockets, in place of earlier ones of their devices; ``late``: not in place of those opened since."""
        if not self._planes.noted:  # other processes ignore the sockets of an unknown process
            self._planes.note(polls=0)
        latest = {one.device_id: one for one in sockets}
        rows = [
            (device_id, latest[device_id].name, *self._planes.process, latest[device_id].opened_at)
            for device_id in sorted(latest)
        ]
        for start in range(0, len(rows), _ROWS_PER_STATEMENT):
            some = rows[start : start + _ROWS_PER_STATEMENT]
            self._db.run(
                "INSERT INTO sockets (device_id, name, plane, plane_started_at, opened_at)"
                f" VALUES {', '.join([f'({marks(some[0])})'] * len(some))} ON CONFLICT (device_id) DO UPDATE"
                " SET name = excluded.name, plane = excluded.plane, plane_started_at = excluded.plane_started_at,"
                f" opened_at = excluded.opened_at{' WHERE sockets.opened_at < excluded.opened_at' if late else ''}",
                *chain.from_iterable(some),
            )

    def remove(self, names: Mapping[int, str]) -> None:
        """Remove sockets that have closed, by device; rows of sockets that replaced them stay."""
        devices = sorted(names)
        for start in range(0, len(devices), _ROWS_PER_STATEMENT):
            some = devices[start : start + _ROWS_PER_STATEMENT]
            pairs = chain.from_iterable((device_id, names[device_id]) for device_id in some)
            self._db.run(
                f"DELETE FROM sockets WHERE {' OR '.join(['(device_id = ? AND name = ?)'] * len(some))}", *pairs
            )

    def remove_all(self) -> None:
        """Remove all sockets of this process, which is ending."""
        self._db.run("DELETE FROM sockets WHERE plane = ? AND plane_started_at = ?", *self._planes.process)

    def opened_elsewhere(self, device_ids: Sequence[int]) -> dict[int, float]:
        """Return when the sockets of devices were opened, for those that are open at another process that runs."""
        rows: list[Row] = self._db.all(
            "SELECT k.device_id, k.opened_at FROM sockets k JOIN planes p ON p.name = k.plane"
            f" AND p.started_at = k.plane_started_at WHERE k.device_id IN ({marks(device_ids)}) AND p.seen_at > ?"
            " AND NOT (k.plane = ? AND k.plane_started_at = ?)",
            *(*device_ids, self._wall_now() - RUNNING_SECONDS, *self._planes.process),
        )
        return {row["device_id"]: row["opened_at"] for row in rows}

    def delete_expired(self) -> None:
        """Delete the rows of processes that have ended."""
        self._db.run(
            "DELETE FROM sockets WHERE NOT EXISTS (SELECT 1 FROM planes p WHERE p.name = sockets.plane"
            " AND p.started_at = sockets.plane_started_at AND p.seen_at > ?) AND opened_at < ?",
            *(self._wall_now() - RUNNING_SECONDS, self._wall_now() - RUNNING_SECONDS),
        )
