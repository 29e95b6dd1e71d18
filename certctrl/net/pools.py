"""Connection pools: replaced when old or stuck, closed after their last request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import trio

RECYCLE_SECONDS = 600.0


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
        if old is not None and (trio.current_time() - old.born > RECYCLE_SECONDS or self._outdated()):
            self.retire(old)
            old.users += 1
            await self.release(old)
        if self._current is None:
            self._current = Pool(self._make())
            self._all.add(self._current)
        self._current.users += 1
        return self._current

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
