"""HTTP responses of the JSON API, in the shapes that docs/protocol.md describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from certctrl.plane.errors import ErrorResponse

_NO_STORE = {"cache-control": "no-store"}
_RAW_NO_STORE = (b"cache-control", b"no-store")


def data_answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a success response with ``data``."""
    return json_answer(json_of({"data": data}), status, headers)


def empty_answer(status: int = 204, headers: Mapping[str, str] | None = None) -> Response:
    """Return a success response without a body; ``headers`` have names in lower case."""
    return _Empty(status, headers or {})


class _Empty(Response):
    """A response without a body, as nearly all polls get it, in a quarter of the time."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.body = b""
        self.background = None
        self.raw_headers = [_RAW_NO_STORE, *[(key.encode(), value.encode("latin-1")) for key, value in headers.items()]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b""})


def error_answer(error: ErrorResponse) -> Response:
    """Return an error response, with ``Retry-After`` if the error names a delay."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(int(error.retry_after))
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="certctrl"'
    return json_answer(json_of({"error": error.body()}), error.status or 500, headers)


def json_of(value: Any) -> bytes:
    """Return the JSON text of a value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON text."""
    return Response(body, status, _NO_STORE | dict(headers or {}), "application/json")
