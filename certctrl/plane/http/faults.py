"""Scripted faults of a plane, for tests; never active by default.

faults = Faults()
faults.add(Fault(path="/apiv1/devices/self/updates", times=3, status=503, headers={"retry-after": "7"}))
app = make_app(plane, faults=faults)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase

import attrs
import trio

from certctrl import lean
from certctrl.plane.http.middleware import App, Message, Receive, Scope, Send


class CutError(Exception):
    """A connection that ends early; servers close the socket, in-process clients see this exception."""


@lean.frozen(kw_only=True)
class Fault:
    """A fault and the requests that it affects."""

    path: str = "*"
    """Shell pattern that the path must match."""
    method: str = "*"
    times: int | None = 1
    """Number of requests to affect; None: all."""
    after: int = 0
    """Number of matching requests to skip first."""
    delay: float = 0.0
    """Seconds to wait first; if nothing else is set, the plane then responds normally."""
    status: int | None = None
    """Status to respond with, without asking the plane."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Headers of that response; with neither status nor body, added to the plane's response."""
    body: bytes | None = None
    """Body of that response; None: an error object for the status."""
    cut_after: int | None = None
    """Bytes of the body to send before the connection ends; -1: end it before the response."""
    swallow: bool = False
    """Let the plane handle the request, then end the connection without a response."""


@lean.define
class _Rule:
    fault: Fault
    seen: int = 0

    def hits(self, scope: Scope) -> bool:
        """Return whether the fault affects this request, and count it."""
        fault = self.fault
        if not fnmatchcase(scope["path"], fault.path) or fault.method not in ("*", scope["method"]):
            return False
        self.seen += 1
        number = self.seen - fault.after
        return number >= 1 and (fault.times is None or number <= fault.times)


class Faults:
    """A list of faults; the first match affects a request."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self.happened: list[tuple[str, str, Fault]] = []
        """(method, path, fault) of all faults so far."""

    def add(self, fault: Fault) -> None:
        """Append a fault."""
        self._rules.append(_Rule(fault))

    def clear(self) -> None:
        """Remove all faults."""
        self._rules.clear()

    def around(self, app: App) -> App:
        """Return the application with faults injected."""

        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            fault = self._next(scope) if scope["type"] == "http" else None
            if fault is None:
                await app(scope, receive, send)
            else:
                await _misbehave(fault, app, scope, receive, send)

        return faulty

    def _next(self, scope: Scope) -> Fault | None:
        for rule in self._rules:
            if rule.hits(scope):
                self.happened.append((scope["method"], scope["path"], rule.fault))
                return rule.fault
        return None


async def _misbehave(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    if fault.delay:
        await trio.sleep(fault.delay)
    if fault.cut_after == -1:
        raise CutError
    if fault.swallow:
        await app(scope, receive, _nowhere)
        raise CutError
    if fault.status is not None or fault.body is not None:
        await _answer(fault, send)
    else:
        await app(scope, receive, _altered(fault, send))


async def _answer(fault: Fault, send: Send) -> None:
    status = fault.status or 200
    body = fault.body
    if body is None:
        error = {"code": status * 10, "what": "scripted fault", "key": "FAULT", "params": {}}
        body = b"" if status in (204, 304) else json.dumps({"error": error}).encode()
    given = {"content-type": "application/json", "content-length": str(len(body))}
    if status in (204, 304):
        given.pop("content-length")
    headers = [(name.lower().encode(), value.encode()) for name, value in (given | dict(fault.headers)).items()]
    sender = _altered(attrs.evolve(fault, headers={}), send)
    await sender({"type": "http.response.start", "status": status, "headers": headers})
    await sender({"type": "http.response.body", "body": body})


def _altered(fault: Fault, send: Send) -> Send:
    """Return a sender that adds the fault's headers and cuts the body."""
    sent = 0

    async def altered(message: Message) -> None:
        nonlocal sent
        if message["type"] == "http.response.start" and fault.headers:
            extra = [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
            names = {name for name, _ in extra}
            kept = [(name, value) for name, value in message.get("headers", ()) if name not in names]
            message = {**message, "headers": [*kept, *extra]}
        if message["type"] == "http.response.body" and fault.cut_after is not None:
            left = fault.cut_after - sent
            part = message.get("body", b"")[:left]
            sent += len(part)
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if sent >= fault.cut_after:
                raise CutError
            return
        await send(message)

    return altered


async def _nowhere(message: Message) -> None:
    """Discard a part of a response."""
