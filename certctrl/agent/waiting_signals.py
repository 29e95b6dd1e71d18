"""WaitingSignals: the signals that wait for a free handler, in one queue per class.

``protocol/turns.py`` decides which class is next. The inbox, which contains all these signals, bounds the queues.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from certctrl.model.config import ApplicationConfig
from certctrl.model.priority import Priority
from certctrl.model.records import InboxEntry
from certctrl.model.signals import priority_of
from certctrl.protocol.turns import Turns


class WaitingSignals:
    """The queues, and the number of handlers of each class. At most one signal per resource is queued."""

    def __init__(self, settings: Callable[[], ApplicationConfig]) -> None:
        self._settings = settings
        self._queues = {one: OrderedDict[str, InboxEntry]() for one in Priority}  # by resource
        self._handlers = Counter[Priority]()
        self._turns = Turns()

    def add(self, entry: InboxEntry, *, first: bool = False) -> None:
        """Queue a signal; ``first``: before the others of its class, in place of an earlier one of its resource."""
        queue = self._queues[priority_of(entry.signal)]
        queue[entry.signal.resource] = entry
        if first:
            queue.move_to_end(entry.signal.resource, last=False)

    def of(self, resource: str) -> InboxEntry | None:
        """Return the queued signal of a resource."""
        return next((queue[resource] for queue in self._queues.values() if resource in queue), None)

    def all(self) -> list[InboxEntry]:
        """Return all queued signals."""
        return [entry for queue in self._queues.values() for entry in queue.values()]

    def remove(self, entry: InboxEntry) -> None:
        """Take a signal out of its queue."""
        del self._queues[priority_of(entry.signal)][entry.signal.resource]

    def next(self) -> InboxEntry | None:
        """Remove and return the signal to handle next, until `ended`; None if no handler is free for any."""
        settings, waiting = self._settings(), [one for one, queue in self._queues.items() if queue]
        turn = self._turns.take(settings.priority_order, waiting, self._handlers, settings.handler_limit)
        if turn is None:
            return None
        self._handlers[turn] += 1
        return self._queues[turn].popitem(last=False)[1]

    def ended(self, entry: InboxEntry) -> None:
        """Release the handler of a signal."""
        self._handlers[priority_of(entry.signal)] -= 1
