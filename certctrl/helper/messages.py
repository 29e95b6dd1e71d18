"""Requests to the root helper and its answers: one JSON object per packet, one request per connection."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

import attrs
from cattrs import Converter

from certctrl import lean
from certctrl.store.disk.helper import FileRule
from certctrl.store.structure import Mismatch, strict_converter, structure, tolerant_converter

POLICY = "/etc/cert-ctrl-helper.json"
"""Root's policy: the files and units of each user."""
REQUEST_LIMIT = 16 * 1024
"""Bytes of a request."""
ANSWER_LIMIT = 128 * 1024
"""Bytes of an answer; the rules of one user may need most of it."""
_Message = TypeVar("_Message")


class Verb(StrEnum):
    """The requests."""

    RULES = "rules"
    INSPECT = "inspect"
    STAGE = "stage"
    PUT = "put"
    RESTORE = "restore"
    DROP = "drop"
    REMOVE = "remove"
    RELOAD = "reload"
    RESTART = "restart"


class Result(StrEnum):
    """The kinds of answers."""

    DONE = "done"
    UNNAMED = "unnamed"
    """Root's policy does not name this file or unit for this user."""
    REFUSED = "refused"
    BUSY = "busy"
    """Too many requests; the same one may be repeated later."""
    FAILED = "failed"


@lean.frozen(kw_only=True)
class Request:
    """One request; fields that its verb does not need are empty."""

    do: Verb
    path: str = ""
    temp: str = ""
    """Name of the new file, next to ``path``."""
    backup: str = ""
    """Name of the copy of the old file, next to ``path``."""
    sha256: str = ""
    unit: str = ""


@lean.frozen(kw_only=True)
class Facts:
    """The state of a destination, without its contents."""

    kind: str
    sha256: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    refusal: str | None = None
    """Why nothing may be written there."""
    staged: str = ""
    """SHA-256 of the new file."""


@lean.frozen(kw_only=True)
class Answer:
    """The answer to a request."""

    result: Result
    why: str = ""
    fix: str = ""
    errno: int = 0
    facts: Facts | None = None
    rules: tuple[FileRule, ...] = ()
    units: dict[str, tuple[str, ...]] = attrs.field(factory=dict)


@cache
def _tolerant() -> Converter:
    return tolerant_converter()


def encoded(message: Request | Answer) -> bytes:
    """Return a message as it is sent, without the fields that have their defaults."""
    row: dict[str, Any] = strict_converter().unstructure(message)
    return json.dumps({key: value for key, value in row.items() if value not in ("", 0, None, [], {})}).encode()


def request_of(packet: bytes) -> Request:
    """Return the request in a packet. Raises Mismatch."""
    return _decoded(packet, Request, strict_converter())


def answer_of(packet: bytes) -> Answer:
    """Return the answer in a packet; unknown fields are ignored. Raises Mismatch."""
    return _decoded(packet, Answer, _tolerant())


def _decoded(packet: bytes, kind: type[_Message], converter: Converter) -> _Message:
    try:
        raw = json.loads(packet)
    except (ValueError, RecursionError):
        raise Mismatch("", "not JSON") from None
    found: _Message = structure(kind, raw, converter=converter)
    return found
