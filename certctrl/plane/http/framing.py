"""ResponseFraming: the bytes of one response."""

from __future__ import annotations

from collections.abc import Iterable

_NO_BODY = (204, 304)
_STATUS_LINES = {status: b"HTTP/1.1 %d \r\n" % status for status in range(100, 600)}
CONTINUE = b"HTTP/1.1 100 \r\n\r\n"


def refusal(status: int) -> bytes:
    """Return the response to what is not a request."""
    return _STATUS_LINES[status] + b"content-length: 0\r\nconnection: close\r\n\r\n"


def switching(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the response that switches to another protocol; ValueError if a header contains an end of a line."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"%b%b\r\n" % (_STATUS_LINES[101], _checked(lines))


class ResponseFraming:
    """Frames a response by its length, in chunks, or by the end of the connection.

    A response whose first part is its last gets the length if the application does not say it.
    """

    __slots__ = ("_chunked", "_left", "_silent", "_version", "keep_alive")

    def __init__(self, method: str, version: str, *, keep_alive: bool) -> None:
        """``method`` and ``version`` are those of the request; ``keep_alive``: another request may follow."""
        self._silent = method == "HEAD"
        self._version = version
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body that are missing; None: unknown."""
        self.keep_alive = keep_alive
        """Whether the connection may stay open; also the application can end it."""

    def first(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, is_last: bool) -> bytes:
        """Return the head with the first part of the body; ValueError if a header contains an end of a line."""
        lines, length, closes = [], None, False
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                closes = closes or value.lower() == b"close"
            lines.append(b"%b: %b\r\n" % (name, value))
        if status in _NO_BODY:
            self._silent = True
        elif length is None and is_last:
            length = len(body)
            lines.append(b"content-length: %d\r\n" % length)
        elif length is None and self._version == "1.1":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        elif length is None:
            self.keep_alive = False
        self.keep_alive = self.keep_alive and not closes
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        block = _checked(lines)
        self._left = length
        return b"%b%b\r\n%b" % (_STATUS_LINES[status], block, self.part(body, is_last=is_last))

    def part(self, body: bytes, *, is_last: bool) -> bytes:
        """Return a part of the body; ValueError if it does not fit the length."""
        if self._silent:
            return b""
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return chunk + b"0\r\n\r\n" if is_last else chunk
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (is_last and self._left):
                raise ValueError("the body does not fit its content-length")
        return body


def _checked(lines: list[bytes]) -> bytes:
    """Return the lines of headers as one block; ValueError if one contains a further end of a line."""
    block = b"".join(lines)
    if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines) or b"\0" in block:
        raise ValueError("a header contains the end of a line")
    return block
