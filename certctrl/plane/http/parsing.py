"""RequestParser: the bytes of a connection as requests and their bodies, within limits, without a socket.

llhttp parses, in its strict mode; requests that it accepts and this server does not are refused here. A waiting agent
sends the same bytes again and again: what follows from them is remembered.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import httptools

from certctrl import lean

LARGEST_HEAD = 16 * 1024
MAX_HEADERS = 100
_MAX_KNOWN = 2048
"""Bytes of a request that are remembered, for each connection; those of agents have about 500."""
_REQUEST_LINE = 32
"""More bytes than a request line has without its target."""
_VERSIONS = ("1.0", "1.1")
_WHAT_STATUS = {"Invalid HTTP version": 505, "Pause on PRI/Upgrade": 505}
"""llhttp's reasons for requests of another HTTP version; all others get 400."""
Header = tuple[bytes, bytes]


class Request:
    """The head of a request."""

    __slots__ = (
        "expects_100", "headers", "is_websocket", "keep_alive", "memo", "method", "switches", "target", "version",
    )  # fmt: skip

    def __init__(self, method: str, target: bytes, version: str, headers: list[Header], *, keep_alive: bool) -> None:
        """``keep_alive``: the client may send another request; names of headers are in lower case."""
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.expects_100 = False
        """The client waits for an invitation to send the body."""
        self.is_websocket = False
        """The client asks for a WebSocket."""
        self.switches = False
        """The bytes after this request are of another protocol, if the server agrees."""
        self.memo: dict[Any, Any] = {}
        """What was read from it; kept for the next request if that consists of the same bytes."""


@lean.frozen
class Refusal:
    """The received bytes are not a valid request, or exceed a limit; no further events follow."""

    status: int


class End:
    """The end of a request's body."""


END: Final = End()
Event = Request | bytes | End | Refusal


class _Refused(Exception):
    """Stops llhttp from within a callback."""


class RequestParser:
    """One connection: fed with bytes, in pieces of any size, it has events.

    These are a head, the parts of its body and its end, again and again, or the refusal of all that follows.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[Header] = []
        self._quiet = 0
        """Bytes without an event."""
        self._status = 400
        self._known: tuple[bytes, Request] | None = None
        """The bytes of the last request, and what they are, if it came alone, whole and without a body."""
        self._is_between = True
        """Whether the next byte begins a request."""
        self.rest = b""
        """Bytes after a request that asks for another protocol."""
        self.in_head = False
        """Whether the head of a request has begun and is not complete."""

    def close(self) -> None:
        """Stop taking bytes, and end the cycle of references with llhttp."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        if self._parser is None:
            return
        if self._known is not None and self._known[0] == data:
            self._events += (self._known[1], END)  # llhttp would return to the same state
            return
        began_between, before, self._known = self._is_between, len(self._events), None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.close()
            self.rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            status = _WHAT_STATUS.get(str(error), self._status)
            self._refuse(status)
        else:
            self._quiet = self._quiet + len(data) if len(self._events) == before else 0
            if self._quiet > LARGEST_HEAD:
                self._refuse(431 if self.in_head else 400)
            elif began_between and self._is_between and len(data) <= _MAX_KNOWN:
                self._remember(data, before)

    def _remember(self, data: bytes, before: int) -> None:
        """Remember the bytes of one request without a body; ``before``: how many events were there."""
        request = self._events[before] if len(self._events) == before + 2 else None
        if isinstance(request, Request) and request.keep_alive and not request.expects_100:
            self._known = data, request

    def next_event(self) -> Event | None:
        """Return the next event; None: more bytes are needed."""
        return self._events.popleft() if self._events else None

    def take_end(self) -> bool:
        """Return whether the next event is the end of a body, and take it."""
        if self._events and self._events[0] is END:
            self._events.popleft()
            return True
        return False

    @property
    def has_events(self) -> bool:
        """Whether there are events."""
        return bool(self._events)

    def _refuse(self, status: int) -> None:
        self.close()
        self._events.append(Refusal(status))

    # --- called by llhttp ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head."""
        self.in_head, self._is_between = True, False
        self._target, self._headers = b"", []

    def on_url(self, part: bytes) -> None:
        """Take a part of the request's target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer, which is ignored."""
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """End a head."""
        parser = self._parser
        assert parser is not None
        version, headers = parser.get_http_version(), self._headers
        keep_alive = version == "1.1" and parser.should_keep_alive() and not parser.should_upgrade()
        request = Request(parser.get_method().decode("ascii"), self._target, version, headers, keep_alive=keep_alive)
        request.switches = parser.should_upgrade()
        self._check(request)
        self.in_head = False
        self._headers = []
        self._events.append(request)

    def on_body(self, part: bytes) -> None:
        """Take a part of a body."""
        self._events.append(part)

    def on_message_complete(self) -> None:
        """End a request."""
        self._is_between = True
        self._events.append(END)

    def _check(self, request: Request) -> None:
        """Set the attributes that depend on headers, and refuse invalid requests that llhttp accepts."""
        hosts, size = 0, len(request.target) + _REQUEST_LINE
        for name, value in request.headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    self._stop(501)
                if request.version != "1.1":
                    self._stop(400)  # RFC 9112 §6.1: its framing is faulty
            elif name == b"expect":
                request.expects_100 = request.version == "1.1" and value.lower() == b"100-continue"
            elif name == b"upgrade":
                request.is_websocket = request.is_websocket or value.lower() == b"websocket"
                request.keep_alive = request.keep_alive and not request.is_websocket
        if size > LARGEST_HEAD or len(request.headers) > MAX_HEADERS:
            self._stop(431)
        if hosts > 1 or (not hosts and request.version not in ("0.9", "1.0")):
            self._stop(400)

    def _stop(self, status: int) -> None:
        self._status = status
        raise _Refused
