"""Holds: published answers that several orders share, so that the first to end does not remove them.

A CA may give two orders the same authorization, and so the same challenge. The orders of one process are counted; if
another plane of a fleet works at the other order, that one fails once and is retried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from typing import TypeVar

Answer = TypeVar("Answer", bound=Hashable)


class Holds:
    """Who needs each answer, and how often."""

    def __init__(self) -> None:
        self._counts: dict[Hashable, Counter[object]] = {}

    def take(self, holder: object, answers: Collection[Answer]) -> None:
        """Count one more need of the holder for each answer."""
        for answer in set(answers):
            self._counts.setdefault(answer, Counter())[holder] += 1

    def give_back(self, holder: object, answers: Collection[Answer]) -> list[Answer]:
        """Count one need of the holder less; return the answers that none needs, even if they were never counted."""
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
"""Those of this process: an issuer, and with it its solvers, may be made for each order."""
