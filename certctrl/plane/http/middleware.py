"""The outermost layer of the ASGI application: errors, common headers, unread bodies, and counts."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from email.utils import formatdate
from time import perf_counter
from typing import Any

import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request

from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, bad_request, unavailable
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.health.storage_check import MAX_BACKLOG, problem_of
from certctrl.plane.http.answers import error_answer
from certctrl.plane.http.measuring import Routes, method_of
from certctrl.plane.http.reading import bearer_token
from certctrl.protocol.wire.push import STREAM_PATH

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STATUS_KEYS = {404: ("NOT_FOUND", 4004), 405: ("METHOD_NOT_ALLOWED", 4005)}
_VERSIONS = ("1.0", "1.1")
"""The plane is not tested with others."""
_RETRY_AFTER = {ProblemName.DATABASE_AWAY: 5, ProblemName.DATABASE_LOCKED: 5}
_DRAIN_SECONDS = 5.0
_OVERLOAD_RETRY = (5, 10)
HEALTH = "/health"
WEBSOCKET = "certctrl.websocket"
"""Key of the extensions of a scope whose request asks for a WebSocket."""
SWITCH = "certctrl.switch"
"""Key of the extensions of a scope whose request may be answered with 101.

That response has under this key an asynchronous function, which gets the connection and speaks the other protocol.
"""
GONE = "certctrl.gone"
"""Key of a scope's asynchronous function that returns when the client has left; absent: ask ``receive``."""
_CLOSE = (b"connection", b"close")

log = logging.getLogger("certctrl.Plane")


class Middleware:
    """Wraps the routes: turns errors into responses, dates and counts them, closes connections of a stopping plane.

    One layer does all of this, because each costs every poll.
    """

    def __init__(self, plane: Plane, inner: App, paths: Iterable[str]) -> None:
        """``paths`` are those of the routes, under which requests are counted."""
        self._plane = plane
        self._inner = inner
        self._routes = Routes(paths)
        self._dated = (0, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _live(receive, send)
            return
        exchange, began = _Exchange(self, scope, receive, send), perf_counter()
        scope["app"] = self  # makes the router raise instead of responding in plain text
        try:
            self._refuse_if_foreign(scope)
            self._refuse_if_overloaded(scope)
            await self._inner(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.status is not None:
                raise  # a partial response has been sent: the server must close the connection
            await self._answer_error(error, scope, exchange)
        finally:
            seconds = None if b"wait=" in scope.get("query_string", b"") else perf_counter() - began
            status = "none" if exchange.status is None else str(exchange.status)
            self._plane.counters.request(method_of(scope), self._routes.route_of(scope["path"]), status, seconds)

    async def _answer_error(self, error: Exception, scope: Scope, exchange: _Exchange) -> None:
        self._plane.storage_check.note_failure(error)
        answer = error_answer(error_response_of(error))
        if isinstance(error, HTTPException):
            answer.headers.update(error.headers or {})
        await answer(scope, exchange.receive, exchange.send)

    def _refuse_if_foreign(self, scope: Scope) -> None:
        """Raise an error for another version of HTTP, or a WebSocket where there is none."""
        if scope["http_version"] not in _VERSIONS:
            raise HTTPException(505, "Use HTTP/1.1")
        if WEBSOCKET in scope.get("extensions", ()) and scope["path"] != STREAM_PATH:
            raise bad_request(f"This server offers WebSockets at {STREAM_PATH} only")

    def _refuse_if_overloaded(self, scope: Scope) -> None:
        """Raise ErrorResponse 503, before the body is read, while the database is too slow for the requests.

        Requests of operators and for health are served, so that the cause can be found.
        """
        plane = self._plane
        waited = plane.database.backlog()
        if waited < MAX_BACKLOG or scope["path"].startswith(HEALTH):
            return
        with contextlib.suppress(ErrorResponse):
            token = bearer_token(Request(scope))
            if plane.keyring.is_operator(token) or plane.access.was_accepted(token):
                return
        plane.problems.report(ProblemName.OVERLOAD, f"requests have waited {waited:.1f} s for the database")
        raise unavailable(ProblemName.OVERLOAD.summary, random.randint(*_OVERLOAD_RETRY), ProblemName.OVERLOAD)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of all responses."""
        now = int(self._plane.wall_now())
        if self._dated[0] != now:
            self._dated = (now, formatdate(now, usegmt=True).encode("ascii"))
        headers = [(b"date", self._dated[1])]
        if self._plane.polls.draining:
            headers.append(_CLOSE)
        return headers


class _Exchange:
    """One request with its response; tracks whether the body is read, and the status."""

    def __init__(self, middleware: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._middleware = middleware
        self._receive = receive
        self._send = send
        self.status: int | None = None
        """None until the response has begun."""
        self._unread = _has_body(scope["headers"])

    async def receive(self) -> Message:
        """Return the next message, and track the end of the body."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """Add the common headers; drain an unread body while sending the last part."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = self._middleware.headers()
            if self._unread and _CLOSE not in extra:
                extra.append(_CLOSE)
            message["headers"] = [*message.get("headers", ()), *extra]
        elif self._unread and not message.get("more_body", False):
            await self._send_and_drain(message)
            return
        await self._send(message)

    async def _send_and_drain(self, message: Message) -> None:
        """Send the end of a response while discarding the rest of an unread body.

        The server passes body parts through a short queue and blocks while it is full, even to report a disconnect:
        with a full queue, the response would never finish and the connection never close.
        """
        with trio.move_on_after(_DRAIN_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._discard)
                await self._send(message)
                nursery.cancel_scope.cancel()

    async def _discard(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:  # faster than any() with a generator
        if name == b"transfer-encoding":
            return True
        if name == b"content-length":
            return value != b"0"
    return False


def error_response_of(error: Exception) -> ErrorResponse:
    """Return the response to an exception; an unexpected one is logged with an id and becomes a 500."""
    if isinstance(error, ErrorResponse):
        return error
    if isinstance(error, HTTPException):
        key, code = _STATUS_KEYS.get(error.status_code, ("BAD_REQUEST", 4000))
        return ErrorResponse(str(error.detail), status=error.status_code, key=key, code=code)
    problem = problem_of(error)
    if problem is not None:
        if problem is not ProblemName.DATABASE_AWAY:  # logged by the engine
            log.error("storage failed: %s", error)
        return unavailable(problem.summary, _RETRY_AFTER.get(problem, 30), problem)
    request_id = f"req_{secrets.token_hex(8)}"
    log.error("request %s failed", request_id, exc_info=error)
    params = {"request_id": request_id}
    return ErrorResponse("Internal server error", status=500, key="SERVER_ERROR", code=5000, params=params)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
