"""The seam between the clients and the network, without importing either."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from certctrl.model.answer import Answer


class Http(Protocol):
    """Speak to one origin. Every exchange stands alone; any number may run at once."""

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
        """Return the answer, whatever its status.

        ``deadline`` is seconds for the whole exchange, ``cap`` bytes of the decoded body. Raises TransportError
        and its children only; a redirect (but 304) is a BadAnswerError. Cancellation leaves nothing behind.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def target_of(path: str, query: Mapping[str, str | int] | None = None) -> str:
    """Return the request target, ASCII only, for an absolute path and its query."""
    return quote(path, safe="/:@!$&'()*+,;=-._~%") + (f"?{urlencode(query)}" if query else "")


def json_bytes(value: Any) -> bytes:
    """Return compact JSON in UTF-8."""
    return jsonlib.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
