"""Perform the steps that the session decides, and report their results to it; contains no policy."""

from __future__ import annotations

import math
from collections import Counter
from typing import assert_never

import trio

from certctrl.agent.acks import flush_acks, send_meanwhile
from certctrl.agent.alerts import clear_disk_problem, problem_key, raise_alert, report_disk_problem, retry_writes
from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.push_mode import PushMode
from certctrl.agent.reconcile import plan_resync
from certctrl.errors import (
    BadAnswerError,
    CertctrlError,
    DiskError,
    NotRegisteredError,
    PlaneError,
    TransportError,
)
from certctrl.model.config import LogPolls, PollMode, Recovery
from certctrl.model.features import PRIORITY
from certctrl.model.priority import Priority
from certctrl.model.records import InboxEntry
from certctrl.model.stop import Stop
from certctrl.protocol import events, steps
from certctrl.protocol.breaker import SERVER_CAP
from certctrl.protocol.session import Session
from certctrl.protocol.state import State

REPORTED_SKEW = 60.0
SUMMARY_SECONDS = 3600.0
AHEAD_SECONDS = 1.0
"""Seconds between requests for urgent signals ahead of the cursor: in a burst, and while the inbox is full."""
AHEAD_PAUSE = 30.0
"""Least pause in seconds after such a request has failed."""
FIX_COPIES = "stop one; to keep both, on the copy: rm -r keys state, then cert-ctrl register"


class Poller:
    """One run of the poll loop; `request_poll` ends any wait."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._poll_requested = False
        self._token = ""
        """Access token of the last poll; another call may have refreshed it since."""
        self._waiting = trio.CancelScope()
        self._admitted: list[InboxEntry] = []
        """The new signals of the page that is delivered next."""
        self._answered: list[trio.Event] = []
        self._opened_at = trio.current_time()
        self._failures = 0
        self._ahead_at = -math.inf
        self._polled, self._summarised_at = Counter[str](), trio.current_time()

    def request_poll(self, who: str) -> None:
        """Poll now: end the current pause or long-poll, close the breaker."""
        log_line(self.agent.log, Line.POLL_NOW, who=who)
        self._poll_requested = True
        self.agent.tokens.try_again()
        if self.agent.push is not None:
            self.agent.push.try_now()
        self._waiting.cancel()

    async def poll_now(self, who: str) -> str:
        """Poll now, wait for the answer and return its text."""
        answered = trio.Event()
        self._answered.append(answered)
        self.request_poll(who)
        await answered.wait()
        return self.agent.session.last_poll_text

    async def poll_forever(self) -> Stop:
        """Run the session until it terminates; cancelled by the intake scope on stop."""
        session = self.agent.session
        try:
            session.receive(events.Started(token_valid=self.agent.tokens.valid()), trio.current_time())
            while True:
                step = session.next_step(trio.current_time())
                if isinstance(step, steps.Terminate):
                    return Stop(step.reason, step.detail)
                event = await self._perform(step)
                session.receive(event, trio.current_time())
                await self._after(event)
        finally:
            self.agent.burst.last_page()

    async def _perform(self, step: steps.AnsweredStep) -> events.Event:
        agent = self.agent
        match step:
            case steps.Wait():
                return await self._wait(step)
            case steps.Poll():
                return await self._poll(step)
            case steps.Deliver():
                return await self._deliver(step)
            case steps.FlushAcks():
                return await flush_acks(agent)
            case steps.Refresh():
                return await self._refresh()
            case steps.Resync():
                return await self._resync()
            case _:
                assert_never(step)

    async def _wait(self, step: steps.Wait) -> events.Event:
        with trio.CancelScope(deadline=step.until) as self._waiting:
            if not self._poll_requested:
                if step.why is steps.WaitReason.INTERVAL and self.agent.session.may_send_acks(trio.current_time()):
                    await send_meanwhile(self.agent)
                await trio.sleep_forever()
        return self._timer()

    def _timer(self) -> events.Event:
        requested, self._poll_requested = self._poll_requested, False
        return events.PollNow() if requested else events.Timer()

    async def _poll(self, step: steps.Poll) -> events.Event:
        agent = self.agent
        await retry_writes(agent)
        await self._wait_for_room(step.limit)
        if agent.burst.more_pages:
            await self._look_ahead(Priority.REVOCATION, Priority.EXPIRING)
        cursor = step.cursor or "none"
        log_line(agent.log, Line.POLL_REQUEST, routine=self._quiet, cursor=cursor, wait=step.wait, limit=step.limit)
        started = trio.current_time()
        with trio.CancelScope() as self._waiting:
            if self._poll_requested and step.wait:
                self._waiting.cancel()
            async with trio.open_nursery() as nursery:
                if step.wait and agent.session.may_send_acks(started):
                    nursery.start_soon(send_meanwhile, agent, name="acks")
                event = await self._request(step)
                if isinstance(event, events.Updates):
                    self._take(event)
                    for _ in ("the dispatcher starts the handlers", "they send their requests, before anything else"):
                        await trio.lowlevel.cancel_shielded_checkpoint()
                nursery.cancel_scope.cancel()
        if self._waiting.cancelled_caught:
            return self._timer()
        if not step.wait:
            agent.counters.poll_seconds.add(trio.current_time() - started)
        self._count(event)
        if isinstance(event, events.NoUpdates):
            agent.inbox.caught_up()
        if not isinstance(event, events.Updates):
            agent.burst.last_page()
        return event

    def _take(self, page: events.Updates) -> None:
        """Let the handlers start; everything else about a page is done while they wait for the material."""
        log_poll(self.agent, page)
        if page.full:
            self.agent.burst.full_page()
        self._admitted = self.agent.admit(page.signals)

    async def _request(self, step: steps.Poll) -> events.Event:
        agent = self.agent
        try:
            self._token = await agent.tokens.current()
            push = await self._push()
            return await (push or agent.plane).poll(self._token, step)
        except NotRegisteredError as error:
            return events.RefreshRefused(str(error))
        except PlaneError as error:
            return events.ServerBusy(error.status, error.retry_after, error.key)
        except CertctrlError as error:
            return events.TransportFailed(str(error))

    async def _push(self) -> PushMode | None:
        """Return the push mode, opened or closed as configured; None in any other mode."""
        agent, wanted = self.agent, self.agent.config.application.poll_mode is PollMode.PUSH
        if wanted and agent.push is None and agent.open_push is not None:
            agent.push = agent.open_push()
        elif not wanted and agent.push is not None:
            await agent.push.aclose()
            agent.push = None
        return agent.push

    async def _wait_for_room(self, limit: int) -> None:
        inbox = self.agent.inbox
        if inbox.has_room(limit):
            return
        log_line(self.agent.log, Line.POLL_PAUSED, depth=inbox.depth)
        while not inbox.has_room(limit):
            with trio.move_on_after(AHEAD_SECONDS):
                await inbox.wait_for_room(limit)
                break
            await self._look_ahead(*Priority)
        log_line(self.agent.log, Line.POLL_RESUMED, depth=inbox.depth)

    async def _look_ahead(self, *classes: Priority) -> None:
        """Request signals of these classes ahead of the cursor, at most once a second and if the inbox has room."""
        agent = self.agent
        if PRIORITY not in agent.plane.features or trio.current_time() < self._ahead_at:
            return  # before the inbox counts its signals, which takes milliseconds in a burst
        if not (wanted := [one for one in agent.inbox.classes_with_room() if one in classes]):
            return
        try:
            token = await agent.tokens.current()
            found = await agent.plane.look_ahead(token, agent.session.committed_cursor, wanted)
        except CertctrlError:  # the next poll reports a lasting problem
            found = None
        if isinstance(found, events.Updates) and (fresh := agent.admit_ahead(found.signals)):
            log_line(agent.log, Line.POLL_AHEAD, count=len(fresh))
        usable = isinstance(found, events.Updates | events.NoUpdates)
        asked = min(getattr(found, "retry_after", None) or 0.0, SERVER_CAP)
        self._ahead_at = trio.current_time() + max(asked, AHEAD_SECONDS if usable else AHEAD_PAUSE)

    def _count(self, event: events.Event) -> None:
        if isinstance(event, events.NoUpdates) and self._on_socket:
            return  # it was not a request
        code = events.poll_code(event) if isinstance(event, events.POLL_ANSWERS) else None
        unusable = isinstance(event, events.BadAnswer)
        self.agent.counters.polls["unusable" if unusable else str(code or "none")] += 1

    async def _deliver(self, step: steps.Deliver) -> events.Event:
        agent = self.agent
        amid_burst = agent.burst.more_pages  # if so, the batch waits to learn that this was the last page
        try:
            # the handlers have started: most are done before the page would be on disk, and need not be written
            fresh, self._admitted = self._admitted, []
            try:
                if not amid_burst:
                    await self._outcomes(fresh, step.outcome_wait)
            finally:  # even if a stop ends the wait
                await self._commit(step.cursor)
        except DiskError as error:
            report_disk_problem(agent, error)
            return events.DeliverFailed(str(error))
        clear_disk_problem(agent)
        if len(step.signals) < agent.config.application.poll_limit:
            agent.burst.last_page()
        if amid_burst:
            await self._outcomes(fresh, step.outcome_wait)
        agent.status_changed.value = True  # not earlier: reporting would take CPU time from the handlers
        return events.Delivered()

    async def _outcomes(self, entries: list[InboxEntry], outcome_wait: float) -> None:
        with trio.move_on_after(outcome_wait) as self._waiting:
            if not self._poll_requested:
                await self.agent.inbox.wait_for_outcomes(entries)

    async def _commit(self, cursor: str | None) -> None:
        """Commit the cursor once all signals before it are durable. Raises DiskError."""
        agent = self.agent
        with trio.CancelScope(shield=True):
            await agent.inbox.secure()
            if cursor is not None:
                await agent.offload(agent.store.session.save_cursor, cursor)
        agent.store.session.save_last_poll(agent.wall_now())

    async def _refresh(self) -> events.Event:
        agent = self.agent
        try:
            await agent.tokens.refresh(self._token)
        except NotRegisteredError as error:
            agent.counters.token_refreshes["refused"] += 1
            return events.RefreshRefused(str(error))
        except CertctrlError as error:
            agent.counters.token_refreshes["failed"] += 1
            return events.RefreshFailed(str(error), _retry_after(error), lost=_is_lost(error))
        agent.counters.token_refreshes["ok"] += 1
        return events.TokenRefreshed()

    async def _resync(self) -> events.Event:
        agent = self.agent
        log_line(agent.log, Line.CURSOR_RESET, key="CURSOR_EXPIRED", cursor=agent.session.seen_cursor or "none")
        try:
            await agent.offload(agent.store.session.clear_cursor)
            await plan_resync(agent, "the cursor was reset", new_stream=True)
        except NotRegisteredError as error:
            return events.RefreshRefused(str(error))
        except CertctrlError as error:
            return events.ResyncFailed(str(error), _retry_after(error), lost=_is_lost(error))
        return events.Resynced()

    async def _after(self, event: events.Event) -> None:
        """Log the answer, raise breaker alerts, finish requested polls."""
        agent, session = self.agent, self.agent.session
        if not isinstance(event, events.Updates):
            log_poll(agent, event, routine=self._quiet)
        if isinstance(event, events.POLL_ENDS):
            self._summarise(event)
        if not isinstance(event, events.POLL_ENDS):
            return
        refreshing = isinstance(event, events.TokenExpired) and session.state is State.REFRESHING
        if not (refreshing or isinstance(event, events.CursorExpired)):  # otherwise another poll follows immediately
            for answered in self._answered:
                answered.set()
            self._answered.clear()
        if not isinstance(event, events.Updates):  # updates are reported once they are delivered
            agent.status_changed.value = True
        self._compare_clocks()
        self._check_for_copies()
        if session.failures == 0 and self._failures:
            log_line(agent.log, Line.POLL_RECOVERED, failures=self._failures)
        self._failures = session.failures
        for alert in session.take_alerts():
            await self._breaker(alert)
        agent.polled.set()

    @property
    def _quiet(self) -> bool:
        """Whether routine polls are not written to the log; those on a socket are not requests."""
        return self._on_socket or self.agent.config.application.log_polls is LogPolls.CHANGES

    @property
    def _on_socket(self) -> bool:
        return self.agent.push is not None and self.agent.push.is_open

    def _summarise(self, event: events.Event) -> None:
        """Count an answer; write the summary of the polls once an hour."""
        kind = (
            "updates" if isinstance(event, events.Updates) else "" if isinstance(event, events.NoUpdates) else "failed"
        )
        self._polled.update(["polls", kind])
        seconds = trio.current_time() - self._summarised_at
        if not self._quiet or seconds < SUMMARY_SECONDS:
            return
        counts, self._polled, self._summarised_at = self._polled, Counter(), trio.current_time()
        log_line(
            self.agent.log,
            Line.POLL_SUMMARY,
            minutes=round(seconds / 60),
            polls=counts["polls"],
            updates=counts["updates"],
            failed=counts["failed"],
        )

    def _compare_clocks(self) -> None:
        agent, skew = self.agent, self.agent.plane.server_skew or 0.0
        if abs(skew) < REPORTED_SKEW:
            agent.clear_problem("clock")
        elif agent.report_problem(
            "clock", "this host's clock differs from the plane's", "set the clock (chrony, timesyncd)"
        ):
            log_line(agent.log, Line.CLOCK_SKEW, seconds=round(-skew))

    def _check_for_copies(self) -> None:
        agent = self.agent
        if not agent.plane.copies_suspected:
            agent.clear_problem("copies")
        elif agent.report_problem(
            "copies", "another agent polls as this device: a copy of this directory is in use", FIX_COPIES
        ):
            log_line(agent.log, Line.DEVICE_COPIED)

    async def _breaker(self, alert: steps.Alert) -> None:
        agent, session = self.agent, self.agent.session
        if alert.kind is not steps.AlertKind.BREAKER_OPEN:
            return  # the end of the session reports it
        if alert.resolved:
            agent.clear_problem(problem_key("breaker"))
            log_line(agent.log, Line.BREAKER_CLOSED, seconds=round(trio.current_time() - self._opened_at))
            return
        self._opened_at = trio.current_time()
        recovery = (
            "waiting for `poll-now`" if agent.config.application.recovery is Recovery.MANUAL else "probing slowly"
        )
        log_line(agent.log, Line.BREAKER_OPENED, failures=session.failures, recovery=recovery)
        await raise_alert(agent, "breaker", alert.text, "`cert-ctrl doctor` shows why; `cert-ctrl poll-now` resumes")


def log_poll(agent: Agent, event: events.Event, *, routine: bool = False) -> None:
    """Write the log line of one poll's answer; ``routine``: at level DEBUG if it brings nothing."""
    session = agent.session
    match event:
        case events.NoUpdates():
            log_line(agent.log, Line.POLL_NO_UPDATES, routine=routine, cursor=session.seen_cursor or "none")
        case events.Updates():
            log_line(agent.log, Line.POLL_UPDATES, count=len(event.signals), cursor=event.cursor or "none")
        case events.BadAnswer():
            log_line(agent.log, Line.POLL_UNUSABLE, why=event.why)
        case events.TokenExpired():
            log_line(agent.log, Line.TOKEN_REJECTED, key="TOKEN_EXPIRED")
        case events.Refused():
            log_line(
                agent.log,
                Line.POLL_REFUSED,
                status=event.status,
                reason="",
                key=event.key,
                code=event.code,
                what=event.what,
            )
        case events.ServerBusy():
            log_line(agent.log, Line.POLL_REFUSED, status=event.status, reason="", key=event.key, code="", what="busy")
            if event.retry_after is not None:
                log_line(agent.log, Line.POLL_SLOW_DOWN, seconds=round(event.retry_after))
        case events.TransportFailed():
            log_line(agent.log, Line.POLL_FAILED, why=event.why, failures=session.failures, delay=_delay(session))
        case events.DeviceRevoked():
            log_line(agent.log, Line.DEVICE_REVOKED, what=event.what)
        case events.RefreshFailed():
            log_line(agent.log, Line.TOKEN_REFRESH_FAILED, why=event.why, delay=_delay(session))
        case events.ResyncFailed():
            log_line(agent.log, Line.RESYNC_FAILED, why=event.why, delay=_delay(session))
        case _:
            pass
    if isinstance(event, events.NoUpdates | events.Updates) and event.retry_after is not None:
        log_line(agent.log, Line.POLL_SLOW_DOWN, seconds=round(event.retry_after))


def _retry_after(error: CertctrlError) -> float | None:
    return error.retry_after if isinstance(error, PlaneError) else None


def _is_lost(error: CertctrlError) -> bool:
    """Return whether there was no answer."""
    return isinstance(error, TransportError) and not isinstance(error, BadAnswerError)


def _delay(session: Session) -> str:
    due = session.next_poll_at
    return "?" if due is None else f"{max(0.0, due - trio.current_time()):.0f}"
