"""Switch certificates that arrive together in one batch, so that a service reloads once.

The task of a signal adds its prepared certificate here and ends: a burst may have a thousand, and a task for each would
use most of the memory of the burst. `BurstWatch` decides when a batch leaves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import attrs
import trio

from certctrl import lean
from certctrl.agent.burst import BurstWatch
from certctrl.install.installer import Candidate
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRenewed

MAX_WAIT = 60.0
"""Seconds until a batch without waiting certificates is checked for new ones."""


@lean.frozen(kw_only=True, eq=False)
class ReadyCertificate:
    """A certificate that is ready to be switched to, and the signal that brought it."""

    entry: InboxEntry
    prepared: Candidate
    started: float
    """When its handling began (Trio clock)."""
    deadline: float
    """When its signal times out (Trio clock)."""
    missing: str = ""
    """Why the signal is not done with this certificate: the plane announced another one. Empty: it is done."""

    @property
    def atomic_batch(self) -> str:
        """The id of its atomic batch; empty: none."""
        signal = self.entry.signal
        return signal.batch.id if isinstance(signal, CertRenewed) and signal.batch is not None else ""


Converge = Callable[[Sequence[Candidate], Collection[int], Mapping[int, str]], Awaitable[dict[int, Outcome]]]
"""Switches to certificates; the mapping: certificate id -> atomic batch, for those in one."""
Finish = Callable[[Sequence[tuple[ReadyCertificate, Outcome | None]]], Awaitable[None]]
"""Finishes the signals of certificates with their outcomes; None: timed out, the batch is still running."""
Interrupted = Callable[[Sequence[ReadyCertificate], BaseException], None]
"""Takes a batch that an error ended, with its unfinished certificates; raises what must end all others, too."""


@lean.define
class _Batch:
    waiting: list[ReadyCertificate] = attrs.field(factory=list)
    """Certificates whose signals are not finished yet."""
    ended: trio.Event = attrs.field(factory=trio.Event)


def _raise(_: Sequence[ReadyCertificate], error: BaseException) -> None:
    raise error


class Batches:
    """Collects prepared certificates and hands them to ``converge`` in batches."""

    def __init__(self, converge: Converge, burst: BurstWatch) -> None:
        self._converge = converge
        self._burst = burst
        self._open = _Batch()

    def add(self, ready: ReadyCertificate) -> None:
        """Add a certificate to the batch that leaves next."""
        self._open.waiting.append(ready)
        self._burst.certificate_ready(first=len(self._open.waiting) == 1)

    def take_out(self, resource: str) -> ReadyCertificate | None:
        """Remove a certificate from the batch that leaves next, and return it; None if it is not in there."""
        for number, one in enumerate(self._open.waiting):
            if one.entry.signal.resource == resource:
                return self._open.waiting.pop(number)
        return None

    async def run_batches(self, finish: Finish, interrupted: Interrupted = _raise) -> None:
        """Run each batch in a separate task, until cancelled: a hanging reload delays no other batch."""

        async def guarded(work: Callable[[_Batch, Finish], Awaitable[None]], batch: _Batch) -> None:
            try:
                await work(batch, finish)
            except BaseException as error:
                interrupted(batch.waiting if batch.ended.is_set() else (), error)

        async with trio.open_nursery() as nursery:
            while True:
                await self._certificate_added()
                nursery.start_soon(guarded, self._finish_late, self._open, name="signal timeouts")
                await self._batch_complete()
                nursery.start_soon(guarded, self._run, self._close(), name="batch")

    async def _certificate_added(self) -> None:
        while not self._open.waiting:
            await self._burst.changed.wait()

    async def _batch_complete(self) -> None:
        while (leaves_at := self._burst.leaves_at()) > trio.current_time():
            with trio.move_on_at(leaves_at):
                await self._burst.changed.wait()

    def _close(self) -> _Batch:
        batch, self._open = self._open, _Batch()
        self._burst.batch_left()
        return batch

    async def _finish_late(self, batch: _Batch, finish: Finish) -> None:
        """Finish signals at their deadlines; the batch keeps running."""
        while not batch.ended.is_set():
            at_most = trio.current_time() + MAX_WAIT
            with trio.move_on_at(min([at_most, *(one.deadline for one in batch.waiting)])):
                await batch.ended.wait()
            now = trio.current_time()
            late = [one for one in batch.waiting if one.deadline <= now]
            batch.waiting = [one for one in batch.waiting if one.deadline > now]
            if late:
                await finish([(one, None) for one in late])

    async def _run(self, batch: _Batch, finish: Finish) -> None:
        prepared = [one.prepared for one in batch.waiting]
        together = {one.prepared.cert_id: one.atomic_batch for one in batch.waiting if one.atomic_batch}
        try:
            outcomes = await self._converge(prepared, {one.cert_id for one in prepared}, together) if prepared else {}
        finally:
            batch.ended.set()
        del prepared
        nothing = Outcome(kind=OutcomeKind.FAILED, detail="the plan has nothing for this certificate")
        finished, batch.waiting = batch.waiting, []
        await finish([(one, outcomes.get(one.prepared.cert_id, nothing)) for one in finished])
