"""Locks: who works on what. Sets of certificates are worked on side by side, one set by one task at a time.

All the names of a set are taken at once or not at all, so tasks cannot wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio


class Locks:
    """Names that are taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._freed = trio.Event()

    def try_acquire(self, names: Collection[str]) -> bool:
        """Take all names if none of them is taken."""
        if not self._taken.isdisjoint(names):
            return False
        self._taken |= set(names)
        return True

    def release(self, names: Collection[str]) -> None:
        """Give names back."""
        self._taken -= set(names)
        self._freed.set()
        self._freed = trio.Event()

    async def wait_for_release(self) -> None:
        """Wait until some name was given back."""
        await self._freed.wait()

    @asynccontextmanager
    async def held(self, names: Collection[str]) -> AsyncIterator[None]:
        """Wait until all names are free, hold them for the block."""
        while not self.try_acquire(names):
            await self.wait_for_release()
        try:
            yield
        finally:
            self.release(names)
