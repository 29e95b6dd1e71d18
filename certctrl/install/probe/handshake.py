"""Hear which leaf a TLS 1.2 server shows before it refuses a client that has no certificate.

Such a handshake fails at its end, and the TLS library then tells nothing of the peer. But the server has spoken in
the clear so far: who kept the bytes can read its certificate there. (In TLS 1.3 the handshake of a client is over
before the server refuses it.)
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import trio

_KEPT = 1 << 16
_HANDSHAKE_RECORD = 22
_CERTIFICATE, _CERTIFICATE_REQUEST, _SERVER_HELLO_DONE = 11, 13, 14


class Overheard(trio.abc.Stream):
    """A stream that keeps the beginning of what it receives."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._heard = bytearray()

    def leaf_after(self, error: BaseException) -> bytes | None:
        """Return the leaf (DER) that was shown before the handshake failed with ``error``; None when that means nothing.

        It counts when the server asked for a client's certificate and it is the server that gave up: the library had
        checked by then that it holds the key.
        """
        return leaf_shown(bytes(self._heard)) if _peer_gave_up(error) else None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive, and keep a copy of it."""
        data = await self._stream.receive_some(max_bytes)
        self._heard += data[: _KEPT - len(self._heard)]
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


def leaf_shown(data: bytes) -> bytes | None:
    """Return the leaf (DER) in a server's first flight that asks for a certificate, too; None for anything else."""
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
    """Return the contents of the handshake records at the beginning: a message may run over several."""
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


def _peer_gave_up(error: BaseException) -> bool:
    """Return whether the peer sent an alert or hung up, and not this side's library found a fault."""
    while (deeper := error.__cause__ or error.__context__) is not None and not isinstance(error, ssl.SSLError):
        error = deeper
    return not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError) or "ALERT" in (error.reason or "")
