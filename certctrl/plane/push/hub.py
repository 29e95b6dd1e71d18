"""Push: the open sockets of this process, their units of work, and questions to agents on any process.

A socket waits as a poll does: a commit that concerns its device wakes it, here or by a notification of another process.
It then reads, in a unit of work shared with other sockets, the end of its session, its replacement by another socket,
open questions, and the next page. The sweep makes up for lost notifications.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

import trio

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.model.features import PUSH
from certctrl.plane.devices.devices import Devices
from certctrl.plane.devices.features import announced
from certctrl.plane.devices.reports import Event, Reports, is_costly, is_few_acks
from certctrl.plane.devices.sessions import END_COLUMNS, DeviceSession, Sessions, end_of, or_error
from certctrl.plane.errors import DatabaseAwayError, ErrorResponse, conflict
from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.push.questions import Question, Questions, Reply, Result, refusal
from certctrl.plane.push.sockets import Socket, Sockets
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.gathering import RunAlike
from certctrl.plane.storage.signal_stream import Page, SignalStream, Waiter

A = TypeVar("A")
T = TypeVar("T")

_FLUSH_SECONDS = 1.0
"""Delay until closed sockets are removed from the table, together."""
_MINUTE = 60.0
_SEEN_SECONDS = 300.0
"""Seconds between records of an open socket's last contact."""
_ASK_AGAIN_SECONDS = 2.0
"""Seconds between reads of an open question, in case a notification was lost."""
_MAX_SWEPT = 500
_COLUMNS = (
    "d.id AS device_id, k.name AS socket, EXISTS (SELECT 1 FROM questions q WHERE q.device_id = d.id AND q.result = ''"
    " AND q.expires_at > ?) AS asked"
)
_JOIN = "LEFT JOIN sockets k ON k.device_id = d.id"
"""The columns of a woken socket's device: the name of its socket in the table, and whether it has open questions."""

log = logging.getLogger("certctrl.Plane")


class Alike(NamedTuple):
    """Functions that run the units of work of sockets."""

    read: RunAlike
    change: RunAlike


class Peer(Protocol):
    """The hub's view of the conversation on a socket."""

    cursor: str | None
    """Last position that the agent has confirmed."""

    @property
    def received_at(self) -> float:
        """When bytes arrived last (Trio clock)."""

    def wake(self) -> None:
        """Make it read again."""


@lean.define(eq=False)
class OpenSocket:
    """A socket of this process."""

    socket: Socket
    session: DeviceSession
    peer: Peer
    recorded: bool = False
    """Whether it is in the table."""
    replaced: bool = False
    """Whether the device has a newer socket here."""
    seen_at: float = 0.0
    """When its last contact was recorded (Trio clock)."""


@lean.frozen
class Hello:
    """Where an agent wants to begin; ``cursor`` None: at the oldest signal."""

    socket: Socket
    cursor: str | None
    limit: int


@lean.frozen
class Greeting:
    """The position from which pages follow, with the first page; or why there is none."""

    position: str
    page: Page
    refusal: ErrorResponse | None = None


@lean.frozen(kw_only=True)
class Wanted:
    """The position of a socket that was woken; ``cursor`` None: it takes no page now."""

    name: str
    """Name of the socket; empty if it is not in the table."""
    cursor: str | None
    limit: int
    behind: bool = False
    """Whether there may be many more signals than ``limit``."""


@lean.frozen
class Waiting:
    """The page and questions that wait for a socket, and whether another socket has replaced it."""

    page: Page | None
    questions: tuple[Question, ...]
    replaced: bool


class Push:
    """The hub of one process."""

    def __init__(
        self,
        database: Database,
        parts: tuple[SignalStream, Sessions, Devices, Reports],
        sockets: Sockets,
        counters: PlaneCounters,
        wall_now: Callable[[], float],
        alike: Alike,
    ) -> None:
        self._db = database
        self._stream, self._sessions, self._devices, self._reports = parts
        self._sockets = sockets
        self._counters = counters
        self._wall_now = wall_now
        self._read_alike, self._change_alike = alike
        self.questions = Questions(database, self._stream, wall_now)
        self._open: dict[int, OpenSocket] = {}
        self._closed: dict[int, str] = {}
        """Sockets to remove from the table."""
        self._any_closed = trio.Event()
        self.stopping = False
        """Whether this process stops, so that its sockets close."""

    # --- open sockets of this process ---------------------------------------------------------------------------

    def count(self) -> int:
        """Return the number of open sockets of this process."""
        return len(self._open)

    def enter(self, opened: OpenSocket) -> None:
        """Add a socket; it replaces another one of its device."""
        before = self._open.get(opened.socket.device_id)
        self._open[opened.socket.device_id] = opened
        if before is not None and before is not opened:
            before.replaced = True
            before.peer.wake()

    def leave(self, opened: OpenSocket) -> None:
        """Remove a socket that has closed; idempotent."""
        device_id = opened.socket.device_id
        if self._open.get(device_id) is opened:
            del self._open[device_id]
        if opened.recorded and not opened.replaced:
            self._closed[device_id] = opened.socket.name
            self._any_closed.set()
        self._see(opened)

    def opened(self, device_ids: Sequence[int]) -> dict[int, float]:
        """Return when the sockets of devices were opened, on any process; in the caller's unit of work."""
        return self._sockets.opened_elsewhere(device_ids) | {
            device_id: self._open[device_id].socket.opened_at for device_id in device_ids if device_id in self._open
        }

    # --- units of work of sockets -------------------------------------------------------------------------------

    async def authenticate(self, token: str) -> DeviceSession:
        """Return the session of an access token; ErrorResponse 401 and 403."""
        session: DeviceSession = await self._read_alike(self._sessions.authenticate_many, token)
        return session

    async def greet(self, opened: OpenSocket, hello: Hello) -> Greeting:
        """Record a socket, and return its first page; ErrorResponse 401 and 403, DatabaseAwayError.

        While nothing can be stored, the socket opens nevertheless, unrecorded.
        """
        greeting: Greeting
        try:
            greeting = await self._change_alike(self._record_and_greet, (opened.session, hello))
        except (ErrorResponse, DatabaseAwayError):
            raise
        except CertctrlError:
            greeting = await self._read_alike(self._greet, (opened.session, hello))
        else:
            opened.recorded = True
        self._devices.seen(opened.socket.device_id, opened.socket.address, hello.cursor or "")
        opened.seen_at = trio.current_time()
        return greeting

    def _record_and_greet(self, items: Sequence[tuple[DeviceSession, Hello]]) -> list[Greeting | ErrorResponse]:
        greetings = self._greet(items)
        pairs = zip(items, greetings, strict=True)
        greeted = {hello.socket.device_id: hello.socket for (_, hello), one in pairs if isinstance(one, Greeting)}
        if greeted:
            for device_id in self._sockets.elsewhere(greeted):
                self._stream.wake_after_commit(device_id)
            self._sockets.add(greeted.values())
        return greetings

    def _greet(self, items: Sequence[tuple[DeviceSession, Hello]]) -> list[Greeting | ErrorResponse]:
        ends = self._sessions.ends([session for session, _ in items])
        return [end or self._first(session, hello) for end, (session, hello) in zip(ends, items, strict=True)]

    def _first(self, session: DeviceSession, hello: Hello) -> Greeting:
        device_id, cursor = session.device_id, hello.cursor
        try:
            if cursor is None:
                cursor = self._stream.read(device_id, None, 0).cursor
            return Greeting(cursor, self._stream.read(device_id, cursor, hello.limit))
        except ErrorResponse as error:
            return Greeting("", Page("", ()), error)

    async def next(self, session: DeviceSession, wanted: Wanted) -> Waiting:
        """Return the next page and open questions for a socket; ErrorResponse 401, 403 and 409."""
        waiting: Waiting = await self._read_alike(self._next, (session, wanted))
        return waiting

    def _next(self, items: Sequence[tuple[DeviceSession, Wanted]]) -> list[Waiting | ErrorResponse]:
        """Return what waits for each socket; one statement, unless there are questions or a socket is far behind."""
        reads = [(session.device_id, None if one.behind else one.cursor, one.limit) for session, one in items]
        all_found = self._stream.read_many(reads, f"{END_COLUMNS}, {_COLUMNS}", _JOIN, (self._wall_now(),))
        asked = {one.row["device_id"] for one in all_found if one.row is not None and one.row["asked"]}
        questions = self.questions.waiting(sorted(asked)) if asked else {}
        waiting: list[Waiting | ErrorResponse] = []
        for (session, wanted), found in zip(items, all_found, strict=True):
            device_id, page = session.device_id, found.page
            if wanted.behind and wanted.cursor is not None:
                page = or_error(self._stream.read, device_id, wanted.cursor, wanted.limit)
            end = end_of(session, found.row)
            if end is not None or isinstance(page, ErrorResponse) or found.row is None:
                waiting.append(end or page)  # type: ignore[arg-type]  # one of them is an error
                continue
            replaced = wanted.name != "" and found.row["socket"] not in (None, wanted.name)
            waiting.append(Waiting(page, questions.get(device_id, ()), replaced))
        return waiting

    async def store(self, session: DeviceSession, events: Sequence[Event]) -> None:
        """Store the outcomes that a device reports; ErrorResponse 401 and 403."""
        if is_few_acks(events):
            await self._change_alike(self._store_acks, (session, events))
        else:
            run = self._db.work_long if is_costly(events) else self._db.work
            await run(self._store, session, events)

    def _store_acks(self, items: Sequence[tuple[DeviceSession, Sequence[Event]]]) -> list[ErrorResponse | None]:
        ends = self._sessions.ends([session for session, _ in items])
        good = [item for end, item in zip(ends, items, strict=True) if end is None]
        if good:
            self._reports.store_acks(good)
        return ends

    def _store(self, session: DeviceSession, events: Sequence[Event]) -> None:
        (end,) = self._sessions.ends([session])
        if end is not None:
            raise end
        self._reports.store(session.device_id, events)

    async def answer(self, device_id: int, question_id: int, reply: Reply) -> None:
        """Store the reply of an agent."""
        await self._db.work(self.questions.end, device_id, question_id, reply)

    # --- questions of operators ----------------------------------------------------------------------------------

    async def ask(self, user_id: int, device_id: int, kind: str, *, seconds: int, asked_by: str) -> dict[str, Any]:
        """Ask the agent of a device, and return the record of the question with its answer.

        ErrorResponse 404, 409 if it is not connected, or cannot or must not answer, 429, 503 if this process stops, and 504 if
        it does not answer in time.
        """
        with self._stream.waiter(device_id) as waiter:
            name, question = await self._db.work(self._ask, user_id, device_id, kind, seconds, asked_by)
            record = await self._ended(question, waiter, trio.current_time() + seconds)
        self._counters.questions[kind, record["result"]] += 1
        log.info(
            "question %d: %s of device %d (%s) for %s: %s after %.3f s",
            *(question.id, kind, device_id, name, asked_by, record["result"], record["seconds"]),
        )
        if record["result"] != Result.ANSWERED:
            raise refusal(name, record)
        return record

    def _ask(self, user_id: int, device_id: int, kind: str, seconds: int, asked_by: str) -> tuple[str, Question]:
        row = self._devices.row(user_id, device_id)
        name = row["name"] or f"device {device_id}"
        if row["status"] != "active":
            raise conflict(f"{name} is {row['status']}, not active", "NOT_CONNECTED")
        if PUSH not in announced(row):
            version = row["app_version"] or "an unknown version"
            raise conflict(f"{name}: its agent ({version}) has no push; update it", "PUSH_UNSUPPORTED")
        if device_id not in self.opened([device_id]):
            what = f"{name} is not connected by push; its agent needs poll_mode push, and may be down"
            raise conflict(what, "NOT_CONNECTED")
        return name, self.questions.ask(device_id, kind, seconds, asked_by)

    async def _ended(self, question: Question, waiter: Waiter, deadline: float) -> dict[str, Any]:
        """Return the record of a question once it has ended, at the deadline at the latest."""
        while True:
            record = await self._db.work(self.questions.take, question)
            if record is not None:
                return record
            now = trio.current_time()
            if self.stopping or now >= deadline:
                reply = Reply(Result.STOPPED if self.stopping else Result.TIMED_OUT)
                await self._db.work(self.questions.end, question.device_id, question.id, reply)
            else:
                await waiter.wait("", deadline=min(deadline, now + _ASK_AGAIN_SECONDS))

    # --- background ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the table and the last contacts of open sockets, forever."""
        minute = trio.current_time() + _MINUTE
        while True:
            with trio.move_on_at(minute):
                await self._any_closed.wait()
                await trio.sleep(_FLUSH_SECONDS)
            await self._remove_closed()
            if trio.current_time() >= minute:
                minute = trio.current_time() + _MINUTE
                await self._each_minute()

    async def _remove_closed(self) -> None:
        closed, self._closed, self._any_closed = self._closed, {}, trio.Event()
        if closed:
            try:
                await self._db.work_long(self._sockets.remove, closed)
            except CertctrlError:  # logged by the engine; the rows count until this process ends, or the device returns
                self._closed = closed | self._closed

    async def _each_minute(self) -> None:
        unrecorded = []
        for opened in list(self._open.values()):
            if trio.current_time() - opened.seen_at >= _SEEN_SECONDS:
                self._see(opened)
            if not opened.recorded:
                unrecorded.append(opened)
        if unrecorded:
            try:
                await self._db.work_long(self._sockets.add, [opened.socket for opened in unrecorded], late=True)
            except CertctrlError:
                return  # again in a minute
            for opened in unrecorded:
                opened.recorded = True

    def _see(self, opened: OpenSocket) -> None:
        """Record the last contact of a socket."""
        now = opened.seen_at = trio.current_time()
        at = self._wall_now() - (now - opened.peer.received_at)
        self._devices.seen(opened.socket.device_id, opened.socket.address, opened.peer.cursor or "", at)

    async def sweep(self) -> None:
        """Wake sockets that were replaced, or have open questions or an ended session: notifications may be lost."""
        everyone = list(self._open.values())
        for start in range(0, len(everyone), _MAX_SWEPT):
            some = everyone[start : start + _MAX_SWEPT]
            lost, stale = await self._db.work_read(self._lost_and_stale, some)
            for opened in some:  # `_each_minute` records it again
                opened.recorded = opened.recorded and opened.socket.device_id not in lost
            for device_id in stale:
                self._stream.wake(device_id)
        if everyone:
            for device_id in await self._db.work_read(self.questions.devices):
                self._stream.wake(device_id)

    def _lost_and_stale(self, sockets: Sequence[OpenSocket]) -> tuple[list[int], list[int]]:
        """Return the devices whose sockets are no longer in the table, and those whose sockets must read.

        After a time without the database, other processes have deleted what this one had recorded.
        """
        values = [
            (one.socket.device_id, one.session.number, one.socket.name if one.recorded else "") for one in sockets
        ]
        is_stale = "d.id IS NULL OR d.status = 'revoked' OR d.session != v.column2 OR (v.column3 != '' AND k.name != v.column3)"
        rows = self._db.all(
            f"SELECT v.column1 AS id, CASE WHEN {is_stale} THEN 1 ELSE 0 END AS stale"
            f" FROM (VALUES {', '.join(['(?, ?, ?)'] * len(values))}) AS v"
            " LEFT JOIN devices d ON d.id = v.column1 LEFT JOIN sockets k ON k.device_id = v.column1"
            f" WHERE {is_stale} OR (v.column3 != '' AND k.name IS NULL)",
            *chain.from_iterable(values),
        )
        lost, stale = ([row["id"] for row in rows if bool(row["stale"]) is of_kind] for of_kind in (False, True))
        return lost, stale
