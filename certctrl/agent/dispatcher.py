"""The dispatcher: one task per signal, in order per resource, side by side across resources.

Which signals may run, which are superseded and when to look again is decided by ``protocol/ledger.py``; this
file starts the tasks, bounds each by its timeout, and makes each ending durable: an outcome is on disk before
its signal counts as done. What fails is kept in the inbox and tried again with backoff; after
``poison_attempts`` it is quarantined: acked ``failed``, shown by `status`, and tried again only slowly or when
a newer signal of the same resource replaces it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import trio

from certctrl.agent.alerts import REVOKED, forget_alerts
from certctrl.agent.context import Agent
from certctrl.agent.disk import disk_trouble, tried
from certctrl.agent.extensions import find_handler
from certctrl.agent.messages import Line, say
from certctrl.errors import (
    CertctrlError,
    DiskError,
    MaterialError,
    NotYetValidError,
    PlaneError,
    PolicyRefusedError,
    TransportError,
)
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRenewed, CertRevoked, MalformedSignal, UnknownSignal, identity
from certctrl.protocol.ledger import choose
from certctrl.protocol.wire import ack_event

RETRY_FIRST = 5.0
RETRY_LAST = 900.0
RETRY_LAST_TRANSIENT = 300.0
"""As for polls: once the plane is back, or the disk has room again, nobody should wait longer."""
LONGEST_WISH = 3600.0
"""What a server's Retry-After may come to."""
WAITING_STATUSES = frozenset({409, 429, 500, 502, 503, 504})


class Dispatcher:
    """Owns the receiving end of the signal channel and the tasks of the signals."""

    def __init__(self, agent: Agent, signals_receive: trio.MemoryReceiveChannel[list[InboxEntry]]) -> None:
        self.agent = agent
        self._receive = signals_receive
        self._busy: set[str] = set()
        self._running: set[int] = set()  # entries by identity: in a burst all but a few run, and are asked about often
        self._closed = False
        self._tries: Counter[str] = Counter()
        """Failures in a row of this run by identity, also those that are nobody's fault: backoff grows with them."""

    async def dispatch_forever(self, handlers: trio.CancelScope) -> None:
        """Handle signals until the channel is closed and what runs has ended; then end the handlers nursery."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_channel)
            while not (self._closed and not self._busy):
                again_at = None if self._closed else await self._start(nursery)
                await self._wait(again_at)
            nursery.cancel_scope.cancel()
        handlers.cancel()

    async def drain(self) -> None:
        """Handle everything that may run now, once, and return when nothing runs (one-shot commands)."""
        with self._receive:
            async with trio.open_nursery() as nursery:
                tried: set[str] = set()
                while True:
                    await self._start(nursery, skip=tried)
                    if not self._busy:
                        return
                    await self._wait(None)

    async def _watch_channel(self) -> None:
        with self._receive:
            async for _entries in self._receive:  # the entries are in the inbox already
                self.agent.dispatcher_changed.set()
        self._closed = True
        self.agent.dispatcher_changed.set()

    async def _wait(self, again_at: float | None) -> None:
        changed = self.agent.dispatcher_changed
        pause = max(0.0, again_at - self.agent.wall_now()) if again_at is not None else None
        with trio.move_on_after(3600 if pause is None else min(pause, 3600)):
            await changed.wait()
        if changed.is_set():
            self.agent.dispatcher_changed = trio.Event()

    async def _start(self, nursery: trio.Nursery, skip: set[str] | None = None) -> float | None:
        """Start what may run; return the wall-clock time at which to look again, or None."""
        waiting = [entry for entry in self.agent.inbox.entries() if id(entry) not in self._running]
        choice = choose(waiting, self._busy, self.agent.wall_now(), longest=self._longest())
        if choice.superseded:
            await self._finish_superseded(choice.superseded)
        for entry in choice.run:
            if skip is not None:
                if identity(entry.signal) in skip:
                    continue
                skip.add(identity(entry.signal))
            self._busy.add(entry.signal.resource)
            self._running.add(id(entry))
            nursery.start_soon(self._run, entry, name=f"signal {entry.signal.type}")
        return choice.again_at

    async def _finish_superseded(self, entries: list[InboxEntry]) -> None:
        outcome = Outcome(kind=OutcomeKind.SUPERSEDED, detail="a newer signal of the same resource came")
        acks = [ack_event(entry.signal, outcome, 0) for entry in entries]
        for entry in entries:
            del self._tries[identity(entry.signal)]
            say(self.agent.log, Line.SIGNAL_SUPERSEDED, type=entry.signal.type, ts=entry.signal.ts_ms)
            self.agent.figures.signals[entry.signal.type, OutcomeKind.SUPERSEDED.value] += 1
        await self._save(entries, acks)

    async def _run(self, entry: InboxEntry) -> None:
        agent, signal = self.agent, entry.signal
        started = trio.current_time()
        agent.last_signal = {"type": signal.type, "at": agent.wall_now()}
        try:
            outcome, transient, retry_after = await self._handle(entry)
            seconds = trio.current_time() - started
            agent.figures.signal_took(signal.type, seconds)
            agent.figures.signals[signal.type, outcome.kind.value] += 1
            if outcome.ok:
                await self._done(entry, outcome, seconds)
            else:
                await self._failed(entry, outcome, seconds, transient, retry_after)
        finally:
            self._busy.discard(signal.resource)
            self._running.discard(id(entry))
            agent.dispatcher_changed.set()
            agent.news.set()

    async def _handle(self, entry: InboxEntry) -> tuple[Outcome, bool, float | None]:
        """Return the outcome, whether a failure is nobody's fault yet (network, sealing), and a server's delay."""
        agent, signal = self.agent, entry.signal
        if isinstance(signal, MalformedSignal):
            say(agent.log, Line.SIGNAL_MALFORMED, type=signal.type, ts=signal.ts_ms, why=signal.why)
            return Outcome(kind=OutcomeKind.FAILED, detail=f"malformed: {signal.why}"), False, None
        handler = find_handler(agent.config.ioc, signal.type)
        if handler is None:
            line = Line.SIGNAL_UNKNOWN if isinstance(signal, UnknownSignal) else Line.SIGNAL_DISABLED
            say(agent.log, line, type=signal.type, ts=signal.ts_ms)
            return Outcome(kind=OutcomeKind.IGNORED, detail="no handler for this type"), False, None
        say(agent.log, Line.SIGNAL_PROCESSING, type=signal.type, ts=signal.ts_ms)
        limit = agent.config.application.signal_timeouts.get(
            signal.type, agent.config.application.signal_timeout_seconds
        )
        try:
            with trio.move_on_after(limit):
                outcome = await handler(agent, signal)
                return outcome, outcome.transient, None
        except Exception as error:  # one signal's trouble must not end the others
            return self._explain(entry, error)
        say(agent.log, Line.SIGNAL_TIMEOUT, seconds=limit, type=signal.type, ts=signal.ts_ms)
        return Outcome(kind=OutcomeKind.FAILED, detail=f"took longer than {limit:g} s"), False, None

    def _explain(self, entry: InboxEntry, error: Exception) -> tuple[Outcome, bool, float | None]:
        """Return the outcome of a handler that raised, whether waiting alone may cure it, and the plane's delay."""
        agent, cert_id = self.agent, getattr(entry.signal, "cert_id", "?")
        kind, transient, retry_after = "", False, cast(float | None, None)
        match error:
            case NotYetValidError():
                delay = max(1.0, error.valid_from - agent.wall_now())
                kind, transient, retry_after = "material", True, delay
                say(agent.log, Line.CERT_PENDING, cert_id=cert_id, what=error, delay=round(delay))
            case MaterialError():
                kind, transient, retry_after = "material", False, None
                say(agent.log, Line.CERT_REFUSED, cert_id=cert_id, reason=error.reason, what=error)
            case PlaneError():
                kind, transient, retry_after = "plane", error.status in WAITING_STATUSES, error.retry_after
            case TransportError():
                kind, transient, retry_after = "transport", True, None
            case DiskError():
                kind, transient, retry_after = "disk", True, None
            case PolicyRefusedError():
                kind, transient, retry_after = "policy", False, None
                say(agent.log, Line.POLICY_REFUSED, what=error, fix=error.fix or "see policy.json")
            case CertctrlError():
                kind, transient, retry_after = type(error).__name__.removesuffix("Error").lower(), False, None
            case _:
                agent.figures.errors["bug"] += 1
                where = f"the handler of {entry.signal.type}"
                say(agent.log, Line.BUG, kind=type(error).__name__, where=where, why=error)
                detail = f"internal error ({type(error).__name__})"
                return Outcome(kind=OutcomeKind.FAILED, detail=detail), False, None
        agent.figures.errors[kind] += 1
        return _failure(error), transient, retry_after

    async def _done(self, entry: InboxEntry, outcome: Outcome, seconds: float) -> None:
        agent, signal = self.agent, entry.signal
        milliseconds = round(seconds * 1000)
        del self._tries[identity(signal)]
        await self._save([entry], [ack_event(signal, outcome, milliseconds)])
        self._tell_certificates(entry, outcome)
        say(agent.log, Line.SIGNAL_DONE, type=signal.type, ts=signal.ts_ms, outcome=outcome.kind.value, ms=milliseconds)

    def _tell_certificates(self, entry: InboxEntry, outcome: Outcome) -> None:
        agent, signal = self.agent, entry.signal
        for served in outcome.deployed:
            record = agent.installer.records.get(served.cert_id)
            name = record.name if record is not None else "?"
            if "waits for" in outcome.detail:
                say(
                    agent.log,
                    Line.CERT_STAGED,
                    cert_id=served.cert_id,
                    name=name,
                    what=outcome.detail.partition("waits for ")[2],
                )
            elif outcome.kind is OutcomeKind.APPLIED and not isinstance(signal, CertRevoked):  # no placeholder
                forget_alerts(agent, served.cert_id)
                say(agent.log, Line.CERT_UPDATED, cert_id=served.cert_id, name=name, serial=served.serial)
        if outcome.kind is OutcomeKind.UNCHANGED and isinstance(signal, CertRenewed):
            forget_alerts(agent, signal.cert_id, (REVOKED,))  # another try brought live what the plane now has
            record = agent.installer.records.get(signal.cert_id)
            say(agent.log, Line.CERT_UNCHANGED, cert_id=signal.cert_id, name=record.name if record else "?")

    async def _failed(
        self, entry: InboxEntry, outcome: Outcome, seconds: float, transient: bool, retry_after: float | None
    ) -> None:
        agent, signal = self.agent, entry.signal
        milliseconds = round(seconds * 1000)
        if isinstance(signal, MalformedSignal):  # it will not get better
            await self._save([entry], [ack_event(signal, outcome, milliseconds)])
            return
        delay, quarantined = self._delay(entry, transient, retry_after)
        ack = None
        if outcome.detail != entry.last_error or quarantined:  # each new failure is reported once
            ack = ack_event(signal, outcome, milliseconds)
        try:
            await agent.inbox.keep(
                entry, error=outcome.detail, next_try_at=agent.wall_now() + delay, count=not transient, ack=ack
            )
        except DiskError as error:
            disk_trouble(agent, error)
        line = Line.SIGNAL_QUARANTINED if quarantined else Line.SIGNAL_FAILED
        say(
            agent.log, line,
            type=signal.type, ts=signal.ts_ms, attempts=entry.attempts + 1, why=outcome.detail, delay=round(delay),
        )  # fmt: skip
        if outcome.kind is OutcomeKind.ROLLED_BACK:
            say(agent.log, Line.ROLLED_BACK, name=signal.resource, why=outcome.detail, delay=round(delay))

    def _delay(self, entry: InboxEntry, transient: bool, retry_after: float | None) -> tuple[float, bool]:
        """Return the seconds until the next try, and whether this failure puts the signal into quarantine."""
        settings = self.agent.config.application
        quarantined = not transient and entry.attempts + 1 >= settings.poison_attempts
        self._tries[key := identity(entry.signal)] += 1
        tries = max(entry.attempts, self._tries[key] - 1)
        most = RETRY_LAST_TRANSIENT if transient else RETRY_LAST
        backoff = min(most, RETRY_FIRST * 2.0 ** min(tries, 12)) * (0.5 + 0.5 * self.agent.random())
        delay = max(backoff, retry_after or 0.0)
        if quarantined:
            delay = max(delay, float(settings.reconcile_interval_seconds))
        return min(delay, self._longest()), quarantined

    def _longest(self) -> float:
        """Return the longest that any signal is put off; what waits for its day is looked at this often, too."""
        return max(LONGEST_WISH, float(self.agent.config.application.reconcile_interval_seconds))

    async def _save(self, entries: list[InboxEntry], acks: list[dict[str, Any]]) -> None:
        await tried(self.agent, self.agent.inbox.finish(entries, acks))  # refused: done work is idempotent


def _failure(error: CertctrlError) -> Outcome:
    detail = f"{error}; {error.fix}" if error.fix else str(error)
    return Outcome(kind=OutcomeKind.FAILED, detail=detail)
