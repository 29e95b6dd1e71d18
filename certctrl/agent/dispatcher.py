"""Handle signals: in order per resource, concurrently across resources, one task each.

``protocol/coalescing.py`` decides which signals may run, which are superseded and when to choose again. This module
starts the tasks, limits each by its timeout, and makes each end durable: an outcome is on disk before its signal
counts as done. A signal that fails becomes a retry (`RetryTable`) and leaves the inbox; when it is due it
is handled here again. After ``poison_attempts`` it is quarantined: acked ``failed``, shown by `status`, and retried
only slowly or when a newer signal of the same resource replaces it.

At most ``handler_limit`` signals, and a share beyond it for each class, run at a time; the others are queued by class,
and ``protocol/turns.py`` decides which class is next. Ready certificates join a batch (``batches.py``). Neither needs a
task: a thousand tasks were most of the memory of a burst. A revocation does not wait for a renewal of its certificate
that is queued, or ready for the next batch: that one is handled again afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import trio

from certctrl.agent.alerts import write_or_report
from certctrl.agent.announced import missing_renewal, unannounced_batch
from certctrl.agent.batches import ReadyCertificate
from certctrl.agent.context import Agent
from certctrl.agent.handlers import find_handler
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.lost import remove_old_generations
from certctrl.agent.package_guard import raise_if_replaced, stop_if_replaced
from certctrl.agent.reconcile import renewal_in_batch
from certctrl.agent.signal_results import Result, explain, failed, log_certificates, result_of
from certctrl.agent.waiting_signals import WaitingSignals
from certctrl.install.installer import Candidate
from certctrl.install.plan.retries import Failure, is_quarantined
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry, Retry, RetryKind, retry_key
from certctrl.model.signals import CertRenewed, CertRevoked, MalformedSignal, Signal, UnknownSignal, identity
from certctrl.protocol.coalescing import choose, overtakes
from certctrl.protocol.wire.signals import ack_event

LOG_BATCH = 50
"""Outcomes that are logged without a checkpoint: a few milliseconds."""
MAX_WAIT = 3600.0
"""Seconds until the dispatcher chooses again even if nothing has changed: wall clocks jump."""
DISK_PAUSE = 60.0
"""Seconds until an outcome that the disk refused is written again, unless something else is written before."""


class Dispatcher:
    """Owns the tasks of the signals in the inbox."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._busy: set[str] = set()
        self._running: set[int] = set()  # id() of running entries: in a burst nearly all run
        self._waiting = WaitingSignals(lambda: agent.config.application)
        self._yielding: set[str] = set()  # busy resources for which a revocation waits
        self._closed = False

    async def dispatch_forever(self, handlers: trio.CancelScope) -> None:
        """Handle signals until closed and every running one has ended; then end the handlers nursery."""
        async with trio.open_nursery() as nursery:
            while not (self._closed and not self._busy):
                next_retry_at = None if self._closed else await self._start(nursery)
                await self._wait(next_retry_at)
        handlers.cancel()

    def close(self) -> None:
        """Start nothing new: queued signals stay in the inbox."""
        self._closed = True
        for entry in self._waiting.all():
            self._withdraw(entry)
        self._free(one.entry for one in self.agent.atomic.take_all())
        self.agent.work_changed.value = True

    async def drain(self) -> None:
        """Handle everything that is due, once, and return when nothing runs (one-shot commands)."""
        async with trio.open_nursery() as nursery:
            tried: set[str] = set()
            while True:
                await self._start(nursery, skip=tried)
                if len(self._busy) == len(self.agent.atomic.held):  # an incomplete batch stays in the inbox
                    self._free(one.entry for one in self.agent.atomic.take_all())
                    return
                await self._wait(None)

    async def _wait(self, next_retry_at: float | None) -> None:
        changed = self.agent.work_changed
        pause = MAX_WAIT if next_retry_at is None else min(max(0.0, next_retry_at - self.agent.wall_now()), MAX_WAIT)
        with trio.move_on_after(pause):
            await changed.wait_value(True)
        changed.value = False

    async def _start(self, nursery: trio.Nursery, skip: set[str] | None = None) -> float | None:
        """Start the signals that may run; return the wall-clock time of the next choice, or None."""
        retries = self.agent.installer.retries
        held = await self._end_done()
        scheduled = retries.scheduled_signals()
        gathered_at = self._gather(nursery, scheduled)
        retried = [
            InboxEntry(signal=one.signal, retry=one)
            for one in scheduled
            if one.signal is not None and one.resource not in held
        ]
        fresh, before = self._fresh(skip)
        choice = choose([*retried, *fresh], self._busy | held, self.agent.wall_now())
        if choice.superseded and not await self._finish_superseded(choice.superseded):
            held |= {entry.signal.resource for entry in choice.superseded}
        for entry in choice.run:
            if entry.signal.resource in held:
                continue
            if skip is not None:
                if identity(entry.signal) in skip:
                    continue
                skip.add(identity(entry.signal))
            self._busy.add(entry.signal.resource)
            self._running.add(id(entry))
            if entry.retry is None:
                retries.replaced(entry.signal)
            if isinstance(entry.signal, CertRenewed):
                self.agent.burst.fetch_queued()
                self.agent.fetches.expect(entry.signal.cert_id)
            self._waiting.add(entry, first=entry.signal.resource in before)
        self._start_waiting(nursery)
        again = [at for at in (choice.next_retry_at, self.agent.wall_now() + DISK_PAUSE if held else None) if at]
        return min([*again, *gathered_at], default=None)

    def _gather(self, nursery: trio.Nursery, scheduled: Sequence[Retry]) -> list[float]:
        """Pass complete atomic batches on, and fail those that were incomplete for too long.

        Return when to check again (wall clock): at the end of the limit, and when a revocation of a certificate that
        waits for its batch is tried again.
        """
        agent, now = self.agent, self.agent.wall_now()
        if not agent.atomic.may_have_any:  # the usual case
            return []
        fresh = [entry.signal for entry in agent.inbox.entries()]
        failed = [(one.signal, one.next_try_at) for one in scheduled if one.signal is not None]
        signals, due = [*fresh, *(one for one, _ in failed)], [*fresh, *(one for one, at in failed if at <= now)]
        if overtaken := agent.atomic.note(signals, due):
            self._free(one.entry for one in overtaken)
        for ready in agent.atomic.take_complete():
            agent.batches.add(ready)
        for ready, why in agent.atomic.take_expired():
            nursery.start_soon(self._give_up, ready, why, name="incomplete batch")
        waiting = {one.entry.signal.resource for one in agent.atomic.held}
        times = [at for signal, at in failed if signal.resource in waiting and at > now]
        ends_at = agent.atomic.next_end
        return [*times, *([now + ends_at - trio.current_time()] if ends_at < math.inf else [])]

    async def _give_up(self, ready: ReadyCertificate, why: str) -> None:
        """Fail a ready certificate, because others of its atomic batch are missing."""
        log_line(self.agent.log, Line.BATCH_INCOMPLETE, cert_id=ready.prepared.cert_id, why=why)
        try:
            result = Result(failed(why, "switch", "batch-incomplete"), RetryKind.BATCH)
            await self._failed(ready.entry, result, trio.current_time() - ready.started)
        except BaseException as error:
            stop_if_replaced(self.agent, error)
        finally:
            self._free([ready.entry])

    async def _end_done(self) -> set[str]:
        """End the retries of signals that are done; return the resources of those whose outcome is not durable.

        Until it is, nothing else of the resource runs: its failure would take the place of the retry, and a crash would
        leave neither the signal nor its outcome.
        """
        agent, retries = self.agent, self.agent.installer.retries
        done = [one for one in retries.signals() if one.signal is not None and agent.inbox.has_done(one.signal)]
        if not done:
            return set()
        if not await write_or_report(agent, agent.inbox.secure()):  # waits for the write that they may be part of
            return {one.resource for one in done}
        await self._end([one.signal for one in done if one.signal is not None])
        return set()

    def _fresh(self, skip: set[str] | None) -> tuple[list[InboxEntry], dict[str, InboxEntry]]:
        """Return the signals without a failure, and by resource those that a newer one has overtaken."""
        fresh = [entry for entry in self.agent.inbox.entries() if id(entry) not in self._running]
        before = self._make_way(fresh)
        if skip is not None:
            skip -= {identity(entry.signal) for entry in before.values()}
        return [*(entry for entry in before.values() if entry.retry is None), *fresh], before

    def _make_way(self, fresh: Sequence[InboxEntry]) -> dict[str, InboxEntry]:
        """Withdraw signals that a newer one overtakes before they are handled or live; return them by resource."""
        before: dict[str, InboxEntry] = {}
        self._yielding = set()
        for entry in fresh:
            resource = entry.signal.resource
            if resource not in self._busy:
                continue
            if (queued := self._waiting.of(resource)) is not None:
                if overtakes(entry.signal, queued.signal):
                    self._withdraw(queued)
                    before[resource] = queued
            elif isinstance(entry.signal, CertRevoked):
                if (ready := self.agent.batches.take_out(resource)) is not None:
                    self._free([ready.entry])
                    before[resource] = ready.entry
                else:
                    self._yielding.add(resource)
        return before

    def _withdraw(self, entry: InboxEntry) -> None:
        """Take a signal out of its queue; it stays in the inbox."""
        self._waiting.remove(entry)
        self._free([entry])
        if isinstance(entry.signal, CertRenewed):
            self._fetch_ended(entry)

    def _start_waiting(self, nursery: trio.Nursery) -> None:
        while (entry := self._waiting.next()) is not None:
            nursery.start_soon(self._take_turn, entry, nursery, name=f"signal {entry.signal.type}")

    async def _take_turn(self, entry: InboxEntry, nursery: trio.Nursery) -> None:
        try:
            await self._run(entry)
        finally:
            self._waiting.ended(entry)
            if isinstance(entry.signal, CertRenewed):
                self._fetch_ended(entry)
            self._start_waiting(nursery)

    def _fetch_ended(self, entry: InboxEntry) -> None:
        self.agent.burst.fetch_ended()
        if isinstance(entry.signal, CertRenewed):
            self.agent.fetches.ended(entry.signal.cert_id)

    def _free(self, entries: Iterable[InboxEntry]) -> None:
        """Mark entries as no longer running."""
        for entry in entries:
            self._busy.discard(entry.signal.resource)
            self._running.discard(id(entry))
        self.agent.work_changed.value = True
        self.agent.lifetimes_changed.value = True
        self.agent.status_changed.value = True

    async def _finish_superseded(self, entries: list[InboxEntry]) -> bool:
        outcome = Outcome(kind=OutcomeKind.SUPERSEDED, detail="a newer signal of the same resource came")
        acks = [ack_event(entry.signal, outcome, 0) for entry in entries]
        for entry in entries:
            log_line(self.agent.log, Line.SIGNAL_SUPERSEDED, type=entry.signal.type, ts=entry.signal.ts_ms)
            self.agent.counters.signals[entry.signal.type, OutcomeKind.SUPERSEDED.value] += 1
        return await self._save(entries, acks)

    async def _run(self, entry: InboxEntry) -> None:
        agent, started, in_batch = self.agent, trio.current_time(), False
        agent.last_signal = {"type": entry.signal.type, "at": agent.wall_now()}
        try:
            was_revoked = self._has_revoked(entry.signal)
            handled = await self._handle(entry, started)
            if isinstance(handled, ReadyCertificate):
                # a waiting revocation comes first; this signal is handled again afterwards
                in_batch = entry.signal.resource not in self._yielding and await self._add(handled)
            else:
                await self._conclude(entry, handled, trio.current_time() - started)
                if not was_revoked and self._has_revoked(entry.signal):
                    await self._supersede_revoked(entry.signal)
        except BaseException as error:  # the signal stays in the inbox
            stop_if_replaced(agent, error)
        finally:
            if not in_batch:
                self._free([entry])

    async def _add(self, ready: ReadyCertificate) -> bool:
        """Add a ready certificate to a batch; return whether it will be finished with that."""
        record = self.agent.installer.records.get(ready.prepared.cert_id)
        is_live = record is not None and record.generation == ready.prepared.generation  # there is nothing to switch
        if not ready.atomic_batch or (is_live and not ready.missing):
            self.agent.batches.add(ready)
            return True
        if ready.missing:  # the plane still offers an older one, which must not be switched instead
            lagging = Result(failed(ready.missing, "fetch", "plane-lagging"), RetryKind.LAGGING)
            await self._conclude(ready.entry, lagging, trio.current_time() - ready.started)
            return False
        if self._closed:  # its signal stays in the inbox
            return False
        self.agent.atomic.hold(ready)
        self.agent.work_changed.value = True
        return True

    async def finish_batch(self, finished: Sequence[tuple[ReadyCertificate, Outcome | None]]) -> None:
        """Finish the signals of certificates that were switched together; see `Batches`."""
        now = trio.current_time()
        try:
            ended = [(one, end or self._timed_out(one.entry.signal), now - one.started) for one, end in finished]
            await self._done([(one.entry, outcome, took) for one, outcome, took in ended if _is_done(one, outcome)])
            async with trio.open_nursery() as nursery:
                for one, outcome, seconds in ended:
                    if not _is_done(one, outcome):
                        result = self._not_there_yet(one, outcome) if outcome.ok else result_of(outcome)
                        nursery.start_soon(self._failed, one.entry, result, seconds)
            await remove_old_generations(self.agent)
        finally:
            self._free(one.entry for one, _ in finished)

    def batch_interrupted(self, unfinished: Sequence[ReadyCertificate], error: BaseException) -> None:
        """Start the orderly stop if a replaced package ended a batch; its signals stay in the inbox. Raises other errors."""
        stop_if_replaced(self.agent, error)
        self._free(one.entry for one in unfinished)

    def _not_there_yet(self, ready: ReadyCertificate, outcome: Outcome) -> Result:
        """Return the result of a signal whose certificate is served, although the plane announced another one."""
        if outcome.kind is OutcomeKind.APPLIED:
            log_certificates(self.agent, ready.entry, outcome)
        lagging = failed(ready.missing, "fetch", "plane-lagging")
        return Result(attrs.evolve(lagging, deployed=outcome.deployed), RetryKind.LAGGING)

    async def _conclude(self, entry: InboxEntry, result: Result, seconds: float) -> None:
        if result.outcome.ok:
            await self._done([(entry, result.outcome, seconds)])
        else:
            await self._failed(entry, result, seconds)
        await remove_old_generations(self.agent)

    def _has_revoked(self, signal: Signal) -> bool:
        """Return whether a signal revokes a certificate that is recorded as revoked; an earlier one may have done that."""
        record = self.agent.installer.records.get(signal.cert_id) if isinstance(signal, CertRevoked) else None
        return record is not None and record.revoked

    async def _supersede_revoked(self, signal: Signal) -> None:
        """End the earlier signals of a certificate whose revocation is confirmed: they announced what is revoked."""
        retried = [
            InboxEntry(signal=one.signal, retry=one) for one in self.agent.installer.retries.signals() if one.signal
        ]
        older = [
            entry
            for entry in (*retried, *self.agent.inbox.entries())
            if entry.signal.resource == signal.resource
            and entry.signal.ts_ms <= signal.ts_ms
            and not isinstance(entry.signal, CertRevoked)
        ]
        if older:
            await self._finish_superseded(older)

    async def _handle(self, entry: InboxEntry, started: float) -> ReadyCertificate | Result:
        """Run the handler of a signal; return what it prepared, or how it ended."""
        agent, signal = self.agent, entry.signal
        if isinstance(signal, MalformedSignal):
            log_line(agent.log, Line.SIGNAL_MALFORMED, type=signal.type, ts=signal.ts_ms, why=signal.why)
            return Result(failed(f"malformed: {signal.why}", "receive", "malformed"))
        try:
            handler = find_handler(agent.config.ioc, signal.type)
            if handler is None:
                line = Line.SIGNAL_UNKNOWN if isinstance(signal, UnknownSignal) else Line.SIGNAL_DISABLED
                log_line(agent.log, line, type=signal.type, ts=signal.ts_ms)
                return Result(Outcome(kind=OutcomeKind.IGNORED, detail="no handler for this type"))
            log_line(agent.log, Line.SIGNAL_PROCESSING, type=signal.type, ts=signal.ts_ms)
            with trio.move_on_after(self._limit(signal)):
                handled = await handler(agent, signal)
                if not isinstance(handled, Candidate):
                    return result_of(handled)
                return await self._ready(entry, handled, started)
        except Exception as error:  # a failing signal must not stop the others
            raise_if_replaced(error)
            return explain(agent, entry, error)
        return Result(self._timed_out(signal))

    async def _ready(self, entry: InboxEntry, prepared: Candidate, started: float) -> ReadyCertificate | Result:
        """Return a prepared certificate, unless signals that follow say which others it belongs to."""
        signal, missing = entry.signal, ""
        if isinstance(signal, CertRenewed):
            missing = await missing_renewal(self.agent, signal, prepared.facts)
            if await unannounced_batch(self.agent, signal, prepared.facts):
                renewal = await renewal_in_batch(self.agent, signal)
                if renewal is None:
                    why = f"serial {prepared.facts.serial} belongs to an atomic batch that the plane does not list yet"
                    return Result(failed(why, "fetch", "plane-lagging"), RetryKind.LAGGING, waits=True)
                if renewal.batch is not None:
                    why = f"replaced by the signals of its atomic batch {renewal.batch.id}"
                    return Result(Outcome(kind=OutcomeKind.SUPERSEDED, detail=why))
        deadline = started + self._limit(signal)
        return ReadyCertificate(entry=entry, prepared=prepared, started=started, deadline=deadline, missing=missing)

    def _limit(self, signal: Signal) -> float:
        settings = self.agent.config.application
        return settings.signal_timeouts.get(signal.type, settings.signal_timeout_seconds)

    def _timed_out(self, signal: Signal) -> Outcome:
        limit = self._limit(signal)
        log_line(self.agent.log, Line.SIGNAL_TIMEOUT, seconds=limit, type=signal.type, ts=signal.ts_ms)
        return failed(f"took longer than {limit:g} s", "handle", "timeout")

    async def _done(self, done: Sequence[tuple[InboxEntry, Outcome, float]]) -> None:
        """Complete signals successfully, in a single write."""
        if not done:
            return
        for entry, outcome, seconds in done:
            self._count(entry.signal, outcome, seconds)
        acks = [ack_event(entry.signal, outcome, round(seconds * 1000)) for entry, outcome, seconds in done]
        await self._save([entry for entry, _, _ in done], acks)
        for number, (entry, outcome, seconds) in enumerate(done, 1):
            log_certificates(self.agent, entry, outcome)
            log_line(
                self.agent.log,
                Line.SIGNAL_DONE,
                type=entry.signal.type,
                ts=entry.signal.ts_ms,
                outcome=outcome.kind.value,
                ms=round(seconds * 1000),
            )
            if number % LOG_BATCH == 0:
                await trio.lowlevel.checkpoint()

    def _count(self, signal: Signal, outcome: Outcome, seconds: float) -> None:
        self.agent.counters.signal_ended(signal, outcome.kind, seconds)

    async def _failed(self, entry: InboxEntry, result: Result, seconds: float) -> None:
        agent, signal, outcome = self.agent, entry.signal, result.outcome
        acks = [] if result.waits else [ack_event(signal, outcome, round(seconds * 1000))]
        if not result.waits:
            self._count(signal, outcome, seconds)
        if isinstance(signal, MalformedSignal):  # retrying cannot help
            await self._save([entry], acks)
            return
        retry = self._recorded(entry, result)
        quarantined = is_quarantined(retry, agent.config.application)
        if entry.retry is None:
            agent.installer.retries.put(attrs.evolve(retry, reported=outcome.detail if acks else ""))
            await write_or_report(agent, agent.inbox.hand_over(entry, *acks))
        else:
            for ack in acks if outcome.detail != entry.retry.reported or quarantined else ():  # each new failure once
                await write_or_report(agent, agent.inbox.report(ack))
                agent.installer.retries.put(attrs.evolve(retry, reported=outcome.detail))
            await write_or_report(agent, agent.installer.save_retries())
        if result.waits:
            return
        delay = round(agent.installer.next_try_at(retry) - agent.wall_now())
        log_line(
            agent.log,
            Line.SIGNAL_QUARANTINED if quarantined else Line.SIGNAL_FAILED,
            type=signal.type,
            ts=signal.ts_ms,
            attempts=retry.attempts if quarantined else max(1, retry.failures),
            why=outcome.detail,
            delay=delay,
        )
        if outcome.kind is OutcomeKind.ROLLED_BACK:
            log_line(agent.log, Line.ROLLED_BACK, name=signal.resource, why=outcome.detail, delay=delay)

    def _recorded(self, entry: InboxEntry, result: Result) -> Retry:
        """Return the retry of a failed signal: the installer's with the signal added, or a new one."""
        signal, retries = entry.signal, self.agent.installer.retries
        known = retries.of(signal.resource) if result.outcome.recorded else None
        if known is not None and retry_key(signal) == known.resource:
            retries.put(retry := attrs.evolve(known, signal=signal))
            return retry
        return retries.failed(
            Failure(
                resource=signal.resource,
                kind=result.kind,
                error=result.outcome.detail,
                retry_after=result.retry_after,
                until=result.until,
                signal=signal,
            )
        )

    async def _save(self, entries: list[InboxEntry], acks: list[dict[str, Any]]) -> bool:
        """Write outcomes; return whether they are durable. Refused ones stay in memory: done work is idempotent."""
        if not await write_or_report(self.agent, self.agent.inbox.finish(entries, acks)):
            return False
        if retried := [entry.signal for entry in entries if entry.retry is not None]:
            await self._end(retried)
        return True

    async def _end(self, signals: list[Signal]) -> None:
        """End retries of signals whose outcomes are durable: not before, or a crash would leave neither of both."""
        for signal in signals:
            self.agent.installer.retries.ended(signal)
        await write_or_report(self.agent, self.agent.installer.save_retries())


def _is_done(ready: ReadyCertificate, outcome: Outcome) -> bool:
    return outcome.ok and not ready.missing
