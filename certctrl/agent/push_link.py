"""Link: one push socket and its messages (docs/protocol.md, "Push").

One task receives and waits for nothing else: it passes pages, answers and questions on. A page waits until the session
polls, and the plane sends the next one after its ack, so there is never more than one.

A cursor is acknowledged when the session polls with it, which it does once everything before it is durable. If the
session polls with a cursor that is neither the last page's nor the acknowledged one (after a failed write, or a
resync), a `hello` starts again there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any

import trio

from certctrl import lean
from certctrl.agent.tokens import TokenKeeper
from certctrl.errors import BadAnswerError, PlaneError, TransportError
from certctrl.model.questions import MAX_OPEN
from certctrl.net.calls import parsed_of
from certctrl.net.stream import Closed, Pong, Stream
from certctrl.protocol.events import BadAnswer, NoUpdates, PollAnswer, TransportFailed, Updates
from certctrl.protocol.steps import Poll
from certctrl.protocol.wire import push as wire
from certctrl.protocol.wire.signals import report_body

ANSWER_SECONDS = 10.0
"""Seconds for the plane to answer a hello, a ping that an operator waits for, and outcomes."""
SILENCE = (1.0, 2.0, 3.0)
"""Ping intervals without anything received: first ping, second ping, end."""
QUESTION_SECONDS, QUESTIONS_BURST = 2.0, 8
"""A question is taken each so many seconds, and so many in a burst: each costs processor time and a log line."""
_BUSY = {"error": {"key": "BUSY", "what": "too many questions at the same time"}}
_UNKNOWN = "\0"
"""The position after a refusal of the plane; no cursor is equal to it."""

Ask = Callable[[wire.Envelope], Awaitable[Mapping[str, Any]]]
"""Returns the data of the answer to a question."""


@lean.define
class _Reply:
    """The plane's answer to outcomes."""

    done: bool = False
    error: PlaneError | None = None


class Link:
    """An open socket, until ``ended`` is set."""

    def __init__(self, stream: Stream, tokens: TokenKeeper, token: str, ask: Ask) -> None:
        """``token``: the access token with which it was opened."""
        self.ended: PollAnswer | None = None
        """Why the socket ended; None while it is open."""
        self.greeted = False
        """Whether the plane has answered a hello."""
        self._stream = stream
        self._tokens = tokens
        self._token = token
        self._ask = ask
        self._asking = trio.Lock()
        self._questions = 0
        self._questions_until = 0.0
        """When the questions of the last burst would have been taken one by one (Trio clock)."""
        self._changed = trio.Event()
        self._limit = 1
        self._position: str | None = _UNKNOWN  # the cursor that the plane knows to be committed
        self._page: Updates | None = None
        self._handed: str | None = None  # the cursor of the page that the session got last, until its ack
        self._greeting_due = False
        self._refusal: PollAnswer | None = None
        self._ping_seconds = wire.PING_SECONDS
        self._received_at = trio.current_time()
        self._numbers = count(1)
        self._pongs = 0
        self._replies: dict[str, _Reply] = {}

    # --- the session's side -----------------------------------------------------------------------------------

    async def next_page(self, step: Poll) -> PollAnswer:
        """Acknowledge the cursor of a poll, and wait for the next page as the plane would hold the poll.

        Returns ``ended`` once the socket has ended and all pages were returned. May be cancelled at any time.
        """
        try:
            greets = await self._go_to(step)
            if self._greeting_due and not await self._until(lambda: not self._greeting_due, ANSWER_SECONDS):
                raise TransportError("the control plane does not answer on the push socket")
            if greets and step.cursor is None and self._position not in (None, _UNKNOWN):
                return NoUpdates(self._position, pushed=True)
            if not step.wait:
                return await self._now(greets)
            return await self._later(step.wait)
        except TransportError as error:
            self.end(TransportFailed(str(error)))
        return self._found() or NoUpdates(None, pushed=True)

    async def _go_to(self, step: Poll) -> bool:
        """Send the ack, or a hello if the plane is elsewhere; return whether it was a hello."""
        if self.ended is not None or self._page is not None:
            return False
        if (handed := self._handed) is not None and step.cursor == handed:
            self._position, self._handed = handed, None
            await self._send(wire.ACK, id=handed)
            return False
        if self._handed is None and step.cursor == self._position:
            return False
        self._position, self._handed, self._limit = step.cursor, None, step.limit
        self._greeting_due = True
        await self._send(wire.HELLO, data={"cursor": step.cursor, "limit": step.limit})
        return True

    async def _now(self, greeted: bool) -> PollAnswer:
        """Return what is there; a round trip proves that the plane answers."""
        if (found := self._found()) is not None:
            return found
        if not greeted:
            before = self._pongs
            with trio.CancelScope(shield=True):
                await self._stream.ping()
            if not await self._until(lambda: self._pongs != before or self._page is not None, ANSWER_SECONDS):
                raise TransportError("the control plane does not answer a ping on the push socket")
        return self._found() or NoUpdates(None, pushed=True)

    async def _later(self, wait: float) -> PollAnswer:
        """Wait for a page; anything received after half of the wait counts as an answer without one."""
        half = trio.current_time() + wait / 2
        await self._until(
            lambda: self._page is not None or self._refusal is not None or self._received_at >= half, wait
        )
        return self._found() or NoUpdates(None, pushed=True)

    def _found(self) -> PollAnswer | None:
        """Return the page that has arrived, otherwise the plane's refusal, otherwise why the socket has ended."""
        if self._page is not None:
            page, self._page = self._page, None
            self._handed = page.cursor
            return page
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            return refusal
        return self.ended

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition holds or the socket has ended; return whether one of them is true in time."""
        with trio.move_on_after(seconds):
            while self.ended is None and not condition():
                await self._changed.wait()
        return self.ended is not None or condition()

    async def post(self, notices: Sequence[Mapping[str, Any]]) -> None:
        """Report outcomes. Raises PlaneError if the plane refuses them, TransportError if it may not have them."""
        number = str(next(self._numbers))
        text = wire.envelope_text(wire.OUTCOMES, id=number, data=report_body(notices))
        if len(text.encode()) > wire.MAX_SENT:  # the plane would end the socket
            raise TransportError("the outcomes are too large for the push socket")
        reply = self._replies[number] = _Reply()
        try:
            await self._send_text(text)
            await self._until(lambda: reply.done, ANSWER_SECONDS)
        finally:
            del self._replies[number]
        if reply.error is not None:
            raise reply.error
        if not reply.done:
            raise TransportError("no answer to outcomes on the push socket")

    async def _send(self, kind: str, *, id: str = "", data: Any = None) -> None:
        await self._send_text(wire.envelope_text(kind, id=id, data=data))

    async def _send_text(self, text: str) -> None:
        """Send a message, whole even if the caller is cancelled; the socket limits the time."""
        with trio.CancelScope(shield=True):
            await self._stream.send(text)

    # --- the socket's side ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Receive until the socket ends; if cancelled, close it with 1001 (going away)."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_tokens)
                nursery.start_soon(self._watch_silence)
                nursery.start_soon(self._receive, nursery)
                await self._until(lambda: False, float("inf"))
                nursery.cancel_scope.cancel()
        finally:
            code = 1001 if self.ended is None else 1002 if isinstance(self.ended, BadAnswer) else 1000
            self.end(TransportFailed("the agent has closed the push socket"))
            await self._stream.aclose(code)

    def end(self, why: PollAnswer) -> None:
        """End the socket; the first reason counts."""
        if self.ended is None:
            self.ended = why
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _receive(self, nursery: trio.Nursery) -> None:
        try:
            while self.ended is None:
                received = await self._stream.receive()
                self._received_at = trio.current_time()
                if isinstance(received, Closed):
                    self.end(wire.close_event(received.code, received.reason))
                elif isinstance(received, str):
                    await self._take(received, nursery)
                self._pongs += isinstance(received, Pong)
                self._wake()
                if self._page is not None:  # the session takes it before the next read begins
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
        except BadAnswerError as error:
            self.end(BadAnswer(str(error)))
        except TransportError as error:
            self.end(TransportFailed(str(error)))

    async def _take(self, text: str, nursery: trio.Nursery) -> None:
        envelope, page = await parsed_of(len(text), lambda: self._read(text))
        if page is not None:
            self._take_page(page)
        elif envelope.type == wire.HELLO_ACK:
            self._take_greeting(envelope)
        elif envelope.type == wire.ERROR:
            self._take_error(envelope)
        elif envelope.type == wire.OUTCOMES_ACK and envelope.id in self._replies:
            self._replies[envelope.id].done = True
        elif envelope.type == wire.QUESTION and not self._takes_question():
            await self._send(wire.ANSWER, id=envelope.id, data=_BUSY)
        elif envelope.type == wire.QUESTION:
            self._questions += 1
            nursery.start_soon(self._answer, envelope)

    def _takes_question(self) -> bool:
        """Return whether a question may be answered now, and count it."""
        now = trio.current_time()
        if self._questions >= MAX_OPEN or self._questions_until > now + (QUESTIONS_BURST - 1) * QUESTION_SECONDS:
            return False
        self._questions_until = max(self._questions_until, now) + QUESTION_SECONDS
        return True

    def _read(self, text: str) -> tuple[wire.Envelope, Updates | None]:
        envelope = wire.envelope_from_text(text)
        return envelope, wire.page_event(envelope, self._limit) if envelope.type == wire.SIGNALS else None

    def _take_page(self, page: Updates) -> None:
        if self._greeting_due:
            return  # sent before the plane received the hello; it comes again
        if self._page is not None or self._handed is not None:
            raise BadAnswerError("the control plane sends a page before the ack of the last one")
        self._page = page

    def _take_greeting(self, envelope: wire.Envelope) -> None:
        greeting = wire.greeting_from_wire(envelope)
        self._ping_seconds = greeting.ping_seconds
        if self._greeting_due and self._position is None:
            self._position = greeting.resume_token
        self._greeting_due, self.greeted = False, True

    def _take_error(self, envelope: wire.Envelope) -> None:
        if (reply := self._replies.get(envelope.id)) is not None:
            reply.done, reply.error = True, wire.error_from_wire(envelope)
        elif envelope.id or self._greeting_due:
            self._position = _UNKNOWN  # the next poll says hello again
            if self._greeting_due:
                self._refusal, self.greeted = wire.refusal_event(envelope), True
            self._greeting_due = False

    async def _watch_silence(self) -> None:
        """Send pings while nothing is received, and end a socket that stays silent."""
        sent = 0
        while True:
            await trio.sleep_until(self._received_at + SILENCE[sent] * self._ping_seconds)
            silent = (trio.current_time() - self._received_at) / self._ping_seconds + 1e-6
            if silent >= SILENCE[-1]:
                self.end(
                    TransportFailed(f"nothing received on the push socket for {silent * self._ping_seconds:.0f} s")
                )
                return
            missed = sum(silent >= limit for limit in SILENCE)
            if missed > sent:
                try:
                    await self._stream.ping()
                except TransportError as error:
                    self.end(TransportFailed(str(error)))
                    return
            sent = missed

    async def _send_tokens(self) -> None:
        """Send each new access token, so that the socket outlives the old one."""
        while True:
            while (token := self._tokens.seen()) != self._token and token:
                self._token = token
                try:
                    await self._send(wire.TOKEN, data={"access_token": token})
                except TransportError as error:
                    self.end(TransportFailed(str(error)))
                    return
            await self._tokens.changed.wait()

    async def _answer(self, envelope: wire.Envelope) -> None:
        """Answer a question, after those before it."""
        try:
            async with self._asking:
                answer = await self._ask(envelope)
            await self._send(wire.ANSWER, id=envelope.id, data=answer)
        except TransportError as error:
            self.end(TransportFailed(str(error)))
        finally:
            self._questions -= 1
