"""The usual request and the usual head of an answer, in HTTP/1.1, without a parser.

A parser in Python takes a third of an exchange. What is recognised here is a small part of what h11 accepts, with the same
meaning (``tests/net/test_usual.py`` compares them); `ReusedConnection` gives everything else to h11: chunks, other
versions, several lengths, spaces around values, heads in several pieces, and whatever is not HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_LONGEST = 64 * 1024
"""Bytes of a head that are looked at."""
_REQUEST = re.compile(rb"(?:GET|POST) /[!-~]* HTTP/1\.1\r\n(?:[a-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)+\r\n")
_ANSWER = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [ -~]*\r\n((?:[A-Za-z0-9-]+: ?(?:[!-~](?:[ -~]*[!-~])?)?\r\n)*)\r\n"
)
_UNUSUAL = frozenset({b"transfer-encoding", b"connection", b"upgrade", b"expect"})
"""Headers of requests that change how the connection is used."""
_WITHOUT_BODY = (204, 304)

Headers = list[tuple[bytes, bytes]]


class Head(NamedTuple):
    """The head of an answer."""

    status: int
    headers: Headers
    size: int
    """Bytes of the head."""
    length: int
    """Bytes of the body."""


def usual_request(method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes | None:
    """Return the bytes of a request; None if it is not a usual one."""
    named = dict(headers)
    if len(named) < len(headers) or b"host" not in named or not _UNUSUAL.isdisjoint(named):
        return None
    if named.get(b"content-length", b"0") != b"%d" % len(body):
        return None
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, b"".join([b"%b: %b\r\n" % one for one in headers]))
    if head.count(b"\r\n") != len(headers) + 2:  # a line end in the target or a value would begin another header
        return None
    return head + body if _REQUEST.fullmatch(head) else None


def usual_head(data: bytes) -> Head | None:
    """Return the head that some bytes begin with; None if it is not a usual one, or not whole."""
    found = _ANSWER.match(data, 0, _LONGEST)
    if found is None:
        return None
    status, lines = int(found[1]), found[2].split(b"\r\n")
    headers, length = [], None
    for line in lines[:-1]:
        name, _, value = line.partition(b":")
        headers.append((name, value := value.lstrip()))
        match name.lower():
            case b"content-length":
                if length is not None or not value.isdigit() or len(value) > 15:
                    return None
                length = int(value)
            case b"transfer-encoding":
                return None
            case b"connection" if value.lower() != b"keep-alive":
                return None
    if status in _WITHOUT_BODY:
        length = 0
    return None if length is None else Head(status, headers, found.end(), length)
