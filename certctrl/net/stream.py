"""Stream: an open WebSocket as the agent uses it, and the bytes below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from certctrl import lean


@lean.frozen
class Ping:
    """The peer sent a ping, which was answered."""


@lean.frozen
class Pong:
    """The peer answered a ping, or sent a pong without one."""

    payload: bytes = b""


@lean.frozen
class Closed:
    """The peer closed the socket, or it broke (1006)."""

    code: int
    reason: str = ""


class Stream(Protocol):
    """Text messages in both directions. One task receives; any task may send."""

    headers: Mapping[str, str]
    """Of the answer that opened it, with lower-case names."""

    async def receive(self) -> str | Ping | Pong | Closed:
        """Return the next message or control frame.

        Raises BadAnswerError for anything outside the protocol, and TransportError if the connection broke; the socket
        is unusable after both.
        """
        ...

    async def send(self, text: str) -> None:
        """Send one message. Raises TransportError, even if only the peer does not read."""
        ...

    async def ping(self, payload: bytes = b"") -> None:
        """Send a ping of at most 125 bytes. Raises TransportError."""
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame, if possible without waiting, and close the connection."""
        ...


class Connection(Protocol):
    """The bytes of an upgraded connection."""

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end. Raises TransportError."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes. Raises TransportError."""
        ...

    async def aclose(self) -> None:
        """Close the connection."""
        ...
