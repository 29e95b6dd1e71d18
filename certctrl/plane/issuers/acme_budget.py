"""The budget of an ACME account: how many orders it may make per period, counted across all planes of a database.

Orders are counted in slots of a sixtieth of the period. No period of this length ever has more orders than the budget,
and the table stays small.
"""

from __future__ import annotations

import math
import re

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.storage.database import Database

UNLIMITED = "unlimited"
_SLOTS = 60
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BUDGET = re.compile(r"([0-9]{1,7})\s*/\s*([0-9]{0,3})\s*([mhdw])")


@lean.frozen
class Budget:
    """Orders per seconds."""

    orders: int
    seconds: int

    def __str__(self) -> str:
        unit, size = next((unit, size) for unit, size in reversed(_UNITS.items()) if self.seconds % size == 0)
        return f"{self.orders} orders per {self.seconds // size}{unit}"


def read_budget(text: str) -> Budget | None:
    """Return a budget such as ``300/3h``; None: unlimited; raises ConfigError."""
    if text == UNLIMITED:
        return None
    found = _BUDGET.fullmatch(text.strip())
    seconds = int(found[2] or "1") * _UNITS[found[3]] if found else 0
    if found is None or int(found[1]) < 1 or seconds < 1:
        raise ConfigError(
            "expected orders per time",
            path="budget",
            fix=f"write 300/3h (m, h, d and w are units), or {UNLIMITED}",
        )
    return Budget(int(found[1]), seconds)


class SharedBudget:
    """The budget of one issuer; all methods run in the caller's unit of work."""

    def __init__(self, database: Database, issuer: str, budget: Budget | None) -> None:
        self._db = database
        self._issuer = issuer
        self._kind = f"acme orders {issuer}"
        self._budget = budget

    def take(self, now: float) -> None:
        """Count one order; IssuerError with the seconds until the next one if there is none left."""
        budget = self._budget
        if budget is None:
            return
        self._db.one_locked("SELECT name FROM issuers WHERE name = ?", self._issuer)  # for other planes
        self._db.run("DELETE FROM limits WHERE kind = ? AND abs(at - ?) >= ?", self._kind, now, _window(budget))
        slots = self._db.all("SELECT level, at FROM limits WHERE kind = ? ORDER BY at", self._kind)
        used = sum(int(row["level"]) for row in slots)
        if used >= budget.orders:
            left = min(max(slots[0]["at"] + _window(budget) - now, 1.0), _window(budget))
            raise IssuerError(
                f"the budget of {self._issuer} is used up: {budget}",
                fix="wait, or raise budget if the CA allows more",
                retry_after=math.ceil(left),
            )
        slot = math.floor(now / _slot(budget))
        self._db.run(
            "INSERT INTO limits VALUES (?, ?, 1, ?)"
            " ON CONFLICT (kind, caller) DO UPDATE SET level = limits.level + 1, at = excluded.at",
            self._kind,
            str(slot),
            now,
        )

    def left(self, now: float) -> int | None:
        """Return how many orders may be made now; None: unlimited."""
        if self._budget is None:
            return None
        row = self._db.one(
            "SELECT coalesce(sum(level), 0) AS n FROM limits WHERE kind = ? AND abs(at - ?) < ?",
            self._kind,
            now,
            _window(self._budget),
        )
        return max(0, self._budget.orders - (int(row["n"]) if row else 0))


def _slot(budget: Budget) -> float:
    return budget.seconds / _SLOTS


def _window(budget: Budget) -> float:
    """Seconds that a slot counts, from its newest order on."""
    return float(budget.seconds)
