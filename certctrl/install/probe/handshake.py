"""Read the leaf of a TLS 1.2 server that refuses clients without a certificate.

Such a handshake fails at its end, and the TLS library then reports nothing about the peer. But up to that point the
server's messages are not encrypted, so its certificate can be read from the recorded bytes. (In TLS 1.3 the client's
handshake is complete before the server refuses it.)
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import trio

_KEPT = 1 << 16
_HANDSHAKE_RECORD = 22
_CERTIFICATE, _CERTIFICATE_REQUEST, _SERVER_HELLO_DONE = 11, 13, 14


class RecordingStream(trio.abc.Stream):
    """A stream that records the start of what it receives."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._recorded = bytearray()

    def leaf_after(self, error: BaseException) -> bytes | None:
        """Return the leaf (DER) that the server sent before the handshake failed with ``error``; None if it proves nothing.

        It counts if the server asked for a client certificate and then ended the handshake itself: by then the library
        had checked that the server has the key.
        """
        return leaf_sent(bytes(self._recorded)) if _ended_by_peer(error) else None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive and record."""
        data = await self._stream.receive_some(max_bytes)
        self._recorded += data[: _KEPT - len(self._recorded)]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until sending might not block."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


def leaf_sent(data: bytes) -> bytes | None:
    """Return the leaf (DER) in a server's first flight if that also requests a client certificate; otherwise None."""
    leaf, asked = None, False
    for kind, body in _messages(_handshake(data)):
        if kind == _CERTIFICATE:
            size = int.from_bytes(body[3:6], "big")
            leaf = body[6 : 6 + size] if 0 < size <= len(body) - 6 else None
        elif kind == _CERTIFICATE_REQUEST:
            asked = True
        elif kind == _SERVER_HELLO_DONE:
            return leaf if asked else None
    return None


def _handshake(data: bytes) -> bytes:
    """Return the joined contents of the leading handshake records; a message may span several."""
    found, place = bytearray(), 0
    while len(data) >= place + 5 and data[place] == _HANDSHAKE_RECORD:
        size = int.from_bytes(data[place + 3 : place + 5], "big")
        found += data[place + 5 : place + 5 + size]
        place += 5 + size
    return bytes(found)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while len(data) >= place + 4:
        end = place + 4 + int.from_bytes(data[place + 1 : place + 4], "big")
        if end > len(data):
            return
        yield data[place], data[place + 4 : end]
        place = end


def _ended_by_peer(error: BaseException) -> bool:
    """Return whether the peer sent an alert or hung up, and not this side's library found a fault."""
    while (deeper := error.__cause__ or error.__context__) is not None and not isinstance(error, ssl.SSLError):
        error = deeper
    return not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError) or "ALERT" in (error.reason or "")
