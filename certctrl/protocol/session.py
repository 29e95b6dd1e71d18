"""Session: the polling policy. ``receive`` takes an event, ``next_step`` returns what to do next.

A session does not wait, send, store or read a clock: ``now`` is monotonic seconds. One task drives it:
next_step → perform → receive → next_step … See ``state.py`` for the states, ``schedule.py`` and ``breaker.py`` for
the rate of requests. A poll only sends a cursor that ``Delivered`` has confirmed to be on disk, together with every
signal before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from certctrl.model.config import ApplicationConfig
from certctrl.model.status import StopReason
from certctrl.protocol import events as ev
from certctrl.protocol import steps
from certctrl.protocol.schedule import Schedule
from certctrl.protocol.state import State, Walk

OUTCOME_WAIT = 0.3
"""Seconds that the cursor and the next poll wait for the outcomes of a page: finished signals need not be stored."""

_ANSWERS: dict[type, tuple[type, ...]] = {
    steps.Poll: ev.POLL_ANSWERS,
    steps.Deliver: (ev.Delivered, ev.DeliverFailed),
    steps.FlushAcks: (ev.AcksSent, ev.AcksFailed),
    steps.Refresh: (ev.TokenRefreshed, ev.RefreshFailed),
    steps.Resync: (ev.Resynced, ev.ResyncFailed),
}


class Session:
    """One run of the protocol, from ``Started`` to ``Terminate``.

    The public attributes are for status: times are monotonic seconds, None means never.
    """

    def __init__(self, config: ApplicationConfig, *, cursor: str | None, random: Callable[[], float]) -> None:
        self.walk = Walk()
        self.seen_cursor = cursor
        self.committed_cursor = cursor
        self.cursor_at: float | None = None
        self.last_poll_at: float | None = None
        self.last_answer_at: float | None = None
        """When the plane last gave a usable answer (200 or 204)."""
        self.last_poll_code: int | None = None
        self.last_poll_text = ""
        self._schedule = Schedule(config, random)
        self._step: steps.Step | None = None  # the current step, until its event arrives
        self._end: steps.Terminate | None = None
        self._alerts: list[steps.Alert] = []
        self._alarmed = False
        self._page: steps.Deliver | None = None
        self._deliver_failures = 0
        self._retried = False  # this poll follows a refresh
        self._resync = False
        self._resyncs = 0  # consecutive ones, without a successful poll in between
        self._flushed = False  # acks were just sent
        self._flush_at, self._flush_failures = -math.inf, 0

    # --- status ------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state in the spec's diagram."""
        return self.walk.state

    @property
    def failures(self) -> int:
        """The number of consecutive failures."""
        return self._schedule.breaker.failures

    @property
    def breaker_open(self) -> bool:
        """Whether the circuit breaker is open."""
        return self._schedule.breaker.is_open

    @property
    def last_retry_after(self) -> float | None:
        """The last server delay obeyed, in seconds."""
        return self._schedule.breaker.last_retry_after

    @property
    def next_poll_at(self) -> float | None:
        """When the next request is due; None if only an operator can resume polling."""
        due = self._due_at()
        return None if self._end is not None or math.isinf(due) else due

    def may_send_acks(self, now: float) -> bool:
        """Return whether acks may be sent now: the plane did not refuse some moments ago."""
        return now >= self._flush_at

    def take_alerts(self) -> tuple[steps.Alert, ...]:
        """Return and clear the alerts, oldest first."""
        taken, self._alerts = tuple(self._alerts), []
        return taken

    def reconfigure(self, config: ApplicationConfig, now: float | None = None) -> None:
        """Switch to a new configuration; ``now`` also applies it to the current wait."""
        self._schedule.reconfigure(config, now)

    # --- steps ---------------------------------------------------------------------------------------------

    def next_step(self, now: float) -> steps.Step:
        """Return the step to perform now."""
        if self._end is not None:
            return self._end
        step = self._step or self._choose(now)
        self._step = None if isinstance(step, steps.Wait) else step
        return step

    def _choose(self, now: float) -> steps.Step:
        if self._page is not None:
            return self._page
        if self.state is State.ACKNOWLEDGING:
            if now >= self._flush_at:
                return steps.FlushAcks()
            self.walk.go(State.POLLING)
        due = self._due_at()
        if now < due:
            self._flushed = False
            return steps.Wait(due, self._schedule.why)
        return self._request(now)

    def _due_at(self) -> float:
        return self._schedule.due_at(poll=not self._resync and self.state is not State.REFRESHING)

    def _request(self, now: float) -> steps.Step:
        if self.state is State.REFRESHING:
            self._schedule.note_request(now)
            return steps.Refresh()
        if self.state is State.ERROR:
            self.walk.go(State.POLLING)
        if self._resync:
            self.walk.go(State.PROCESSING)
            self._schedule.note_request(now)
            return steps.Resync()
        if not self._flushed and now >= self._flush_at:
            return steps.FlushAcks()
        self._flushed = False
        self.last_poll_at = now
        wait = self._schedule.note_poll(now)
        return steps.Poll(self.committed_cursor, self._schedule.config.poll_limit, wait)

    # --- events --------------------------------------------------------------------------------------------

    def receive(self, event: ev.Event, now: float) -> None:
        """Process one event; an answer to an abandoned step is ignored."""
        if self._end is not None:
            return
        match event:
            case ev.DeviceRevoked():
                self._note(event, now)
                self._terminate(State.ERROR, StopReason.REVOKED, event.what)
            case ev.RefreshRefused():
                self.last_poll_text = ev.poll_text(event)
                self._terminate(State.REFRESHING, StopReason.REFRESH_REFUSED, event.what)
            case ev.Started():
                if self.state is State.INITIALIZING:
                    self.walk.go(State.POLLING if event.token_valid else State.REFRESHING)
                    self._schedule.plan(now + self._schedule.breaker.first_delay(), steps.WaitReason.SPREAD)
            case ev.PollNow():
                if self.state is not State.INITIALIZING:
                    self._schedule.poll_now()
                    self._step = None if isinstance(self._step, steps.Poll) else self._step
            case _:
                step = self._step
                if step is not None and isinstance(event, _ANSWERS[type(step)]):
                    self._step = None
                    self._answered(step, event, now)

    def _answered(self, step: steps.Step, event: ev.Event, now: float) -> None:
        match event:
            case ev.Delivered():
                self._delivered()
            case ev.DeliverFailed():
                self._not_delivered(now)
            case ev.AcksSent():
                self._flushed, self._flush_failures = True, 0
                if self.state is State.ACKNOWLEDGING:
                    self.walk.go(State.POLLING)
            case ev.AcksFailed():
                self._acks_failed(event.retry_after, now)
            case ev.TokenRefreshed():
                self._retried = True
                self.walk.go(State.POLLING)
                self._schedule.plan(now, steps.WaitReason.INTERVAL)
            case ev.RefreshFailed():
                self.last_poll_text = ev.poll_text(event)
                self._failed(event.retry_after, now, lost=event.lost)
            case ev.Resynced():
                self._resynced(now)
            case ev.ResyncFailed():
                self.last_poll_text = ev.poll_text(event)
                self.walk.go(State.ACKNOWLEDGING, State.ERROR)
                self._failed(event.retry_after, now, lost=event.lost)
            case _:
                assert isinstance(step, steps.Poll) and isinstance(event, ev.POLL_ANSWERS)
                self._polled(step, event, now)

    def _note(self, event: ev.PollAnswer, now: float) -> None:
        self.last_poll_code, self.last_poll_text = ev.poll_code(event), ev.poll_text(event)
        if isinstance(event, ev.NoUpdates | ev.Updates):
            self.last_answer_at = now

    def _polled(self, poll: steps.Poll, event: ev.PollAnswer, now: float) -> None:
        self._note(event, now)
        if isinstance(event, ev.TokenExpired) and not self._retried:
            self.walk.go(State.REFRESHING)
            self._schedule.plan(now, steps.WaitReason.BACKOFF)
            return
        self._retried = False
        match event:
            case ev.NoUpdates() | ev.Updates():
                self._good(poll, event, now)
            case ev.CursorExpired() if poll.cursor is not None:
                self._want_resync(now)
            case ev.ServerBusy() | ev.BadAnswer():
                self.walk.go(State.ERROR)
                self._failed(event.retry_after, now)
            case _:  # including a 401 right after a refresh and a 409 to a poll without a cursor
                self.walk.go(State.ERROR)
                lost = isinstance(event, ev.TransportFailed)
                self._failed(None, now, lost=lost, sent=not isinstance(event, ev.TransportFailed) or event.sent)

    def _good(self, poll: steps.Poll, event: ev.NoUpdates | ev.Updates, now: float) -> None:
        self._worked()
        moved = event.cursor is not None and event.cursor != poll.cursor
        if moved:
            self.seen_cursor, self.cursor_at = event.cursor, now
        self._schedule.after_success(poll, event, moved and isinstance(event, ev.Updates), now)
        if isinstance(event, ev.NoUpdates):
            self.walk.go(State.POLLING)
            self._page = steps.Deliver(event.cursor, ()) if moved else None
        else:
            self._schedule.expect_updates(now)
            self.walk.go(State.PROCESSING)
            self._page = steps.Deliver(event.cursor, event.signals, 0.0 if event.full else OUTCOME_WAIT)
        if poll.cursor is not None:
            self._resyncs = 0

    def _want_resync(self, now: float) -> None:
        """Plan a resync: immediately, but with backoff if it follows another one."""
        self._resync = True
        pause = self._schedule.breaker.backoff(self._resyncs + 1) if self._resyncs else 0.0
        self._schedule.plan(now + pause, steps.WaitReason.BACKOFF)

    def _delivered(self) -> None:
        if self._page is not None and self._page.cursor is not None:
            self.committed_cursor = self._page.cursor
        self._page = None
        self._deliver_failures = 0
        if self.state is State.PROCESSING:
            self.walk.go(State.ACKNOWLEDGING)

    def _not_delivered(self, now: float) -> None:
        """Drop the page, which comes again. A disk problem is not the plane's, so the breaker does not count it."""
        self._page, self.seen_cursor = None, self.committed_cursor
        self._deliver_failures += 1
        if self.state is State.PROCESSING:
            self.walk.go(State.ACKNOWLEDGING)
        self.walk.go(State.ERROR)
        self._schedule.plan(now + self._schedule.breaker.backoff(self._deliver_failures), steps.WaitReason.BACKOFF)

    def _acks_failed(self, retry_after: float | None, now: float) -> None:
        """Send the acks later, without delaying the next poll."""
        self._flush_failures += 1
        pause = self._schedule.breaker.backoff(self._flush_failures)
        self._flush_at = now + max(pause, retry_after or 0.0)
        self.walk.go(State.ERROR)

    def _resynced(self, now: float) -> None:
        self._resync = False
        self._resyncs += 1
        self._worked()
        self.seen_cursor = self.committed_cursor = None
        self.cursor_at = now
        self.walk.go(State.ACKNOWLEDGING)
        self._schedule.after_interval(now, held=True)

    # --- success, failure, the end -----------------------------------------------------------------------------

    def _worked(self) -> None:
        self._schedule.breaker.reset()
        if self._alarmed:
            self._alarmed = False
            self._alerts.append(
                steps.Alert(steps.AlertKind.BREAKER_OPEN, "the control plane answers again", resolved=True)
            )

    def _failed(self, retry_after: float | None, now: float, *, lost: bool = False, sent: bool = True) -> None:
        if self._schedule.after_failure(retry_after, now, lost=lost, sent=sent):
            self._alarmed = True
            text = f"the control plane gave no usable answer {self.failures} times in a row"
            self._alerts.append(steps.Alert(steps.AlertKind.BREAKER_OPEN, text))

    def _terminate(self, through: State, reason: StopReason, detail: str) -> None:
        self.walk.end(through)
        revoked = reason is StopReason.REVOKED
        kind = steps.AlertKind.DEVICE_REVOKED if revoked else steps.AlertKind.REFRESH_REFUSED
        self._alerts.append(steps.Alert(kind, detail))
        self._end = steps.Terminate(reason, detail)
