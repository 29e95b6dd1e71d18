"""Push: perform polls on a socket, or as long-polls while there is none. Only push mode imports it.

The session does not depend on it: on a socket (`push_link.py`) or as a request (``net/control_plane.py``), a poll has
the same events. ``protocol/fallback.py`` decides when a socket is tried. If none can be opened although the plane
answers, the same poll is sent as a request, so that no signal waits for the socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import trio

from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.package_guard import raise_if_replaced
from certctrl.agent.push_link import Link
from certctrl.errors import PlaneError, TransportError
from certctrl.model.answer import Answer
from certctrl.model.features import PUSH
from certctrl.protocol import events
from certctrl.protocol.fallback import Fallback
from certctrl.protocol.steps import Poll
from certctrl.protocol.wire.poll import poll_event
from certctrl.protocol.wire.push import Envelope

if TYPE_CHECKING:
    from certctrl.agent.context import Agent

NOT_OFFERED = "the control plane does not offer it"
MAX_OUTCOMES = 20
"""Outcomes of one message; larger batches are sent as requests, which may be larger."""
_ABSENT = (404, 405, 501)
_OWN = (events.TokenExpired, events.DeviceRevoked, events.CursorExpired, events.ServerBusy, events.NoUpdates)
"""Answers of the plane that end a socket, but do not count as failures of push."""


class Push:
    """The push mode of an agent; one task polls."""

    def __init__(self, agent: Agent, nursery: trio.Nursery) -> None:
        """``nursery`` runs the sockets, longer than the task that polls."""
        self._agent = agent
        self._nursery = nursery
        self._fallback = Fallback(agent.random)
        self._link: Link | None = None
        self._scope = trio.CancelScope()
        self._uses, self._since = "", agent.wall_now()

    @property
    def is_open(self) -> bool:
        """Whether there is a socket that works."""
        return self._link is not None and self._link.greeted and self._link.ended is None

    def view(self) -> dict[str, Any]:
        """Return the transport in use, since when, why it is not push, and when push is tried again, for the status."""
        if self.is_open:
            return {"uses": "push", "since": self._since, "why": "", "next_try_at": None}
        why = self._fallback.why if self._is_offered() else NOT_OFFERED
        left = self._fallback.next_try_at - trio.current_time()
        tries = self._agent.wall_now() + left if why and left > 0 else None
        return {"uses": "long-poll", "since": self._since, "why": why or "connecting", "next_try_at": tries}

    def try_now(self) -> None:
        """Try push with the next poll, for an operator."""
        self._fallback.try_now()

    async def aclose(self) -> None:
        """Close the socket, if there is one."""
        self._scope.cancel()
        self._link = None
        await trio.lowlevel.checkpoint()

    async def poll(self, token: str, step: Poll) -> events.PollAnswer:
        """Perform one poll of the session; return an event even if the network fails."""
        if self._link is not None:
            return await self._pushed(self._link, token, step)
        now = trio.current_time()
        if not self._is_offered() or not self._fallback.is_due(now):
            self._note("long-poll")
            return await self._agent.plane.poll(token, self._until_next_try(step, now))
        try:
            opened = await self._agent.plane.open_stream(token)
        except TransportError as error:
            if not error.maybe_sent:  # a poll would not arrive either
                return events.TransportFailed(str(error), fix=error.fix or "")
            return await self._without(token, step, str(error))
        if isinstance(opened, Answer):
            return await self._refused(opened, token, step)
        link = self._link = Link(opened, self._agent.tokens, token, self._ask)
        self._scope = trio.CancelScope()
        self._fallback.opened(trio.current_time())
        self._nursery.start_soon(self._run, link, self._scope, name="push")
        return await self._pushed(link, token, step)

    async def post(self, notices: Sequence[Mapping[str, Any]]) -> bool:
        """Report outcomes on the socket; return False if they are to be sent as a request. Raises PlaneError."""
        if self._link is None or not self.is_open or len(notices) > MAX_OUTCOMES:
            return False
        try:
            await self._link.post(notices)
        except TransportError:
            return False  # sending them twice does no harm
        except PlaneError as error:
            if error.status not in _ABSENT:
                raise
            return False
        return True

    # --- the socket -------------------------------------------------------------------------------------------

    async def _run(self, link: Link, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await link.run()
        except Exception as error:  # a bug on the socket must not stop the daemon
            raise_if_replaced(error)
            log_line(self._agent.log, Line.BUG, kind=type(error).__name__, where="push", why=error)
            link.end(events.TransportFailed(f"internal error ({type(error).__name__})"))

    async def _pushed(self, link: Link, token: str, step: Poll) -> events.PollAnswer:
        event = await link.next_page(step)
        now = trio.current_time()
        if event is not link.ended:
            self._note("push")
            if self._fallback.works(now):
                self._agent.plane.copies_suspected = False
            return event
        self._link = None
        why = events.poll_text(event)
        if link.greeted or isinstance(event, _OWN):
            self._ended(event, why, now)
            return event
        self._fallback.closed()
        return await self._without(token, step, why)

    def _ended(self, event: events.PollAnswer, why: str, now: float) -> None:
        log_line(self._agent.log, Line.PUSH_ENDED, why=why)
        self._agent.counters.push["ended"] += 1
        if isinstance(event, events.Refused):  # replaced by another connection of this device
            self._agent.plane.copies_suspected = True
        if isinstance(event, _OWN):
            self._fallback.closed()
        else:
            self._settle(self._fallback.ended(now, why))

    async def _refused(self, answer: Answer, token: str, step: Poll) -> events.PollAnswer:
        """Return the plane's refusal of a socket; poll if it, or something in between, has no push."""
        event = poll_event(answer, step.limit, self._agent.wall_now())
        if isinstance(event, events.TokenExpired | events.DeviceRevoked | events.CursorExpired | events.ServerBusy):
            return event
        if answer.status in _ABSENT:
            return await self._without(token, step, f"no push endpoint (status {answer.status})", absent=True)
        return await self._without(token, step, f"the upgrade was refused (status {answer.status})")

    async def _without(self, token: str, step: Poll, why: str, *, absent: bool = False) -> events.PollAnswer:
        """Poll immediately, because no socket could be opened; if the plane answers, count a failure of push."""
        self._agent.counters.push["failed"] += 1
        event = await self._agent.plane.poll(token, attrs.evolve(step, wait=0))
        if isinstance(event, events.NoUpdates | events.Updates):
            note = self._fallback.refused if absent else self._fallback.failed
            log_line(self._agent.log, Line.PUSH_FAILED, why=why)
            self._settle(note(trio.current_time(), why))
        return event

    def _settle(self, begins: bool) -> None:
        if begins:
            minutes = max(round((self._fallback.next_try_at - trio.current_time()) / 60), 1)
            log_line(self._agent.log, Line.PUSH_FALLBACK, why=self._fallback.why, minutes=minutes)

    def _note(self, uses: str) -> None:
        """Log a change of the transport in use."""
        if uses == self._uses:
            return
        self._uses, self._since = uses, self._agent.wall_now()
        if uses == "push":
            self._agent.counters.push["opened"] += 1
            log_line(self._agent.log, Line.PUSH_OPENED)
        elif not self._is_offered():
            log_line(self._agent.log, Line.PUSH_NOT_OFFERED)

    def _is_offered(self) -> bool:
        return PUSH in self._agent.plane.features

    def _until_next_try(self, step: Poll, now: float) -> Poll:
        """Return a poll that does not outlast the pause before the next try, if that is short."""
        left = self._fallback.next_try_at - now
        if not step.wait or self._fallback.active or not self._is_offered():
            return step
        return attrs.evolve(step, wait=min(step.wait, max(1, int(left))))

    async def _ask(self, envelope: Envelope) -> Mapping[str, Any]:
        from certctrl.agent.questions import answer_question  # here: few agents are ever asked

        return await answer_question(self._agent, envelope)
