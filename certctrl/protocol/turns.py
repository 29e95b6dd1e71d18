"""Choose the class of signals whose turn it is to get a free handler.

Classes are in an order, and each has twice the weight of the next one. Those with waiting signals get turns in
proportion to their weights, spread evenly, so that the last one gets at least one of fifteen. Handlers may hang, so
each class also has handlers that the others cannot take: its share of the limit, at least one.
Rejected: strict order, in which a stream of revocations starves all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from certctrl.model.priority import Priority


class Turns:
    """The turns of the classes; remembers who had the last ones."""

    def __init__(self) -> None:
        self._credit: dict[Priority, int] = {}

    def take(
        self, order: Sequence[Priority], waiting: Collection[Priority], running: Mapping[Priority, int], limit: int
    ) -> Priority | None:
        """Return the class that gets a handler now; None if none may.

        ``waiting``: classes with signals that wait. ``running``: handlers that each class has now. ``limit``: handlers
        that the classes share; a class with fewer than its share gets one beyond that.
        """
        if not waiting:
            self._credit = {}
            return None
        weights = weights_of(order)
        total, is_free = sum(weights.values()), sum(running.values()) < limit
        able = [
            one
            for one in order
            if one in waiting and (is_free or running.get(one, 0) < max(1, limit * weights[one] // total))
        ]
        self._credit = {one: self._credit.get(one, 0) for one in order if one in waiting}
        if not able:
            return None
        for one in able:
            self._credit[one] += weights[one]
        chosen = max(able, key=self._credit.__getitem__)  # of equals, the first in the order
        self._credit[chosen] -= sum(weights[one] for one in able)
        return chosen


def weights_of(order: Sequence[Priority]) -> dict[Priority, int]:
    """Return the weight of each class."""
    return {one: 1 << (len(order) - 1 - rank) for rank, one in enumerate(order)}
