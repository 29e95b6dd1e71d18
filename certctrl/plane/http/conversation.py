"""Conversation: one device on its push socket, in the task of its connection.

At most one page is on its way; the next one is read after its ack. A wake makes the conversation read pages and
questions for its device. Between wakes it waits for a message, and nothing is kept for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from math import inf

import trio

from certctrl.errors import CertctrlError
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import is_costly
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import ErrorResponse, bad_request, invalid_token
from certctrl.plane.http import device_bodies, event_bodies, garbage
from certctrl.plane.http.bodies import body_of
from certctrl.plane.http.middleware import error_response_of
from certctrl.plane.http.reading import parsed_json
from certctrl.plane.http.websocket import ABNORMAL, INVALID, POLICY, PROTOCOL_ERROR, WebSocket
from certctrl.plane.push.hub import Hello, OpenSocket, Wanted
from certctrl.plane.push.questions import Question, reply_of
from certctrl.plane.push.sockets import Socket
from certctrl.plane.storage.signal_stream import Page, Waiter
from certctrl.protocol.wire import push as wire
from certctrl.protocol.wire.push import Envelope

_HELLO_SECONDS = 10.0
_RETRY_SECONDS = 5.0
"""Pause after a failure to read from the database."""
_ENDS = {401: wire.TOKEN_ENDED, 403: wire.DEVICE_IS_REVOKED}


class Conversation:
    """The protocol of one socket (docs/protocol.md, "Push")."""

    def __init__(
        self, plane: Plane, socket: WebSocket, session: DeviceSession, expires_at: float, address: str
    ) -> None:
        """``expires_at`` is when the token of the session ends (seconds since the epoch)."""
        self._plane = plane
        self._push = plane.push
        self._socket = socket
        self._expires_at = expires_at
        name = Socket(
            device_id=session.device_id, name=secrets.token_hex(8), opened_at=plane.wall_now(), address=address
        )
        self._opened = OpenSocket(name, session, self)
        self._waiter = Waiter(pushes=True)
        self._greeted = False
        self.cursor: str | None = None
        """Position that the agent has confirmed; None before its hello, and while it resyncs."""
        self._limit = self._part = 1
        """Signals per page: as requested, and fewer if such a page is too large."""
        self._sent: str | None = None
        """Cursor of the page that is on its way."""
        self._behind = self._missed = self._due = False
        self._asked: frozenset[int] = frozenset()
        """Questions that have been sent."""
        self._hello_by = trio.current_time() + _HELLO_SECONDS
        self._retry_at = inf
        self._text: str | None = None

    @property
    def received_at(self) -> float:
        """When bytes arrived last (Trio clock)."""
        return self._socket.received_at

    def wake(self) -> None:
        """Make it read again."""
        self._waiter.wake()

    async def run(self) -> None:
        """Converse until the socket is closed."""
        try:
            with self._plane.stream.waiting_as(self._opened.socket.device_id, self._waiter):
                while self._socket.closed is None:
                    await self._step()
        finally:
            self._socket.release()
            if self._greeted:
                self._push.leave(self._opened)
            self._plane.counters.push_closed(self._socket.closed or ABNORMAL)
            del self._opened  # its peer is this conversation: a cycle would wait for the hourly collection
            garbage.closed.note()

    async def _step(self) -> None:
        """Send what is due, otherwise wait for a message or a wake."""
        if self._plane.polls.draining:
            await self._socket.close_for(wire.RESTART, self._plane.polls.pace.return_seconds())
        elif self._opened.replaced:
            await self._socket.close(wire.REPLACED, "replaced by a newer connection")
        elif self._due and self._greeted:
            await self._send_waiting()
        else:
            self._text = None
            parked = "" if self._sent is not None or self.cursor is None else self.cursor
            woken = await self._waiter.wait(parked, self._receive, self._deadline())
            garbage.answered.note()
            self._due |= woken
            if self._text is not None:
                await self._take(self._text)
            elif not woken and self._socket.closed is None:
                await self._time_is_up()

    async def _receive(self) -> None:
        self._text = await self._socket.receive()

    def _deadline(self) -> float:
        expires = trio.current_time() + self._expires_at - self._plane.wall_now()
        return min(expires, self._retry_at, inf if self._greeted else self._hello_by)

    async def _time_is_up(self) -> None:
        now = trio.current_time()
        if not self._greeted and now >= self._hello_by:
            await self._socket.close(POLICY, "no hello in time")
        elif self._plane.wall_now() >= self._expires_at:
            await self._socket.close(wire.TOKEN_ENDED, "the access token has expired")
        elif now >= self._retry_at:
            self._retry_at, self._due = inf, True

    # --- to the agent ---------------------------------------------------------------------------------------------

    async def _send_waiting(self) -> None:
        """Send the next page, unless one is on its way, and new questions."""
        self._due, self._missed = False, self._sent is not None
        opened = self._opened
        wanted = Wanted(
            name=opened.socket.name if opened.recorded else "",
            cursor=self.cursor if self._sent is None else None,
            limit=self._part,
            behind=self._behind,
        )
        try:
            found = await self._push.next(opened.session, wanted)
        except ErrorResponse as error:
            await self._refuse(error)
            return
        except CertctrlError:  # keep waiting, as polls do while the database is away
            self._retry_at, self._missed = trio.current_time() + _RETRY_SECONDS, True
            return
        if found.replaced:
            opened.replaced = True
            return
        await self._send_questions(found.questions)
        if found.page is not None:
            await self._send_page(found.page, waited=not self._behind)

    async def _send_questions(self, questions: tuple[Question, ...]) -> None:
        """Send the questions that have not been sent, and forget those that have ended."""
        before, self._asked = self._asked, frozenset(one.id for one in questions)
        for one in questions:
            if one.id not in before:
                data = {"question": one.kind, "expires_ms": int(one.expires_at * 1000)}
                await self._socket.send(wire.envelope_text(wire.QUESTION, id=str(one.id), data=data))

    async def _send_page(self, page: Page, *, waited: bool) -> None:
        """Send a page with signals; one that is too large is read again, shorter."""
        count = len(page.signals)
        self._behind = count == self._part
        if not count:
            return
        data = {"cursor": page.cursor, "signals": page.signals, "more": self._behind}
        text = wire.envelope_text(wire.SIGNALS, id=page.cursor, data=data)
        if count > 1 and len(text.encode()) > wire.MAX_RECEIVED:
            self._part, self._due, self._behind = count // 2, True, True
            return
        self._part, self._sent = self._limit, page.cursor
        await self._socket.send(text)
        counters = self._plane.counters
        counters.push_pages += 1
        if waited:
            counters.wake_seconds.add(max(0.0, self._plane.wall_now() - page.signals[0]["ts_ms"] / 1000))

    async def _refuse(self, error: ErrorResponse, message: Envelope | None = None) -> None:
        """Send an error; close if the session has ended."""
        code = _ENDS.get(error.status or 0)
        if code is not None:
            await self._socket.close(code, error.key)
            return
        if message is None or message.type == wire.HELLO:  # no pages until the next hello
            self.cursor = self._sent = None
        await self._send_error(error, "" if message is None else message.id)

    async def _send_error(self, error: ErrorResponse, number: str) -> None:
        data = {"status": error.status, "error": error.body()}
        await self._socket.send(wire.envelope_text(wire.ERROR, id=number, data=data))

    # --- from the agent -------------------------------------------------------------------------------------------

    async def _take(self, text: str) -> None:
        """Handle a message."""
        try:
            message = wire.envelope_of(parsed_json(text))
        except (ValueError, CertctrlError):
            await self._socket.close(INVALID, "not a JSON object with a type")
            return
        handle = self._handlers().get(message.type)
        if not self._greeted and message.type != wire.HELLO:
            await self._socket.close(PROTOCOL_ERROR, f"send {wire.HELLO} first")
        elif handle is not None:
            try:
                if handle in (self._on_hello, self._on_outcomes, self._on_token) and not isinstance(message.data, dict):
                    raise bad_request("data must be an object", field="data")
                await handle(message)
            except ErrorResponse as error:
                await self._refuse(error, message)
            except CertctrlError as error:
                self._plane.storage_check.note_failure(error)
                answer = error_response_of(error)
                await self._refuse(answer, message)
                if message.type == wire.HELLO:
                    await self._socket.close_for(
                        wire.OVERLOAD, (answer.retry_after or 0.0) + self._plane.polls.pace.return_seconds()
                    )

    def _handlers(self) -> dict[str, Callable[[Envelope], Awaitable[None]]]:
        return {
            wire.HELLO: self._on_hello,
            wire.ACK: self._on_ack,
            wire.OUTCOMES: self._on_outcomes,
            wire.TOKEN: self._on_token,
            wire.ANSWER: self._on_answer,
        }

    async def _on_hello(self, message: Envelope) -> None:
        """Begin, or begin again, at a position."""
        hello = body_of(device_bodies.Hello, message.data)
        if self._greeted:
            self._plane.polls.take(self._opened.session.device_id)
        self._push.enter(self._opened)
        self._greeted = True
        self._limit = self._part = hello.limit
        greeting = await self._push.greet(self._opened, Hello(self._opened.socket, hello.cursor, hello.limit))
        if greeting.refusal is not None:
            raise greeting.refusal
        self.cursor, self._sent, self._behind = greeting.position, None, False
        data = {"resume_token": greeting.position, "ping_seconds": wire.PING_SECONDS}
        await self._socket.send(wire.envelope_text(wire.HELLO_ACK, data=data))
        await self._send_page(greeting.page, waited=False)
        self._due = True  # there may be questions

    async def _on_ack(self, message: Envelope) -> None:
        """Accept the ack of the page on its way."""
        if message.id == self._sent:
            self.cursor, self._sent = self._sent, None
            self._due = self._due or self._behind or self._missed
            socket = self._opened.socket
            self._plane.devices.seen(socket.device_id, socket.address, message.id)
        elif message.id != self.cursor:
            raise bad_request("This is not the page that was sent last", field="id")

    async def _on_outcomes(self, message: Envelope) -> None:
        """Store outcomes."""
        if not message.id:
            raise bad_request("Outcomes need an id", field="id")
        report = body_of(event_bodies.Report, message.data)
        if is_costly(report.events):
            self._plane.polls.take_costly(self._opened.session.device_id)
        await self._push.store(self._opened.session, report.events)
        await self._socket.send(wire.envelope_text(wire.OUTCOMES_ACK, id=message.id))

    async def _on_token(self, message: Envelope) -> None:
        """Continue with a fresh token; a refused one changes nothing, unless the device is revoked."""
        token = body_of(device_bodies.FreshToken, message.data).access_token
        try:
            session = await self._push.authenticate(token)
            if session.device_id != self._opened.session.device_id:
                raise invalid_token("This is the token of another device")
        except ErrorResponse as error:
            if error.status != 401:
                raise
            await self._send_error(error, message.id)
            return
        self._opened.session, self._expires_at = session, self._plane.sessions.expires_at(token)
        await self._socket.send(wire.envelope_text(wire.TOKEN_ACK, id=message.id))

    async def _on_answer(self, message: Envelope) -> None:
        """Store the answer to a question that was sent; others are ignored."""
        asked = {str(one): one for one in self._asked}.get(message.id)
        if asked is not None:
            await self._push.answer(self._opened.session.device_id, asked, reply_of(message.data))
