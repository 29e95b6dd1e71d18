"""A connection in memory: the server's end has the methods of TlsStream, the client's those of a Trio stream."""

from __future__ import annotations

import trio


class Pipe:
    """Bytes in one direction; ``send`` waits while ``capacity`` bytes have not been received."""

    def __init__(self, capacity: int = 2**30) -> None:
        self.capacity = capacity
        self.buffer = bytearray()
        self.ended = False
        self.broken = False
        self._changed = trio.Event()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def end(self) -> None:
        self.ended = True
        self._notify()

    def put(self, data: bytes) -> int:
        """Take what fits now; return its length."""
        if self.ended or self.broken:
            raise trio.BrokenResourceError
        taken = data[: max(0, self.capacity - len(self.buffer))]
        self.buffer += taken
        self._notify()
        return len(taken)

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while data:
            data = data[self.put(data) :]
            if data:
                await self._changed.wait()

    async def receive(self, most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self.buffer and not self.ended:
            await self._changed.wait()
        data = bytes(self.buffer[:most])
        del self.buffer[: len(data)]
        self._notify()
        return data


class ServerEnd:
    """The end of ``Connection``."""

    scheme = "https"

    def __init__(self, inward: Pipe, outward: Pipe) -> None:
        self.inward, self.outward = inward, outward

    async def do_handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self) -> bytes:
        return await self.inward.receive(16_384)

    def send_now(self, data: bytes) -> int:
        return self.outward.put(bytes(data))

    async def send_all(self, data: bytes) -> None:
        await self.outward.send(bytes(data))

    def local_address(self) -> tuple[str, int]:
        return "192.0.2.1", 443

    def close(self) -> None:
        self.inward.broken = True
        self.outward.end()


class ClientEnd:
    """The end of a client."""

    def __init__(self, inward: Pipe, outward: Pipe) -> None:
        self.inward, self.outward = inward, outward

    async def send_all(self, data: bytes) -> None:
        await self.outward.send(data)

    async def receive_some(self, most: int = 65_536) -> bytes:
        return await self.inward.receive(most)

    async def aclose(self) -> None:
        self.outward.end()
        await trio.lowlevel.checkpoint()


def memory_streams(capacity: int = 2**30) -> tuple[ServerEnd, ClientEnd]:
    """Return both ends of a new connection; ``capacity`` is that of the way to the client."""
    up, down = Pipe(), Pipe(capacity)
    return ServerEnd(up, down), ClientEnd(down, up)
