"""The nonces that a CA has handed out, each for one request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_KEPT = 64
_SECONDS = 600.0


class Nonces:
    """A bounded pool of unused nonces, newest first, because CAs expire old ones."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._kept: deque[tuple[float, str]] = deque(maxlen=_KEPT)

    def put(self, nonce: str | None) -> None:
        """Add the nonce of an answer, if it has one."""
        if nonce is not None and all(nonce != one for _, one in self._kept):
            self._kept.append((self._monotonic(), nonce))

    def take(self) -> str | None:
        """Remove and return a recent nonce; None if there is none."""
        while self._kept:
            at, nonce = self._kept.pop()
            if self._monotonic() - at < _SECONDS:
                return nonce
        return None

    def clear(self) -> None:
        """Drop all nonces, after the CA has rejected one of them."""
        self._kept.clear()
