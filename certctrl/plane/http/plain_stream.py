"""PlainStream: the server's side of a connection without TLS, with the methods of TlsStream."""

from __future__ import annotations

import trio

from certctrl.plane.http.proxies import Address

_READ = 16_384


class PlainStream:
    """A connection without TLS; its methods raise trio.BrokenResourceError when it fails."""

    scheme = "http"

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def do_handshake(self) -> None:
        """Do nothing: there is no handshake."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self) -> bytes:
        """Return the next bytes; empty at the end."""
        return bytes(await self._stream.receive_some(_READ))

    def send_now(self, data: bytes) -> int:
        """Return 0: ``send_all`` sends everything."""
        return 0

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all bytes."""
        await self._stream.send_all(data)

    def local_address(self) -> Address | None:
        """Return this end's address and port; None if the connection is gone."""
        try:
            host, port = self._stream.socket.getsockname()[:2]
        except OSError:
            return None
        return host, port

    def close(self) -> None:
        """Close the connection."""
        self._stream.socket.close()
