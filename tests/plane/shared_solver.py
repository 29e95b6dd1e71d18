"""A solver with the counting of orders around it."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex

from certctrl.plane.challenges.chosen import Rule
from certctrl.plane.challenges.published import PublishedProofs
from certctrl.plane.challenges.shared import SharedSolver
from certctrl.plane.challenges.solver import Solver
from certctrl.plane.storage.database import Database


def shared(
    solver: Solver, database: Database, wall_now: Callable[[], float], *, issuer: str = "le", holder: str | None = None
) -> SharedSolver:
    """Return the solver of one order, another one for each call without ``holder``."""
    published = PublishedProofs(database, wall_now)
    return SharedSolver(
        [Rule("", (), solver)], database, published, issuer=issuer, holder=token_hex(8) if holder is None else holder
    )
