"""The outermost layer of the ASGI application: what holds for every request, whatever it asks."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any

import trio
from starlette.exceptions import HTTPException

from certctrl.errors import DiskError
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, unavailable
from certctrl.plane.http.answers import error_answer

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STATUS_KEYS = {404: ("NOT_FOUND", 4004), 405: ("METHOD_NOT_ALLOWED", 4005)}
_VERSIONS = ("1.0", "1.1")
"""A client can talk Hypercorn into HTTP/2 by its preface; nothing of ours was tried with that."""
_DRAIN_SECONDS = 5.0

log = logging.getLogger("certctrl.Plane")


class Edge:
    """Wraps the routes: errors become answers, the plane's clock dates them, a stopping plane closes connections."""

    def __init__(self, plane: Plane, inner: App) -> None:
        self._plane = plane
        self._inner = inner
        self._dated = (0, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, _Exchange(self, scope, receive, send))
        # Anything else (WebSocket) is left unanswered: the server refuses it.

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        scope["app"] = self  # asks the router to raise, not to answer in plain text
        try:
            if scope["http_version"] not in _VERSIONS:
                raise HTTPException(505, "HTTP/1.1, please")
            await self._inner(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.started:
                raise  # half an answer is out: the server must cut the connection
            answer = error_answer(refusal_of(error))
            if isinstance(error, HTTPException):
                answer.headers.update(error.headers or {})
            await answer(scope, exchange.receive, exchange.send)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer carries."""
        now = int(self._plane.wall_now())
        if self._dated[0] != now:
            self._dated = (now, formatdate(now, usegmt=True).encode("ascii"))
        headers = [(b"date", self._dated[1])]
        if self._plane.draining:
            headers.append((b"connection", b"close"))
        return headers


class _Exchange:
    """One request's channels; knows whether its body has been read and its answer begun."""

    def __init__(self, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        self._edge = edge
        self._receive = receive
        self._send = send
        self.started = False
        self._unread = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        )

    async def receive(self) -> Message:
        """Pass a message on, and notice the end of the body."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """Add the headers of every answer; before the last part, see that nobody is left sending us a body."""
        if message["type"] == "http.response.start":
            self.started = True
            extra = self._edge.headers()
            if self._unread and (b"connection", b"close") not in extra:
                extra.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", ()), *extra]
        elif self._unread and not message.get("more_body", False):
            await self._send_and_drain(message)
            return
        await self._send(message)

    async def _send_and_drain(self, message: Message) -> None:
        """Send the end of an answer while the rest of an unwanted body is thrown away.

        The server hands bodies over in a short queue and waits where it is full, also to tell us of the end of the
        connection: an answer that left the queue full would never be finished, nor the connection closed.
        """
        with trio.move_on_after(_DRAIN_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._discard)
                await self._send(message)
                nursery.cancel_scope.cancel()

    async def _discard(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


def refusal_of(error: Exception) -> ErrorResponse:
    """Return the answer for an exception; what we did not foresee is logged with an id and told as 500."""
    if isinstance(error, ErrorResponse):
        return error
    if isinstance(error, HTTPException):
        key, code = _STATUS_KEYS.get(error.status_code, ("BAD_REQUEST", 4000))
        return ErrorResponse(str(error.detail), status=error.status_code, key=key, code=code)
    if isinstance(error, DiskError):
        log.error("the plane's storage failed: %s", error)
        return unavailable("The plane cannot store anything now", 30)
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
