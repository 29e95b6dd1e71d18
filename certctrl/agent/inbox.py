"""Keep received signals until their outcomes are durable, and outcomes until they are sent.

The order of writes:

    page → inbox.json or outcome → last_cursor.txt    after a crash in between, the plane sends the page again
    outcome → pending_acks.json → inbox.json          a finished signal is known to be finished
    failure → retries.json → inbox.json               a failed signal leaves as a retry

Outcomes and the identities of finished signals are one file, so that no crash separates them. A signal is handled
before it is durable here; one that is finished by the time of `secure` is never written.

It is bounded: while it is full, polling pauses. But no class of signals may keep another from being read, so each class
has room for a few signals that the plane shows ahead of the cursor (`admit_ahead`); when the cursor reaches them, they
are known.

Writes are grouped: outcomes that arrive during a write share the next one, so a burst of a thousand signals costs a
few dozen writes. One task at a time writes, under ``_disk``; a cancelled waiter loses nothing, because the data
belongs to the inbox.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio
from trio_util import RepeatedEvent

from certctrl.install.deploy.retry_table import RetryTable
from certctrl.model.offload import Offload
from certctrl.model.priority import Priority
from certctrl.model.records import Ack, InboxEntry
from certctrl.model.signals import Signal, identity, priority_of
from certctrl.store.state.session import SessionState

ACK_LIMIT = 1000
DONE_LIMIT = 1000
MAX_WAITING = 10
"""How many times the limit may wait for their next try."""
AHEAD_SHARE, MOST_AHEAD = 10, 100
"""Each class may have this part of the limit ahead of the cursor, but not more than so many signals."""


class Inbox:
    """Signals between "received" and "done", acks between "done" and "sent"."""

    def __init__(
        self,
        store: SessionState,
        offload: Offload,
        retries: RetryTable,
        secure_retries: Callable[[], Awaitable[None]],
        *,
        limit: int,
    ) -> None:
        self._store = store
        self._retries = retries
        self._secure_retries = secure_retries
        self._offload = offload
        self._limit = limit
        self._disk = trio.Lock()
        self._changed = RepeatedEvent()
        acks, done = store.load_outcomes()
        self._acks, self._done = list(acks), dict.fromkeys(done)
        # a power cut may restore an earlier inbox: its extra signals are done
        entries = {identity(entry.signal): entry for entry in store.load_inbox()}
        self._entries = {key: entry for key, entry in entries.items() if key not in self._done}
        self._dirty = len(self._entries) < len(entries)  # there is something to write
        retries.forget(self._done, self._entries)
        self._fewer = False  # acks were sent and are still on disk
        self._unsafe: set[str] = set()  # admitted, and not known to be durable
        self._outcomes = self._offered = 0  # acks so far; of these seen by `next_acks`
        self._ahead: dict[str, Priority] = {}  # admitted ahead of the cursor, which has not reached them yet
        self.acks_dropped = 0
        self.idle: Callable[[], int] = lambda: 0
        """Returns how many of the signals wait for others of their atomic batch, which may be on the next page."""

    @property
    def depth(self) -> int:
        """Signals received and not done, those that wait for their next try included."""
        return len(self._entries) + len(self._retries.signals())

    @property
    def acks_pending(self) -> int:
        """Outcomes not sent yet."""
        return len(self._acks)

    def entries(self) -> list[InboxEntry]:
        """Return the signals that are not done and have not failed, oldest first."""
        return list(self._entries.values())

    def has_room(self, count: int) -> bool:
        """Return whether ``count`` more signals fit; always true for an empty inbox.

        Retries take no room: one failing signal must not stop polling. Nor do signals that wait for the next page.
        """
        at_work = len(self._entries) - self.idle()
        return (not at_work or at_work + count <= self._limit) and self.depth <= MAX_WAITING * self._limit

    async def wait_for_room(self, count: int) -> None:
        """Wait until ``count`` more signals fit; polling pauses meanwhile."""
        while not self.has_room(count):
            await self._changed.wait()

    async def wait_for_outcomes(self, entries: Sequence[InboxEntry]) -> None:
        """Wait until each of these signals is done or has failed once."""
        while any(self._entries.get(identity(entry.signal)) is entry for entry in entries):
            await self._changed.wait()

    async def wait_for_ack(self) -> None:
        """Wait for an ack that the last `next_acks` did not return."""
        while self._outcomes == self._offered:
            await self._changed.wait()

    def has_done(self, signal: Signal) -> bool:
        """Return whether a signal is done; its outcome is durable after the next `secure`."""
        return identity(signal) in self._done

    def classes_with_room(self) -> tuple[Priority, ...]:
        """Return the classes that may be admitted ahead of the cursor; not the one that most signals are of."""
        taken, at_work = Counter(self._ahead.values()), Counter(priority_of(one.signal) for one in self.entries())
        filling = max(at_work, key=at_work.__getitem__, default=Priority.RENEWAL)
        return tuple(one for one in Priority if taken[one] < self._room_ahead and one is not filling)

    @property
    def _room_ahead(self) -> int:
        return max(1, min(self._limit // AHEAD_SHARE, MOST_AHEAD))

    def admit_ahead(self, signals: Sequence[Signal]) -> list[InboxEntry]:
        """Add signals that the cursor has not reached, as far as their classes have room; return the new ones.

        They need not be secured: after a crash, they come again.
        """
        classes, taken = self.classes_with_room(), Counter(self._ahead.values())
        for signal in signals:
            key, priority = identity(signal), priority_of(signal)
            if priority in classes and taken[priority] < self._room_ahead and key not in self._ahead:
                taken[priority] += 1
                self._ahead[key] = priority
        return self._admit([signal for signal in signals if identity(signal) in self._ahead])

    def admit(self, signals: Sequence[Signal]) -> list[InboxEntry]:
        """Add the signals of a page and return the new ones: neither pending nor done.

        They may be handled immediately; the cursor must not pass them before `secure` has returned.
        """
        fresh = self._admit(signals)
        if self._ahead:
            for signal in signals:
                self._ahead.pop(identity(signal), None)
        return fresh

    def caught_up(self) -> None:
        """Note that the cursor has reached the end of the stream: nothing is ahead of it."""
        self._ahead.clear()

    def _admit(self, signals: Sequence[Signal]) -> list[InboxEntry]:
        failed = {identity(one.signal) for one in self._retries.signals() if one.signal is not None}
        fresh: dict[str, InboxEntry] = {}
        for signal in signals:
            key = identity(signal)
            if key not in self._entries and key not in self._done and key not in failed:
                fresh[key] = InboxEntry(signal=signal)
        self._entries |= fresh
        self._unsafe |= fresh.keys()
        return list(fresh.values())

    async def secure(self) -> None:
        """Make outcomes and unfinished signals durable.

        Raises DiskError; then everything stays in memory, and the cursor must not move.
        """
        async with self._disk:
            while self._dirty:  # outcomes are durable before their signals leave
                await self._save()
            unsafe = set(self._unsafe)
            if not unsafe.isdisjoint(self._entries):
                await self._offload(self._store.save_inbox, tuple(self._entries.values()))
            self._unsafe -= unsafe

    async def finish(self, done: Sequence[InboxEntry], acks: Sequence[dict[str, Any]]) -> None:
        """Replace entries by their acks, durably; returns after both files are safe."""
        for entry in done:
            key = identity(entry.signal)
            self._entries.pop(key, None)
            self._done[key] = None
        self._add_acks(*acks)
        await self._write_and_notify()

    async def hand_over(self, entry: InboxEntry, *acks: dict[str, Any]) -> None:
        """Replace an entry that failed by its ack, durably; its retry, recorded before, is made durable first.

        One that only waits has no ack yet.
        """
        self._entries.pop(identity(entry.signal), None)
        self._add_acks(*acks)
        await self._write_and_notify()

    async def report(self, event: dict[str, Any]) -> None:
        """Queue an event without a signal in the inbox (a later failure or success), durably."""
        self._add_acks(event)
        await self._write_and_notify()

    def next_acks(self, count: int) -> list[dict[str, Any]]:
        """Return the oldest acks, at most ``count``; they stay until `sent`."""
        self._offered = self._outcomes
        return [ack.event for ack in self._acks[:count]]

    def sent(self, events: Sequence[dict[str, Any]]) -> None:
        """Drop acks that the plane accepted, compared by ``id()``: new ones may have been added since.

        They stay on disk until the next outcome or `close`; after a crash they are sent again.
        """
        gone = {id(event) for event in events}
        self._acks = [ack for ack in self._acks if id(ack.event) not in gone]
        self._fewer = True

    async def close(self) -> None:
        """Write what `sent` postponed. Raises DiskError."""
        async with self._disk:
            if self._dirty or self._fewer:
                await self._save()

    @property
    def behind(self) -> bool:
        """Whether `secure` has something to write, as after a failed write."""
        return self._dirty or bool(self._unsafe)

    def _add_acks(self, *events: dict[str, Any]) -> None:
        self._acks += [Ack(event=event) for event in events]
        self._outcomes += len(events)
        self._dirty = True
        if (over := len(self._acks) - ACK_LIMIT) > 0:
            del self._acks[:over]
            self.acks_dropped += over
        while len(self._done) > DONE_LIMIT:
            oldest = next(iter(self._done))
            del self._done[oldest]
            if oldest in self._ahead:  # it comes again; they are few
                self._done[oldest] = None

    async def _write_and_notify(self) -> None:
        try:
            await self._write()
        finally:  # even if the disk refuses it: the signal has ended in memory
            self._changed.set()

    async def _write(self) -> None:
        async with self._disk:
            if self._dirty:  # otherwise the previous write included this change
                await self._save()

    async def _save(self) -> None:
        """Write outcomes and entries, in this order; called under ``_disk``."""
        acks, done, before = tuple(self._acks), tuple(self._done), (self._dirty, self._fewer)
        entries = tuple(self._entries.values())  # what fails while the retries are written leaves with the next write
        self._dirty = self._fewer = False
        try:
            if before[0]:
                await self._secure_retries()
                await self._offload(self._store.save_progress, acks, done, entries)
            else:
                await self._offload(partial(self._store.save_outcomes, acks, done, sync_parent=False))
        except BaseException:
            self._dirty, self._fewer = self._dirty or before[0], self._fewer or before[1]
            raise
