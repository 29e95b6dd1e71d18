"""Frames of RFC 6455, as most messages of the push socket are: one text frame, without a mask, in one piece.

The library for all other frames needs ten times as long for them.
"""

from __future__ import annotations

_TEXT = 0x81
"""First byte of a text frame that is a whole message."""
_SHORT, _MEDIUM, _LONG = 125, 126, 127
"""The longest length in one byte; the marks of lengths in two and eight bytes."""


def text_frame(text: str) -> bytes:
    """Return a message of a server."""
    data = text.encode()
    size = len(data)
    if size <= _SHORT:
        return bytes((_TEXT, size)) + data
    if size <= 0xFFFF:
        return bytes((_TEXT, _MEDIUM)) + size.to_bytes(2, "big") + data
    return bytes((_TEXT, _LONG)) + size.to_bytes(8, "big") + data


def text_of(data: bytes) -> str | None:
    """Return the message of a server if the bytes are exactly one such frame; None for any others, valid or not."""
    length = data[1] if len(data) > 1 and data[0] == _TEXT else _LONG
    head = 2 if length <= _SHORT else 4
    if length > _MEDIUM or len(data) < head:
        return None
    size = length if head == 2 else int.from_bytes(data[2:4], "big")
    if len(data) - head != size or (head == 4 and size <= _SHORT):
        return None
    try:
        return data[head:].decode()
    except UnicodeDecodeError:
        return None


class Boundary:
    """Whether the bytes of a peer so far end with a whole frame; the library refuses frames that lack or have a mask."""

    __slots__ = ("_fixed", "_head", "_missing")

    def __init__(self, *, masked: bool) -> None:
        """``masked``: whether the peer is a client, which masks its frames."""
        self._fixed = 6 if masked else 2
        self._head = b""
        """The beginning of a header that is not complete."""
        self._missing = 0
        """Bytes that the frame lacks."""

    @property
    def is_at_end(self) -> bool:
        """Whether the next byte begins a frame."""
        return not self._missing and not self._head

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        at = self._missing
        if self._head:
            data = self._head + data
        while at < len(data):
            length = data[at + 1] & 127 if at + 1 < len(data) else 0
            size = self._fixed + {_MEDIUM: 2, _LONG: 8}.get(length, 0)
            if len(data) - at < size:
                self._head, self._missing = data[at:], 0
                return
            if length > _SHORT:
                length = int.from_bytes(data[at + 2 : at + (4 if length == _MEDIUM else 10)], "big")
            at += size + length
        self._head, self._missing = b"", at - len(data)
