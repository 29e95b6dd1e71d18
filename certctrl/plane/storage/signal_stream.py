"""SignalStream: append, read after a cursor, wait, trim; and the engine that stores it in SQLite.

A cursor is ``ms-seq``, the id of the last signal that a device has received. Ids only grow, even if the clock steps
back; an id's milliseconds are the signal's ``ts_ms``. Agents identify a signal by type, ids and ``ts_ms``, so a second
signal about the same object in the same millisecond gets the next one: otherwise it would look like a replay.

``append`` is synchronous and part of the caller's transaction: a change and its signal are stored together or not at
all. ``publish`` then announces them. An engine outside the database (Redis Streams) keeps an outbox in the database
for ``append`` and empties it in ``publish``; callers do not change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import attrs
import trio

from certctrl.model.signals import IDENTITY_FIELDS
from certctrl.plane.errors import cursor_expired, not_found
from certctrl.plane.storage.database import Database, Row

_CURSOR = re.compile(r"(0|[1-9]\d{0,14})-(0|[1-9]\d{0,8})", re.ASCII)


@attrs.frozen
class Page:
    """Signals after a cursor, oldest first, and the cursor after them."""

    cursor: str
    signals: tuple[dict[str, Any], ...]
    """In wire form: ``type``, ``ts_ms``, ``ref``."""
    next_is_free: bool = False
    """Whether the poll for the next page is exempt from the rate limit."""


class SignalStream(Protocol):
    """One ordered, bounded stream of signals per device."""

    def create(self, device_id: int) -> None:
        """Start an empty stream, inside the caller's transaction."""

    def append(self, device_id: int, type_: str, ref: Mapping[str, Any]) -> int:
        """Add a signal inside the caller's transaction, trim the stream to its bound, and return its ``ts_ms``."""

    async def publish(self) -> None:
        """Make committed signals readable and wake their waiters."""

    async def read(self, device_id: int, after: str | None, limit: int) -> Page:
        """Return up to ``limit`` signals after a cursor; None: from the oldest. ErrorResponse 409 for a void one."""

    async def wait(
        self, device_id: int, after: str, until: Callable[[], Awaitable[object]] = trio.sleep_forever
    ) -> bool:
        """Wait until there may be signals after the cursor (True), or ``until()`` returns (False)."""

    def wake(self, device_id: int | None = None) -> None:
        """Make the waiters of a device, or all of them, read again."""

    def trim(self, device_id: int, keep: int) -> int:
        """Drop all but the newest ``keep`` signals; return how many were dropped."""

    def waiting(self, device_id: int, after: str) -> int:
        """Return how many signals follow a cursor; 0 for a void one."""


class StreamEngine(Protocol):
    """Makes the signal stream of a plane; ``SqliteStream`` is the embedded one."""

    def __call__(self, database: Database, *, length: int, wall_now: Callable[[], float]) -> SignalStream:
        """Return the stream that keeps ``length`` signals per device."""


class SqliteStream:
    """The embedded engine."""

    def __init__(self, database: Database, *, length: int, wall_now: Callable[[], float]) -> None:
        """``length`` bounds each stream; ``wall_now`` gives seconds since the epoch."""
        self._db = database
        self._length = length
        self._wall_now = wall_now
        self._fresh: set[int] = set()
        self._waiters: dict[int, set[trio.CancelScope]] = {}

    def create(self, device_id: int) -> None:
        """Start an empty stream; its first cursor is the current time."""
        ms = int(self._wall_now() * 1000)
        self._db.run("INSERT INTO streams VALUES (?, ?, 0, ?, 0, 0)", device_id, ms, ms)

    def append(self, device_id: int, type_: str, ref: Mapping[str, Any]) -> int:
        """Add a signal; see ``SignalStream.append``."""
        stream = self._stream(device_id)
        last: int = stream["last_ms"]
        ms, seq = max(int(self._wall_now() * 1000), last), 0
        if ms == last:
            if stream["floor_ms"] == ms or self._is_repeat(device_id, ms, type_, ref):
                ms += 1
            else:
                seq = stream["last_seq"] + 1
        text = json.dumps(ref, ensure_ascii=False, separators=(",", ":"))
        self._db.run("INSERT INTO signals VALUES (?, ?, ?, ?, ?)", device_id, ms, seq, type_, text)
        self._db.run(
            "UPDATE streams SET last_ms = ?, last_seq = ?, length = length + 1 WHERE device_id = ?", ms, seq, device_id
        )
        if stream["length"] + 1 > self._length:
            self.trim(device_id, self._length)
        self._fresh.add(device_id)
        return ms

    async def publish(self) -> None:
        """Wake the waiters of the signals just committed."""
        fresh, self._fresh = self._fresh, set()
        for device_id in fresh:
            self.wake(device_id)

    async def read(self, device_id: int, after: str | None, limit: int) -> Page:
        """Return a page; see ``SignalStream.read``."""
        stream = self._stream(device_id)
        if after is None:
            after = f"{stream['floor_ms']}-{stream['floor_seq']}"
        ms, seq = _position(after)
        if (ms, seq) == (stream["last_ms"], stream["last_seq"]):  # the usual poll, with no new signals: one query
            return Page(after, ())
        # A valid cursor is the floor or a stored signal, so that nothing after it is missing.
        floor = (ms, seq) == (stream["floor_ms"], stream["floor_seq"])
        rows = self._db.all(
            "SELECT ms, seq, type, ref FROM signals WHERE device_id = ? AND (ms, seq) >= (?, ?)"
            " ORDER BY ms, seq LIMIT ?",
            device_id,
            ms,
            seq,
            limit + (not floor),
        )
        if not floor:
            if not rows or (rows[0]["ms"], rows[0]["seq"]) != (ms, seq):
                raise cursor_expired()
            rows = rows[1:]
        signals = tuple({"type": row["type"], "ts_ms": row["ms"], "ref": json.loads(row["ref"])} for row in rows)
        return Page(f"{rows[-1]['ms']}-{rows[-1]['seq']}" if rows else after, signals)

    async def wait(
        self, device_id: int, after: str, until: Callable[[], Awaitable[object]] = trio.sleep_forever
    ) -> bool:
        """Wait in one task: ``wake`` cancels the scope around ``until``."""
        stream = self._stream(device_id)
        if after != f"{stream['last_ms']}-{stream['last_seq']}":
            return True
        waiters = self._waiters.setdefault(device_id, set())
        with trio.CancelScope() as scope:
            waiters.add(scope)
            try:
                await until()
            finally:
                waiters.discard(scope)
                if not waiters and self._waiters.get(device_id) is waiters:
                    del self._waiters[device_id]
        return scope.cancel_called

    def wake(self, device_id: int | None = None) -> None:
        """Cancel the scopes of the waiters, so that each ``wait`` returns True."""
        for waiters in [self._waiters.get(device_id, set())] if device_id is not None else list(self._waiters.values()):
            for scope in tuple(waiters):
                scope.cancel()

    def trim(self, device_id: int, keep: int) -> int:
        """Drop the oldest signals and raise the floor, below which cursors are void."""
        newest_dropped = self._db.one(
            "SELECT ms, seq FROM signals WHERE device_id = ? ORDER BY ms DESC, seq DESC LIMIT 1 OFFSET ?",
            device_id,
            keep,
        )
        if newest_dropped is None:
            return 0
        floor = (newest_dropped["ms"], newest_dropped["seq"])
        with self._db.transaction():
            dropped = self._db.run("DELETE FROM signals WHERE device_id = ? AND (ms, seq) <= (?, ?)", device_id, *floor)
            self._db.run(
                "UPDATE streams SET floor_ms = ?, floor_seq = ?, length = length - ? WHERE device_id = ?",
                *floor,
                dropped,
                device_id,
            )
        return dropped

    def waiting(self, device_id: int, after: str) -> int:
        """Count the signals after a cursor."""
        match = _CURSOR.fullmatch(after)
        row = self._db.one(
            "SELECT count(*) AS n FROM signals WHERE device_id = ? AND (ms, seq) > (?, ?)",
            device_id,
            *(int(part) for part in (match.groups() if match else ("0", "0"))),
        )
        return int(row["n"]) if row is not None else 0

    def _stream(self, device_id: int) -> Row:
        row = self._db.one("SELECT * FROM streams WHERE device_id = ?", device_id)
        if row is None:
            raise not_found("No such stream")
        return row

    def _is_repeat(self, device_id: int, ms: int, type_: str, ref: Mapping[str, Any]) -> bool:
        rows = self._db.all("SELECT ref FROM signals WHERE device_id = ? AND ms = ? AND type = ?", device_id, ms, type_)
        ids = [ref.get(name) for name in IDENTITY_FIELDS]
        return any([json.loads(row["ref"]).get(name) for name in IDENTITY_FIELDS] == ids for row in rows)


def _position(cursor: str) -> tuple[int, int]:
    """Return the parts of a cursor; ErrorResponse 409 for any other text."""
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise cursor_expired()
    return int(match[1]), int(match[2])


EMBEDDED: StreamEngine = SqliteStream
"""The default engine."""
