"""Locks: groups are worked on concurrently, each by one task at a time.

A task takes all names of a group together or none, so tasks cannot deadlock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio


class Locks:
    """The names that are locked."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._freed = trio.Event()

    def try_acquire(self, names: Collection[str]) -> bool:
        """Lock all names and return True, or return False if one of them is locked."""
        if not self._taken.isdisjoint(names):
            return False
        self._taken |= set(names)
        return True

    def release(self, names: Collection[str]) -> None:
        """Unlock names."""
        self._taken -= set(names)
        self._freed.set()
        self._freed = trio.Event()

    async def wait_for_release(self) -> None:
        """Wait until a name is unlocked."""
        await self._freed.wait()

    @asynccontextmanager
    async def held(self, names: Collection[str]) -> AsyncIterator[None]:
        """Wait until all names are free, and lock them for the block."""
        while not self.try_acquire(names):
            await self.wait_for_release()
        try:
            yield
        finally:
            self.release(names)
