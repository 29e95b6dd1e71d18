"""Garbage: collect cyclic garbage often among new objects, rarely among those of held polls and open connections.

Python's own collector starts when the number of objects has grown. While each new poll replaces one that has ended, it
does not grow; with 10 000 held polls, the next collection found a million objects and blocked the event loop for half a
second. Requests leave no cycles, so new objects are examined after every few requests and not again. All objects are
examined once an hour, and after many closed push sockets, whose library leaves cycles.
"""

from __future__ import annotations

import gc
from functools import partial

import trio

CLOSED_PER_COLLECTION = 5000
"""Closed push sockets between two full collections: they leave some 15 MiB."""
REQUESTS_PER_COLLECTION = 16
"""Requests between two collections of new objects: about two thousand objects, in less than a millisecond."""
_MAX_NEW = 20_000
"""New objects at which Python collects by itself: more than one unit of work makes."""
_NEVER = 1_000_000_000
_HOUR = 3600.0


class Collections:
    """Collects cyclic garbage after every few events."""

    def __init__(self, together: int = REQUESTS_PER_COLLECTION, generation: int = 0) -> None:
        """``together``: events between two collections. ``generation``: the oldest one that is examined."""
        self._together = self._left = together
        self._collect = partial(gc.collect, generation)

    def note(self) -> None:
        """Count an event."""
        self._left -= 1
        if not self._left:
            self._left = self._together
            self._collect()


answered = Collections()
"""Counts the requests of all connections, and what wakes push sockets."""
closed = Collections(CLOSED_PER_COLLECTION, 2)
"""Counts the push sockets that have closed."""


def collect_new_objects_only() -> None:
    """Exclude from later collections all objects that exist now, and those that survive one."""
    gc.freeze()
    gc.set_threshold(_MAX_NEW, _NEVER, _NEVER)


async def collect_all_hourly() -> None:
    """Examine all objects once an hour, forever: with 10 000 held polls, for half a second."""
    while True:
        await trio.sleep(_HOUR)
        gc.collect()
