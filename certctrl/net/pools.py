"""Connection pools: replaced when old or stuck, closed after their last request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import trio

RECYCLE_SECONDS = 600.0
CHECK_SECONDS = 1.0
"""Seconds for which a pool that works is not compared with a new one: a burst has hundreds of requests in that time."""


class Closable(Protocol):
    """A transport with connections."""

    async def aclose(self) -> None:
        """Close every connection."""
        ...


T = TypeVar("T", bound=Closable)


class Pool(Generic[T]):
    """One transport and the number of its running requests."""

    def __init__(self, transport: T) -> None:
        self.transport = transport
        self.born = trio.current_time()
        self.checked = self.born
        """When it was last compared with a new one; minus infinity: it has to be now, because a request has failed."""
        self.users = 0
        self.retired = False


class Pools(Generic[T]):
    """The current pool, and retired pools with running requests."""

    def __init__(self, make: Callable[[], T], outdated: Callable[[], bool] = lambda: False) -> None:
        """``outdated``: whether a new transport would differ from the one made last."""
        self._make = make
        self._outdated = outdated
        self._current: Pool[T] | None = None
        self._all: set[Pool[T]] = set()

    async def lease(self) -> Pool[T]:
        """Return the pool for one request, a new one if the current pool is too old; call ``release`` after it."""
        old = self._current
        if old is not None and self._is_over(old, trio.current_time()):
            self.retire(old)
            old.users += 1
            await self.release(old)
        if self._current is None:
            self._current = Pool(self._make())
            self._all.add(self._current)
        self._current.users += 1
        return self._current

    def _is_over(self, pool: Pool[T], now: float) -> bool:
        if now - pool.born > RECYCLE_SECONDS:
            return True
        if now - pool.checked < CHECK_SECONDS:
            return False
        pool.checked = now
        return self._outdated()

    async def release(self, pool: Pool[T]) -> None:
        """Return a pool after a request; the last request of a retired pool closes it."""
        pool.users -= 1
        if pool.retired and pool.users == 0:
            self._all.discard(pool)
            await pool.transport.aclose()

    def retire(self, pool: Pool[T]) -> None:
        """Use a pool for no further request."""
        pool.retired = True
        if self._current is pool:
            self._current = None

    async def aclose(self) -> None:
        """Close all pools, even under running requests."""
        pools, self._all, self._current = self._all, set(), None
        for pool in pools:
            await pool.transport.aclose()
