"""Read the token, body, JSON, numbers and texts of a request, each within limits."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from urllib.parse import parse_qsl

import trio
from starlette.requests import Request

from certctrl.plane.errors import bad_request, invalid_token, too_large, unavailable, unsupported_media
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.http.memo import MEMO, remembered
from certctrl.protocol.wire.reader import MAX_VALUES, has_too_many_values
from certctrl.text import one_line

BODY_CAP = 64 * 1024
LARGE_BODY_CAP = 1024 * 1024
"""For install configs and reports."""
MAX_ARRIVING = 128 * 1024 * 1024
"""Limit for the bytes of all bodies that are arriving, so that thousands of slow ones do not fill the memory."""
MAX_ID = 2**53
_MAX_DEPTH = 32
_PLAIN_QUERY = re.compile(r"[\w.-]+=[\w.-]*(?:&[\w.-]+=[\w.-]*)*", re.ASCII)
"""A query that needs no decoding."""
_BODY_SECONDS = 15.0
"""Time limit for a body."""


async def read_body(request: Request, cap: int) -> bytes:
    """Return the body of a request.

    ErrorResponse 413 beyond ``cap`` bytes, 400 if it does not arrive in time, 503 if the bodies that are arriving need
    too much memory.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > cap:
        raise too_large(cap)
    body = bytearray()
    try:
        with trio.move_on_after(_BODY_SECONDS):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    break
                part = message.get("body", b"")
                body += part
                arriving.take(len(part))
                if len(body) > cap:
                    raise too_large(cap)
                if not message.get("more_body", False):
                    return bytes(body)
    finally:
        arriving.release(len(body))
    raise bad_request("The request body did not arrive")


def bearer_token(request: Request) -> str:
    """Return the bearer token of a request; ErrorResponse 401 without one."""
    return remembered(request.scope.get(MEMO), _bearer_token, request)


def _bearer_token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise invalid_token("Send Authorization: Bearer …")
    return token


def query_of(request: Request) -> dict[str, str]:
    """Return the last value of each parameter of the query, in a third of the time of ``Request.query_params``."""
    text = request.scope["query_string"].decode("latin-1")
    if _PLAIN_QUERY.fullmatch(text):
        return dict([pair.split("=") for pair in text.split("&")])
    return dict(parse_qsl(text, keep_blank_values=True))


class _Memory:
    """The memory of the bodies that are arriving."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, count: int) -> None:
        """Use more memory; ErrorResponse 503 if it is too much."""
        self.used += count
        if self.used > MAX_ARRIVING:
            raise unavailable(ProblemName.OVERLOAD.summary, 5, ProblemName.OVERLOAD)

    def release(self, count: int) -> None:
        """Use less memory."""
        self.used -= count


arriving = _Memory()


async def read_json(request: Request, cap: int = BODY_CAP) -> Any:
    """Return the JSON value of a request.

    ErrorResponse 415 for another media type, 413 beyond ``cap`` bytes, 400 for anything but plain JSON: no NaN, no
    numbers beyond a float, no lone surrogates, at most 32 levels.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise unsupported_media()
    body = await read_body(request, cap)
    try:
        return parsed_json(body.decode("utf-8"))
    except ValueError:  # also UnicodeDecodeError
        raise bad_request("The request body is not valid JSON") from None


def parsed_json(text: str) -> Any:
    """Return the value of a JSON text.

    ValueError for anything but plain JSON, as in ``read_json``; ErrorResponse 400 for too many values.
    """
    if has_too_many_values(text):
        raise bad_request(f"The JSON text has more than {MAX_VALUES} values")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("too deep") from None
    _check_depth(value)
    return value


async def read_object(request: Request, cap: int = BODY_CAP) -> dict[str, Any]:
    """Return the JSON object of a request; ErrorResponse 400 for any other value."""
    value = await read_json(request, cap)
    if not isinstance(value, dict):
        raise bad_request("The request body must be a JSON object")
    return value


def whole_number(text: str, name: str, least: int, most: int = MAX_ID) -> int:
    """Return a number from a path or query; ErrorResponse 400 unless it is digits within the bounds."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= most):
        raise bad_request(f"{name} must be a whole number from {least} to {most}", field=name)
    return int(text)


def clean_line(text: str, limit: int) -> str:
    """Return text as one line of at most ``limit`` characters: white space collapsed, invisible characters removed."""
    if len(text) <= limit and text.isalnum() and text.isascii():
        return text
    visible = one_line(" ".join(text.split()), None, replacement="")
    return one_line(" ".join(visible.split()), limit)


def _refuse_constant(text: str) -> Any:
    raise ValueError(text)


def _finite(text: str) -> float:
    """Return a number; raises ValueError for one beyond a float, which no answer could repeat."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _check_depth(value: Any) -> None:
    """Raise ValueError for nesting that is too deep and for texts with lone surrogates."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise ValueError("too deep")
