"""Http: the interface between the plane's clients and the transport."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from certctrl.model.answer import Answer
from certctrl.net.stream import Stream


class Http(Protocol):
    """Client for one origin; any number of independent exchanges may run concurrently."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        deadline: float,
        cap: int,
    ) -> Answer:
        """Return the answer, of any status.

        ``deadline`` is in seconds for the whole exchange, ``cap`` the maximum size of the body in bytes. Raises
        TransportError and its subclasses only; a redirect (except 304) is a BadAnswerError. A cancelled exchange
        leaves no connection open.
        """
        ...

    async def open_stream(
        self, path: str, *, subprotocol: str, headers: Mapping[str, str], deadline: float, cap: int
    ) -> Stream | Answer:
        """Return an open WebSocket, or the answer that refuses it.

        ``deadline`` is in seconds for the whole handshake, ``cap`` the maximum size of a received message, or of the
        body of that answer, in bytes. Raises as ``request``.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def target_of(path: str, query: Mapping[str, str | int] | None = None) -> str:
    """Return the ASCII request target for an absolute path and its query."""
    return quote(path, safe="/:@!$&'()*+,;=-._~%") + (f"?{urlencode(query)}" if query else "")


def json_bytes(value: Any) -> bytes:
    """Return compact JSON in UTF-8; ``?`` for what UTF-8 lacks, such as undecodable bytes of a path in an outcome."""
    text = jsonlib.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace")
