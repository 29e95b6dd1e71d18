"""Connections to a listener, of which a test knows those that were closed."""

from __future__ import annotations

import contextlib
import socket

import trio


async def connect(port: int, source: str = "127.0.0.1") -> trio.SocketStream:
    """Return a connection from an address of this host; all of 127.0.0.0/8 are."""
    sock = trio.socket.socket(socket.AF_INET)
    try:
        await sock.bind((source, 0))
        await sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


class Watched:
    """Connections, of which it knows those that the server has closed."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.streams: list[trio.SocketStream] = []
        self.closed = 0

    async def add(self, port: int, source: str = "127.0.0.1", sent: bytes = b"") -> None:
        stream = await connect(port, source)
        self.streams.append(stream)
        if sent:
            await stream.send_all(sent)
        self._nursery.start_soon(self._watch, stream)

    async def _watch(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.receive_some()
        self.closed += 1

    async def expect(self, closed: int) -> None:
        """Wait until so many are closed; no more may follow."""
        with trio.fail_after(20):
            while self.closed < closed:
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert self.closed == closed

    async def close(self) -> None:
        for stream in self.streams:
            await trio.aclose_forcefully(stream)
