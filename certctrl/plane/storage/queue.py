"""Queue: how long units of work have been waiting for a connection to the database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Queue:
    """The units that wait; they are served in order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[object, float] = {}

    @contextmanager
    def place(self) -> Iterator[object]:
        """Wait in the block, until ``leave``."""
        place = object()
        with self._lock:
            self._since[place] = trio.current_time()
        try:
            yield place
        finally:
            self.leave(place)

    def leave(self, place: object) -> None:
        """Stop waiting; idempotent, and safe in any thread."""
        with self._lock:
            self._since.pop(place, None)

    def longest_wait(self) -> float:
        """Return for how many seconds the first unit has been waiting; 0 if none waits."""
        with self._lock:
            since = next(iter(self._since.values()), None)
        return 0.0 if since is None else trio.current_time() - since
