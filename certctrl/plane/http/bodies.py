"""What goes over HTTP: bodies in within their limits, answers out in the one shape (api.md, "Conventions")."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response

from certctrl.plane.errors import ErrorResponse, bad_request, too_large, unsupported_media
from certctrl.plane.texts import line

BODY_CAP = 64 * 1024
LARGE_BODY_CAP = 1024 * 1024
"""For install configs and reports."""
_DEEPEST = 32
_SLOWEST = 15.0
"""Seconds a body may take to arrive."""
_NO_STORE = {"cache-control": "no-store"}
_MOST_ID = 2**53
_PUBLIC_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}", re.ASCII)


def data_answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a success."""
    body = json.dumps({"data": data}, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, _NO_STORE | dict(headers or {}), "application/json")


def empty_answer(status: int = 204, headers: Mapping[str, str] | None = None) -> Response:
    """Return a success without a body."""
    return Response(None, status, _NO_STORE | dict(headers or {}))


def error_answer(error: ErrorResponse) -> Response:
    """Return a refusal, with ``Retry-After`` where it says when to come again."""
    headers = dict(_NO_STORE)
    if error.retry_after is not None:
        headers["retry-after"] = str(int(error.retry_after))
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="certctrl"'
    body = json.dumps({"error": error.body()}, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, error.status, headers, "application/json")


async def read_body(request: Request, cap: int) -> bytes:
    """Return the body of a request; Refused 413 beyond ``cap`` bytes, 400 when it does not arrive."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > cap:
        raise too_large(cap)
    body = bytearray()
    with trio.move_on_after(_SLOWEST):
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            if len(body) > cap:
                raise too_large(cap)
            if not message.get("more_body", False):
                return bytes(body)
    raise bad_request("The request body did not arrive")


async def read_json(request: Request, cap: int = BODY_CAP) -> Any:
    """Return the JSON value of a request; Refused 400, 413 or 415 when there is none that we would keep."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise unsupported_media()
    body = await read_body(request, cap)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        _check_depth(value)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise bad_request("The request body is not JSON that this plane reads") from None
    return value


async def read_fields(request: Request, cap: int = BODY_CAP) -> Fields:
    """Return the fields of a request whose body is a JSON object."""
    value = await read_json(request, cap)
    if not isinstance(value, dict):
        raise bad_request("The request body must be a JSON object")
    return Fields(value)


def whole_number(text: str, name: str, least: int, most: int = _MOST_ID) -> int:
    """Return a number from a path or query; Refused 400 when it is none or out of bounds."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= most):
        raise bad_request(f"{name} must be a whole number from {least} to {most}", field=name)
    return int(text)


class Fields:
    """A JSON object from outside; every getter checks type and bounds and raises 400 naming the field."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def secret(self, name: str, longest: int = 1024) -> str:
        """Return a text that must be there and not empty, as it is."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value or len(value) > longest:
            raise bad_request(f"{name} must be a text of 1 to {longest} characters", field=name)
        return value

    def text(self, name: str, *, longest: int = 200) -> str:
        """Return a text for people, made one clean line; empty when absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise bad_request(f"{name} must be a text", field=name)
        return line(value, longest)

    def number(self, name: str, default: int | None = None, *, least: int = 1, most: int = _MOST_ID) -> int:
        """Return a whole number; Refused 400 when it is absent without a default."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise bad_request(f"{name} must be a whole number from {least} to {most}", field=name)
        return value

    def flag(self, name: str) -> bool:
        """Return a truth value that must be there."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise bad_request(f"{name} must be true or false", field=name)
        return value

    def texts(self, name: str, *, most: int = 200) -> list[str]:
        """Return a list of texts; empty when absent."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, str) for item in value):
            raise bad_request(f"{name} must be a list of at most {most} texts", field=name)
        return value

    def numbers(self, name: str, *, most: int = 10_000) -> list[int]:
        """Return a list of ids; empty when absent."""
        value = self.values.get(name)
        if value is None:
            return []
        fits = isinstance(value, list) and len(value) <= most
        if not fits or any(isinstance(item, bool) or not isinstance(item, int) for item in value):
            raise bad_request(f"{name} must be a list of at most {most} ids", field=name)
        return list(value)


def public_id(fields: Fields) -> str:
    """Return the id that a device gave itself (api.md §1: a UUID)."""
    value = fields.secret("device_public_id", 100)
    if not _PUBLIC_ID.fullmatch(value):
        raise bad_request("device_public_id must be a UUID", field="device_public_id")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _check_depth(value: Any) -> None:
    """Raise ValueError for nesting that is too deep and for texts that are no Unicode (lone surrogates)."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
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
