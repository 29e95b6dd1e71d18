"""Batches: certificates that arrive together are switched together, so that one service reloads once.

A handler brings its prepared certificate here and waits for the outcome. The batch leaves as soon as nobody
who could still join is at work (``joining`` counts handlers that are fetching), when nobody new has arrived
for the debounce, or at the bound: a lone renewal waits for nothing, a burst of a thousand costs one reload,
and one slow fetch holds nobody up for long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from certctrl.install.runner import Prepared
from certctrl.model.plan import Outcome, OutcomeKind

PATIENCE = 4
"""A batch waits this many times its own slowest arrival, if that is longer than the debounce: on a host that is out
of breath a burst is still one burst."""

MOMENT = 5.0
"""Seconds that a batch waits for what was only announced: pages of a long burst come as the plane's
rate limit lets them, and a page that was full may have been the last."""

Converge = Callable[[Sequence[Prepared], Collection[int]], Awaitable[dict[int, Outcome]]]


@attrs.define
class _Batch:
    seats: list[tuple[int, Prepared | None]] = attrs.field(factory=list)
    """Who waits: certificate, and what it shall be switched to."""
    outcomes: dict[int, Outcome] = attrs.field(factory=dict)
    without: str = "cancelled before it was applied"
    """What a certificate is told that has no outcome."""
    done: trio.Event = attrs.field(factory=trio.Event)


class Batches:
    """Collects prepared certificates and hands them to ``converge`` in batches."""

    def __init__(self, converge: Converge, *, debounce: Callable[[], tuple[float, float]]) -> None:
        self._converge = converge
        self._debounce = debounce  # seconds: quiet time, bound
        self._open = _Batch()
        self._joining = 0
        self._expected = False
        self._changed = trio.Event()

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Announce that a certificate is being prepared; the batch waits for it, up to the debounce."""
        self._joining += 1
        try:
            yield
        finally:
            self._joining -= 1
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

    async def deploy(self, cert_id: int, prepared: Prepared | None) -> Outcome:
        """Switch to ``prepared`` (None: bring what is live in line with the items) and return the outcome."""
        batch, seat = self._open, (cert_id, prepared)
        batch.seats.append(seat)
        self._changed.set()
        try:
            await batch.done.wait()
        except trio.Cancelled:
            if batch is self._open:  # not under way yet: leave the queue
                batch.seats.remove(seat)
            raise
        return batch.outcomes.get(cert_id) or Outcome(kind=OutcomeKind.FAILED, detail=batch.without)

    async def run_batches(self) -> None:
        """Form batches and run each in a task of its own, until cancelled: a hanging reload delays nobody else."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._open.seats:
                    self._changed = trio.Event()
                    await self._changed.wait()
                await self._gather()
                nursery.start_soon(self._run, self._close(), name="batch")

    def _close(self) -> _Batch:
        batch, self._open = self._open, _Batch()
        return batch

    async def _gather(self) -> None:
        quiet, bound = self._debounce()
        slowest = 0.0
        with trio.move_on_after(bound):
            # every handler at work is either fetching (joining) or already seated
            while self._joining or self._expected:
                self._changed, began = trio.Event(), trio.current_time()
                patience = max(MOMENT if self._expected else quiet, PATIENCE * slowest)
                with trio.move_on_after(patience) as pause:
                    await self._changed.wait()
                if pause.cancelled_caught:
                    return
                slowest = max(slowest, trio.current_time() - began)

    async def _run(self, batch: _Batch) -> None:
        prepared = [one for _, one in batch.seats if one is not None]
        try:
            batch.outcomes = await self._converge(prepared, {cert_id for cert_id, _ in batch.seats})
            batch.without = "the plan has nothing for this certificate"
        finally:
            batch.seats.clear()
            batch.done.set()
