"""Batches: certificates that arrive together are switched together, so that one service reloads once.

A signal's task brings its prepared certificate here and ends; who waits is a seat, not a task, because a burst has
a thousand of them. The batch leaves as soon as nobody who could still join is at work (``coming`` and ``arrived``
count them), when nobody new has arrived for the debounce, or at the bound: a lone renewal waits for nothing, a burst
of a thousand costs one reload, and one slow fetch holds nobody up for long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from certctrl.install.installer import Prepared
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry

PATIENCE = 4
"""A batch waits this many times its own slowest arrival, if that is longer than the debounce: on a host that is out
of breath a burst is still one burst."""

MOMENT = 5.0
"""Seconds that a batch waits for what was only announced: pages of a long burst come as the plane's
rate limit lets them, and a page that was full may have been the last."""


LONGEST_LOOK = 60.0
"""Seconds until a batch that has told all its seats is looked at again: somebody may have joined it."""


@attrs.frozen(kw_only=True, eq=False)
class Seat:
    """A certificate that is ready to be switched to, and the signal that brought it."""

    entry: InboxEntry
    prepared: Prepared
    started: float
    """When its handling began (Trio clock)."""
    until: float
    """When it wants an outcome at the latest (Trio clock)."""


Converge = Callable[[Sequence[Prepared], Collection[int]], Awaitable[dict[int, Outcome]]]
Tell = Callable[[Sequence[tuple[Seat, Outcome | None]]], Awaitable[None]]
"""Takes what became of seats; None: nothing yet, and it wants to wait no longer."""


@attrs.define
class _Batch:
    seats: list[Seat] = attrs.field(factory=list)
    """Who was not told yet."""
    over: trio.Event = attrs.field(factory=trio.Event)


class Batches:
    """Collects prepared certificates and hands them to ``converge`` in batches."""

    def __init__(self, converge: Converge, *, debounce: Callable[[], tuple[float, float]]) -> None:
        self._converge = converge
        self._debounce = debounce  # seconds: quiet time, bound
        self._open = _Batch()
        self._coming = 0
        self._expected = False
        self._changed = trio.Event()

    def coming(self) -> None:
        """Announce a certificate; the batch waits for it, up to the debounce, until it has ``arrived``."""
        self._coming += 1

    def arrived(self) -> None:
        """Take an announcement back: the certificate has its seat, or will have none."""
        self._coming -= 1
        self._changed.set()

    @property
    def expected(self) -> bool:
        """Whether more of a burst is expected."""
        return self._expected

    def expect(self, more: bool) -> None:
        """Say whether more of the same burst may come: pages behind a full one, which a batch waits a moment for."""
        if not more and self._expected:
            self._changed.set()
        self._expected = more

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Let ``expect`` be said inside; nothing is expected any more afterwards."""
        try:
            yield
        finally:
            self.expect(False)

    def take(self, seat: Seat) -> None:
        """Let a certificate join the batch that leaves next."""
        self._open.seats.append(seat)
        self._changed.set()

    async def run_batches(self, tell: Tell) -> None:
        """Form batches and run each in a task of its own, until cancelled: a hanging reload delays nobody else."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._open.seats:
                    self._changed = trio.Event()
                    await self._changed.wait()
                nursery.start_soon(self._watch, self._open, tell, name="impatience")
                await self._gather()
                nursery.start_soon(self._run, self._close(), tell, name="batch")

    def _close(self) -> _Batch:
        batch, self._open = self._open, _Batch()
        return batch

    async def _gather(self) -> None:
        quiet, bound = self._debounce()
        slowest = 0.0
        with trio.move_on_after(bound):
            # every handler at work is either fetching (coming) or has its seat
            while self._coming or self._expected:
                self._changed, began = trio.Event(), trio.current_time()
                patience = max(MOMENT if self._expected else quiet, PATIENCE * slowest)
                with trio.move_on_after(patience) as pause:
                    await self._changed.wait()
                if pause.cancelled_caught:
                    return
                slowest = max(slowest, trio.current_time() - began)

    async def _watch(self, batch: _Batch, tell: Tell) -> None:
        """Tell whoever has waited too long; the batch itself goes on."""
        while not batch.over.is_set():
            at_most = trio.current_time() + LONGEST_LOOK
            with trio.move_on_at(min((seat.until for seat in batch.seats), default=at_most)):
                await batch.over.wait()
            now = trio.current_time()
            late = [seat for seat in batch.seats if seat.until <= now]
            batch.seats = [seat for seat in batch.seats if seat.until > now]
            if late:
                await tell([(seat, None) for seat in late])

    async def _run(self, batch: _Batch, tell: Tell) -> None:
        prepared = [seat.prepared for seat in batch.seats]
        try:
            outcomes = await self._converge(prepared, {one.cert_id for one in prepared}) if prepared else {}
        finally:
            batch.over.set()
        del prepared
        nothing = Outcome(kind=OutcomeKind.FAILED, detail="the plan has nothing for this certificate")
        seats, batch.seats = batch.seats, []
        await tell([(seat, outcomes.get(seat.prepared.cert_id, nothing)) for seat in seats])
