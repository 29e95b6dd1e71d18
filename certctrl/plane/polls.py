"""Polls of devices: within limits, read in a unit of work, and held until there are signals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from certctrl import lean
from certctrl.model.priority import Priority
from certctrl.plane.devices.devices import Devices
from certctrl.plane.devices.sessions import END_COLUMNS, DeviceSession, end_of, or_error
from certctrl.plane.errors import DatabaseAwayError, DatabaseLockedError, ErrorResponse, bad_request
from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.limits import Buckets, FreePages
from certctrl.plane.pace import Pace
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.gathering import RunAlike
from certctrl.plane.storage.signal_stream import Page, SignalStream, Waiter

MAX_SIGNALS = 100
MAX_WAIT_SECONDS = 30
DEFAULT_LIMIT = 20
COSTLY_RATE, COSTLY_BURST = 10.0, 12
"""How many requests that cost much more than a poll each device may send, for one poll that it may send."""


@lean.frozen(kw_only=True)
class Poll:
    """The request of a poll."""

    cursor: str | None = None
    limit: int = DEFAULT_LIMIT
    wait: float = 0
    address: str = ""
    """Source address of the request."""
    instance: str = ""
    """Random name of the agent's process; empty for an older agent."""
    ahead: frozenset[Priority] = frozenset()
    """Classes of signals to show ahead of the cursor, which stays where it is; empty: a poll."""


@lean.frozen
class HeldPoll:
    """A poll after its first read."""

    session: DeviceSession
    poll: Poll
    page: Page


class Polls:
    """The polls of all devices, and the limits of each device."""

    def __init__(
        self,
        parts: tuple[SignalStream, Devices, PlaneCounters],
        read: RunAlike,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """``read`` runs the reads of held polls."""
        self._stream, self._devices, self._counters = parts
        self._read = read
        self._wall_now = wall_now
        self.pace = Pace()
        self.draining = False
        """Whether the plane is stopping and no longer holds polls."""
        rate, burst = settings.poll_rate, settings.poll_burst
        self._polls, self._ahead_reads = (Buckets(rate, burst, monotonic) for _ in range(2))
        self._costly = Buckets(COSTLY_RATE * rate, COSTLY_BURST * burst, monotonic)
        self._free_pages = FreePages()

    def begin_all(self, polls: Sequence[tuple[DeviceSession, Poll]]) -> list[HeldPoll | ErrorResponse]:
        """Return for each poll what ``begin`` returns or raises, in the unit of work that authenticated."""
        return [or_error(self.begin, session, poll, session.head) for session, poll in polls]

    def begin(self, session: DeviceSession, poll: Poll, head: str = "") -> HeldPoll:
        """Read the first page, as part of a unit of work, or the signals ahead of the cursor; ErrorResponse 400, 409, 429.

        ``head``: the cursor of the last signal, if this unit of work has read it; after it, nothing needs to be read.
        """
        device_id = session.device_id
        if not 1 <= poll.limit <= MAX_SIGNALS:
            raise bad_request(f"limit must be 1 to {MAX_SIGNALS}", field="limit")
        if not 0 <= poll.wait <= MAX_WAIT_SECONDS:
            raise bad_request(f"wait must be 0 to {MAX_WAIT_SECONDS}", field="wait")
        if poll.ahead:
            self._ahead_reads.take(device_id)
            return HeldPoll(session, poll, self._stream.read_ahead(device_id, poll.cursor, poll.limit, poll.ahead))
        if not self._free_pages.redeem(device_id, poll.cursor):
            self.take(device_id)
        is_new = not head or poll.cursor != head
        page = self._stream.read(device_id, poll.cursor, poll.limit) if is_new else Page(head, ())
        self._devices.seen(device_id, poll.address, poll.cursor or "")
        return HeldPoll(session, poll, page)

    async def finish(
        self, held: HeldPoll, waiter: Waiter, until: Callable[[], Awaitable[object]] = trio.sleep_forever
    ) -> Page:
        """Return the signals of a poll, waiting most of its ``wait`` seconds for the first one.

        An empty page has the cursor to keep. After a full page of at least ``DEFAULT_LIMIT``, the next one does not
        count against the rate limit. ``waiter`` exists since before ``begin``; ``until`` returns when the client
        is gone. ErrorResponse 409, also 401 and 403 if the session ends or the device is revoked during the wait.
        """
        poll, page, parked = held.poll, held.page, False
        if poll.ahead:
            return page
        deadline = trio.current_time() + self.pace.hold_seconds(poll.wait)
        while poll.wait and not page.signals and not self.draining:
            parked = True
            if not await waiter.wait(page.cursor, until, deadline) or self.draining:
                break  # no further read at a stop: the next plane does it
            try:
                page = await self._read(self._next_pages, (held.session, page.cursor, poll.limit))
            except (DatabaseAwayError, DatabaseLockedError):
                continue  # keep waiting: otherwise all devices would poll while the database is away
        if parked and page.signals:
            self._counters.wake_seconds.add(max(0.0, self._wall_now() - page.signals[0]["ts_ms"] / 1000))
        if not DEFAULT_LIMIT <= poll.limit == len(page.signals):
            return page
        self._free_pages.offer(held.session.device_id, page.cursor)
        return attrs.evolve(page, next_is_free=True)

    def _next_pages(self, polls: Sequence[tuple[DeviceSession, str, int]]) -> list[Page | ErrorResponse]:
        """Return the next page, or its error, for each session, cursor and limit."""
        reads = [(session.device_id, cursor, limit) for session, cursor, limit in polls]
        found = self._stream.read_many(reads, END_COLUMNS)
        return [
            end_of(session, one.row) or one.page  # type: ignore[misc]  # each has a page or an error
            for (session, _, _), one in zip(polls, found, strict=True)
        ]

    def stop(self) -> None:
        """Answer all held polls now, and hold none from now on."""
        self.draining = True
        self._stream.wake_all()

    # --- the limits of each device -------------------------------------------------------------------------------

    def take(self, device_id: int) -> None:
        """Count a poll of a device, or a request like it; ErrorResponse 429 if there are too many."""
        self._polls.take(device_id)

    def take_sockets(self, openings: Sequence[tuple[DeviceSession, None]]) -> list[ErrorResponse | None]:
        """Count openings of push sockets as polls; ErrorResponse 429 for each that is too many."""
        return [or_error(self.take, session.device_id) for session, _ in openings]

    def take_costly(self, device_id: int) -> None:
        """Count a request that costs much more than a poll; ErrorResponse 429 if there are too many.

        Agents stay far below the limit; without it, one host could keep the control plane busy for itself.
        """
        self._costly.take(device_id)
