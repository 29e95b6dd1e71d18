"""Holds: count the users of published answers, so that the first order to end does not remove shared ones.

A CA may give two orders the same authorization, and so the same challenge. Only orders of this process are counted; if
another plane processes the other order, that one fails once and is retried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from typing import TypeVar

Answer = TypeVar("Answer", bound=Hashable)


class Holds:
    """The holders of each answer, counted."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, Counter[object]] = {}

    def take(self, holder: object, answers: Collection[Answer]) -> None:
        """Add the holder once to each answer."""
        for answer in set(answers):
            self._counts.setdefault(answer, Counter())[holder] += 1

    def give_back(self, holder: object, answers: Collection[Answer]) -> list[Answer]:
        """Remove the holder once from each answer; return those without a holder, even if they never had one."""
        unneeded = []
        for answer in dict.fromkeys(answers):
            counts = self._counts.get(answer, Counter())
            if counts[holder] > 0:
                counts[holder] -= 1
            if counts.total() == 0:
                self._counts.pop(answer, None)
                unneeded.append(answer)
        return unneeded


HOLDS = Holds()
"""One per process: an issuer, and its solvers, may be created anew for each order."""
