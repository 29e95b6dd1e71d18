"""Garbage: look for cyclic garbage after every few requests, among what these have made, and never in all that waits.

By itself, Python looks for it once there are many more objects than before, among those that are new since the last
time. That does not bound their number: while each poll takes the place of one that has ended, there are never more, and
with 10 000 held polls, the next look came upon a million objects and held up the event loop for half a second.
Requests leave no cyclic garbage, so that the objects of held polls and open connections need not be looked at again;
once an hour, all are, and after many closed push sockets, of which the library leaves cycles.
"""

from __future__ import annotations

import gc
from functools import partial

import trio

CLOSED_TOGETHER = 5000
"""Closed push sockets after which all objects are looked at: they leave some 15 MiB."""
TOGETHER = 16
"""Requests after which their objects are looked at: about two thousand, which takes less than a millisecond."""
_MOST_NEW = 20_000
"""Objects that one unit of work can make before they are looked at."""
_NEVER = 1_000_000_000
_HOUR = 3600.0


class Looks:
    """Looks for cyclic garbage after a number of events."""

    def __init__(self, together: int = TOGETHER, generation: int = 0) -> None:
        """``generation``: the oldest one that is looked at."""
        self._together = self._left = together
        self._collect = partial(gc.collect, generation)

    def note(self) -> None:
        """Count an event."""
        self._left -= 1
        if not self._left:
            self._left = self._together
            self._collect()


answered = Looks()
"""Counts the requests of all connections, and what wakes push sockets."""
closed = Looks(CLOSED_TOGETHER, 2)
"""Counts the push sockets that have closed."""


def look_at_new_objects_only() -> None:
    """Leave out of later looks all objects that exist now, and those that survive a look."""
    gc.freeze()
    gc.set_threshold(_MOST_NEW, _NEVER, _NEVER)


async def look_at_all_hourly() -> None:
    """Look at all objects once an hour, forever: with 10 000 held polls, for half a second."""
    while True:
        await trio.sleep(_HOUR)
        gc.collect()
