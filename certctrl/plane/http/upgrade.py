"""Upgrade: check the opening handshake of a WebSocket (RFC 6455, section 4.2), and answer it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from wsproto.utilities import generate_accept_token

from certctrl.plane.errors import ErrorResponse, bad_request
from certctrl.plane.http.middleware import SWITCH, Receive, Scope, Send

if TYPE_CHECKING:
    from certctrl.plane.http.connection import Connection

VERSION = "13"
_KEY_BYTES = 16


class Upgrade(Response):
    """The answer 101; ``run`` speaks the other protocol on the connection."""

    def __init__(
        self, request: Request, protocol: str, run: Callable[[Connection], Awaitable[None]], headers: Mapping[str, str]
    ) -> None:
        """``request`` has passed ``check_handshake``."""
        super().__init__(b"", 101)
        accept = generate_accept_token(request.headers["sec-websocket-key"].encode("latin-1")).decode("ascii")
        fixed = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": accept}
        chosen = fixed | {"sec-websocket-protocol": protocol} | dict(headers)
        self.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in chosen.items()]
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 101, "headers": self.raw_headers, SWITCH: self._run})


def check_handshake(request: Request, protocol: str) -> None:
    """Raise ErrorResponse 400, or 426 for another version, unless a request opens a WebSocket for a protocol."""
    headers = request.headers
    if request.method != "GET" or SWITCH not in request.scope.get("extensions", ()):
        raise bad_request("Open a WebSocket here: send Upgrade: websocket and Connection: Upgrade")
    if headers.get("sec-websocket-version") != VERSION:
        what = f"Use version {VERSION} of the WebSocket protocol"
        raise ErrorResponse(what, status=426, key="UPGRADE_REQUIRED", code=4026, params={"version": int(VERSION)})
    try:
        key = base64.b64decode(headers.get("sec-websocket-key", ""), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise bad_request("Sec-WebSocket-Key must be the base64 of 16 bytes")
    offered = [name.strip() for value in headers.getlist("sec-websocket-protocol") for name in value.split(",")]
    if protocol not in offered:
        raise bad_request(f"Send Sec-WebSocket-Protocol: {protocol}")
