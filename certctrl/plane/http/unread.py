"""Unread: the bytes of responses that clients do not read, bounded for the whole process.

A client that asks and does not read costs the memory of its response, for as long as sending may block. An authenticated
one may open any number of connections, so their sum is what has to be bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

MAX_BYTES = 64 * 1024 * 1024


class Unread:
    """The responses that wait for their clients to read, in the order in which they began to wait."""

    def __init__(self) -> None:
        self.used = 0
        """Bytes of all of them."""
        self._waiting: dict[trio.CancelScope, int] = {}

    @contextmanager
    def waiting(self, count: int, scope: trio.CancelScope) -> Iterator[None]:
        """Count bytes during the block, which ``scope`` surrounds; those that have waited longest are cancelled for them."""
        self._waiting[scope] = count
        self.used += count
        for oldest in list(self._waiting):
            if self.used <= MAX_BYTES:
                break
            self._drop(oldest)
            oldest.cancel()
        try:
            yield
        finally:
            self._drop(scope)

    def _drop(self, scope: trio.CancelScope) -> None:
        """Count a response no longer; idempotent."""
        self.used -= self._waiting.pop(scope, 0)


unread = Unread()
