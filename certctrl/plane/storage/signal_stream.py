"""SignalStream: append, read after a cursor, wait, trim.

A cursor is ``ms-seq``, the id of the last signal that a device has received. Ids only grow, even if the clock steps
back; an id's milliseconds are the signal's ``ts_ms``. Agents identify a signal by type, ids and ``ts_ms``, so a second
signal about the same object in the same millisecond gets the next one: otherwise it would look like a replay.

Each signal has a class (`Priority`): that of its type, unless `append_to_all` was given another one. It is stored in the
``ref``, from which it is taken for the wire, and sent only to agents that announced `PRIORITY`.

A change and its signal are stored together or not at all: ``append`` is part of the caller's unit of work. The commit
wakes the waiters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from math import inf
from types import TracebackType
from typing import Any

import trio

from certctrl import lean
from certctrl.model.features import PRIORITY
from certctrl.model.priority import Priority, derived_priority, types_of
from certctrl.model.signals import IDENTITY_FIELDS
from certctrl.plane.devices.features import announced
from certctrl.plane.errors import ErrorResponse, cursor_expired, not_found
from certctrl.plane.storage.database import Database, Row, marks

_STREAMS_PER_STATEMENT = 1000
"""Streams per statement."""
_PRIORITY = "priority"
"""Key of the class in a stored ``ref``; an older release ignores it."""
_MAX_WOKEN = 8
_PAST = (2**62, 0)
"""A position after all signals."""
_CURSOR = re.compile(r"(0|[1-9]\d{0,14})-(0|[1-9]\d{0,8})", re.ASCII)


@lean.frozen
class Page:
    """Signals after a cursor, oldest first, and the cursor after them."""

    cursor: str
    signals: tuple[dict[str, Any], ...]
    """In wire form: ``type``, ``ts_ms``, ``ref``."""
    next_is_free: bool = False
    """Whether the poll for the next page is exempt from the rate limit."""


@lean.frozen
class Found:
    """What ``SignalStream.read_many`` has read for a device."""

    page: Page | ErrorResponse | None
    row: Row | None
    """The columns that were asked for; None without such a device."""


@lean.define(eq=False)
class Waiter:
    """A poll that waits for signals of one device; no wake after ``SignalStream.waiter`` is lost."""

    cursor: str = ""
    """The position that it waits at; empty while the poll reads."""
    pushes: bool = False
    """Whether it is a push socket, not a poll."""
    _woken: bool = False
    _scope: trio.CancelScope | None = None

    async def wait(
        self, cursor: str, until: Callable[[], Awaitable[object]] = trio.sleep_forever, deadline: float = inf
    ) -> bool:
        """Wait until there may be signals after the cursor just read (True), or ``until()`` returns or time is up (False).

        It waits in one task: ``wake`` cancels the scope around ``until``.
        """
        if not self._woken:
            with trio.CancelScope(deadline=deadline) as self._scope:
                self.cursor = cursor
                await until()
            self.cursor, self._scope = "", None
        woken, self._woken = self._woken, False
        return woken

    def wake(self) -> None:
        """Make the current or the next ``wait`` return True."""
        self._woken = True
        if self._scope is not None:
            self._scope.cancel()


class Waiting:
    """A waiter among those of its device; a class, because a generator takes three times as long, once per poll."""

    __slots__ = ("_all", "_device_id", "_waiter")

    def __init__(self, all_: dict[int, tuple[Waiter, ...]], device_id: int, waiter: Waiter) -> None:
        self._all, self._device_id, self._waiter = all_, device_id, waiter

    def __enter__(self) -> Waiter:
        self._all[self._device_id] = (*self._all.get(self._device_id, ()), self._waiter)
        return self._waiter

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        others = tuple(one for one in self._all[self._device_id] if one is not self._waiter)
        if others:
            self._all[self._device_id] = others
        else:
            del self._all[self._device_id]


class SignalStream:
    """One ordered, bounded stream of signals per device."""

    def __init__(self, database: Database, *, length: int, wall_now: Callable[[], float]) -> None:
        """``length`` bounds each stream; ``wall_now`` gives seconds since the epoch."""
        self._db = database
        self._length = length
        self._wall_now = wall_now
        self._waiters: dict[int, tuple[Waiter, ...]] = {}
        self._paced = False
        self._left = _MAX_WOKEN
        """Devices whose waiters may be woken in this turn of the event loop, if wakes are paced."""
        self._due: dict[int, None] = {}
        """Devices whose waiters must be woken."""
        self._any_due = trio.Event()
        self.announce: Callable[[Collection[int]], object] | None = None
        """Notifies the other planes on this database of devices with new signals."""
        self.also_sweep: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        """Wakes waiters for other reasons than signals."""

    def create(self, device_id: int) -> None:
        """Start an empty stream; its first cursor is the current time."""
        ms = int(self._wall_now() * 1000)
        self._db.run("INSERT INTO streams VALUES (?, ?, 0, ?, 0, 0)", device_id, ms, ms)

    def append(self, device_id: int, type_: str, ref: Mapping[str, Any]) -> int:
        """Add a signal inside the caller's transaction, trim the stream to its bound, and return its ``ts_ms``."""
        ms = self._append(device_id, type_, ref)
        self.wake_after_commit(device_id)
        return ms

    def _append(self, device_id: int, type_: str, ref: Mapping[str, Any]) -> int:
        stream = self._stream(device_id)
        last: int = stream["last_ms"]
        ms, seq = max(int(self._wall_now() * 1000), last), 0
        if ms == last:
            if stream["floor_ms"] == ms or self._is_repeat(device_id, ms, type_, ref):
                ms += 1
            else:
                seq = stream["last_seq"] + 1
        self._db.run("INSERT INTO signals VALUES (?, ?, ?, ?, ?)", device_id, ms, seq, type_, _json(ref))
        self._db.run(
            "UPDATE streams SET last_ms = ?, last_seq = ?, length = length + 1 WHERE device_id = ?", ms, seq, device_id
        )
        if stream["length"] + 1 > self._length:
            self.trim(device_id, self._length)
        return ms

    def append_to_all(
        self, device_ids: Sequence[int], type_: str, ref: Mapping[str, Any], priority: Priority | None = None
    ) -> None:
        """Add one signal to many streams, as ``append``, with few statements for those that get the same id.

        ``priority``: its class; None: that of its type.
        """
        if priority not in (None, derived_priority(type_)):
            ref = {**ref, _PRIORITY: priority}
        now = int(self._wall_now() * 1000)
        for start in range(0, len(device_ids), _STREAMS_PER_STATEMENT):
            some = device_ids[start : start + _STREAMS_PER_STATEMENT]
            rows = self._db.all_locked(
                f"SELECT device_id FROM streams WHERE device_id IN ({marks(some)}) AND last_ms < ? AND length < ?"
                " ORDER BY device_id",
                *(*some, now, self._length),
            )
            alike = [row["device_id"] for row in rows]
            self._append_alike(alike, now, type_, _json(ref))
            for device_id in sorted(set(some) - set(alike)):
                self._append(device_id, type_, ref)
            self._db.after_commit(partial(self._changed, some))

    def _append_alike(self, device_ids: Sequence[int], ms: int, type_: str, ref: str) -> None:
        if not device_ids:
            return
        chosen = f"WHERE device_id IN ({marks(device_ids)})"
        sql = f"INSERT INTO signals SELECT device_id, ?, 0, ?, ? FROM streams {chosen}"
        self._db.run(sql, ms, type_, ref, *device_ids)
        self._db.run(f"UPDATE streams SET last_ms = ?, last_seq = 0, length = length + 1 {chosen}", ms, *device_ids)

    def read(self, device_id: int, after: str | None, limit: int) -> Page:
        """Return up to ``limit`` signals after a cursor; None: from the oldest. ErrorResponse 409 for a void one."""
        ms, seq = (0, 0) if after is None else _position(after)
        # One statement, and so one state of the stream: a trim between two would hide signals.
        rows = self._db.all(
            "SELECT t.floor_ms, t.floor_seq, s.ms, s.seq, s.type, s.ref, d.features FROM streams t"
            " JOIN devices d ON d.id = t.device_id LEFT JOIN signals s ON s.device_id = t.device_id"
            " AND (s.ms, s.seq) >= (?, ?) WHERE t.device_id = ? ORDER BY s.ms, s.seq LIMIT ?",
            ms,
            seq,
            device_id,
            limit + 1,
        )
        return _page_after(after, rows, limit)

    def read_ahead(self, device_id: int, after: str | None, limit: int, classes: Collection[Priority]) -> Page:
        """Return up to ``limit`` signals of some classes after a cursor, with that cursor; ErrorResponse as ``read``."""
        if after is None:
            stream = self._db.one("SELECT floor_ms, floor_seq FROM streams WHERE device_id = ?", device_id)
            after = f"{stream['floor_ms']}-{stream['floor_seq']}" if stream is not None else "0-0"
        self.read(device_id, after, 1)  # refuses a void cursor
        ms, seq = _position(after)
        chosen, values = _in_classes(classes)
        rows = self._db.all(
            "SELECT s.ms, s.seq, s.type, s.ref, d.features FROM signals s JOIN devices d ON d.id = s.device_id"
            f" WHERE s.device_id = ? AND (s.ms, s.seq) > (?, ?) AND ({chosen}) ORDER BY s.ms, s.seq LIMIT ?",
            *(device_id, ms, seq, *values, limit),
        )
        return Page(after, tuple(map(_signal, rows)))

    def read_many(
        self,
        reads: Sequence[tuple[int, str | None, int]],
        columns: str = "d.id",
        joins: str = "",
        values: Sequence[Any] = (),
    ) -> list[Found]:
        """Read what ``read`` returns or raises for each device, cursor and limit, and columns, in one statement.

        For cursors near the end of their streams, because no limit is applied before the rows are here; None: no page.
        ``columns`` are of the device ``d`` and what ``joins`` join to it; ``values`` are for their placeholders.
        """
        wanted = [
            (number, device_id, *(_PAST if after is None else _position(after)))
            for number, (device_id, after, _) in enumerate(reads)
        ]
        rows = self._db.all(
            f"WITH wanted (number, device_id, ms, seq) AS (VALUES {', '.join(['(?, ?, ?, ?)'] * len(wanted))})"
            f" SELECT wanted.number, t.floor_ms, t.floor_seq, s.ms, s.seq, s.type, s.ref, d.features, {columns} FROM wanted"
            f" JOIN streams t ON t.device_id = wanted.device_id JOIN devices d ON d.id = t.device_id {joins}"
            " LEFT JOIN signals s ON s.device_id = t.device_id"
            " AND (s.ms, s.seq) >= (wanted.ms, wanted.seq) ORDER BY wanted.number, s.ms, s.seq",
            *(*chain.from_iterable(wanted), *values),
        )
        of_each: list[list[Row]] = [[] for _ in reads]
        for row in rows:
            of_each[row["number"]].append(row)
        return [
            Found(None if after is None else _page_or_error(after, limit, found), found[0] if found else None)
            for (_, after, limit), found in zip(reads, of_each, strict=True)
        ]

    def waiter(self, device_id: int) -> Waiting:
        """Return a context manager that yields a waiter; one that exists before the first read misses no signal."""
        return self.waiting_as(device_id, Waiter())

    def waiting_as(self, device_id: int, waiter: Waiter) -> Waiting:
        """Return a context manager that wakes a waiter while its block runs."""
        return Waiting(self._waiters, device_id, waiter)

    def waiting_polls(self) -> int:
        """Return the number of polls that wait for signals; units of work may call this in threads."""
        waiters = list(chain.from_iterable(list(self._waiters.values())))  # both copies are made in one step
        return sum(1 for waiter in waiters if waiter.cursor and not waiter.pushes)

    def wake(self, device_id: int) -> None:
        """Make the waiters of a device read again."""
        self._wake((device_id,))

    def wake_all(self) -> None:
        """Make all waiters read again."""
        self._wake(tuple(self._waiters))

    def _wake(self, device_ids: Collection[int]) -> None:
        """Wake the waiters of devices: the first few at once, because a turn of the event loop takes time."""
        self._due.update(dict.fromkeys(filter(self._waiters.__contains__, device_ids)))
        if self._due:
            self._any_due.set()
            self._wake_due()

    def _wake_due(self) -> None:
        while self._due and (self._left or not self._paced):
            device_id = next(iter(self._due))
            del self._due[device_id]
            self._left -= self._paced
            for waiter in self._waiters.get(device_id, ()):
                waiter.wake()

    async def pace_wakes(self) -> None:
        """Wake a few devices in each turn of the event loop, forever, so that a wave does not delay other requests."""
        self._paced = True
        try:
            while True:
                await self._any_due.wait()
                self._any_due = trio.Event()
                self._left = _MAX_WOKEN
                self._wake_due()
                if self._left < _MAX_WOKEN:  # the next turn has all wakes again
                    self._any_due.set()
                await trio.lowlevel.checkpoint()
        finally:
            self._paced = False
            self._wake_due()

    def wake_after_commit(self, device_id: int) -> None:
        """Make the waiters of a device read again once the caller's transaction is committed."""
        self._db.after_commit(partial(self._changed, (device_id,)))

    def _changed(self, device_ids: Collection[int]) -> None:
        self._wake(device_ids)
        if self.announce is not None:
            self.announce(device_ids)

    async def sweep(self) -> None:
        """Wake the waiters whose streams have new signals, whichever process appended them."""
        waiting = {device_id: [waiter.cursor for waiter in waiters] for device_id, waiters in self._waiters.items()}
        for device_id, head in (await self._db.work(self._heads, list(waiting))).items():
            if any(cursor not in ("", head) for cursor in waiting[device_id]):
                self.wake(device_id)
        await self.also_sweep()

    def _heads(self, devices: Sequence[int]) -> dict[int, str]:
        """Return the last cursor of each stream."""
        rows: list[Row] = []
        for start in range(0, len(devices), _STREAMS_PER_STATEMENT):
            some = devices[start : start + _STREAMS_PER_STATEMENT]
            rows += self._db.all(
                f"SELECT device_id, last_ms, last_seq FROM streams WHERE device_id IN ({marks(some)})", *some
            )
        return {row["device_id"]: f"{row['last_ms']}-{row['last_seq']}" for row in rows}

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

    def waiting(self, cursors: Mapping[int, str]) -> dict[int, int]:
        """Count the signals of each device after its cursor; devices without any are left out."""
        positions: list[int] = []
        for device_id, cursor in cursors.items():
            match = _CURSOR.fullmatch(cursor)
            positions += [device_id, *(int(part) for part in (match.groups() if match else ("0", "0")))]
        if not positions:
            return {}
        rows = self._db.all(
            f"SELECT v.column1 AS device_id, count(*) AS n FROM (VALUES {', '.join(['(?, ?, ?)'] * len(cursors))}) AS v"
            " JOIN signals s ON s.device_id = v.column1 AND (s.ms, s.seq) > (v.column2, v.column3) GROUP BY v.column1",
            *positions,
        )
        return {row["device_id"]: row["n"] for row in rows}

    def _stream(self, device_id: int) -> Row:
        """Return the stream of a device, locked, so that its signals get their ids in the order of their commits."""
        row = self._db.one_locked("SELECT * FROM streams WHERE device_id = ?", device_id)
        if row is None:
            raise not_found("No such stream")
        return row

    def _is_repeat(self, device_id: int, ms: int, type_: str, ref: Mapping[str, Any]) -> bool:
        rows = self._db.all("SELECT ref FROM signals WHERE device_id = ? AND ms = ? AND type = ?", device_id, ms, type_)
        ids = [ref.get(name) for name in IDENTITY_FIELDS]
        return any([json.loads(row["ref"]).get(name) for name in IDENTITY_FIELDS] == ids for row in rows)


def _json(ref: Mapping[str, Any]) -> str:
    return json.dumps(ref, ensure_ascii=False, separators=(",", ":"))


def _page_after(after: str | None, rows: Sequence[Row], limit: int) -> Page:
    """Return the page of a stream's rows; ErrorResponse 404 without rows, 409 for a void cursor.

    Each row has the floor, and a signal unless there is none from the cursor on.
    """
    if not rows:
        raise not_found("No such stream")
    floor = rows[0]["floor_ms"], rows[0]["floor_seq"]
    signals = [row for row in rows if row["ms"] is not None]
    # A valid cursor is the floor or a stored signal, so that nothing after it is missing.
    if after is None:
        after = f"{floor[0]}-{floor[1]}"
    elif (position := _position(after)) != floor:
        if not signals or (signals[0]["ms"], signals[0]["seq"]) != position:
            raise cursor_expired()
        del signals[0]
    return _page(after, signals[:limit])


def _page_or_error(after: str, limit: int, rows: Sequence[Row]) -> Page | ErrorResponse:
    try:
        return _page_after(after, rows, limit)
    except ErrorResponse as error:
        return error


def _page(after: str, rows: Sequence[Row]) -> Page:
    return Page(f"{rows[-1]['ms']}-{rows[-1]['seq']}" if rows else after, tuple(map(_signal, rows)))


def _signal(row: Row) -> dict[str, Any]:
    """Return a signal as its agent gets it."""
    ref = json.loads(row["ref"])
    priority = ref.pop(_PRIORITY, None) or derived_priority(row["type"])
    signal = {"type": row["type"], "ts_ms": row["ms"], "ref": ref}
    return signal | {"priority": priority} if PRIORITY in announced(row) else signal


def _in_classes(classes: Collection[Priority]) -> tuple[str, list[str]]:
    """Return the condition for signals of some classes, and its values."""
    marked = [f'%"{_PRIORITY}":"{one}"%' for one in classes]  # the stored JSON has no spaces
    the_rest = Priority.RENEWAL in classes  # it has all types that no other class has
    types = ["", *(name for one in Priority if (one in classes) is not the_rest for name in types_of(one))]
    by_type = f"s.type {'NOT IN' if the_rest else 'IN'} ({marks(types)}) AND s.ref NOT LIKE ?"
    by_mark = " OR ".join(["s.ref LIKE ?"] * len(marked))
    return f"({by_type}) OR {by_mark}", [*types, f'%"{_PRIORITY}":"%', *marked]


def _position(cursor: str) -> tuple[int, int]:
    """Return the parts of a cursor; ErrorResponse 409 for any other text."""
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise cursor_expired()
    return int(match[1]), int(match[2])
