"""The interface of a type of entry in ``challenges``, and the parts that its solver uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from certctrl import lean
from certctrl.plane.challenges.entry import Entry
from certctrl.plane.challenges.published import PublishedProofs
from certctrl.plane.challenges.solver import Solver
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.signal_stream import SignalStream


@lean.frozen
class SolverParts:
    """The parts of the plane that solvers use."""

    database: Database
    stream: SignalStream
    """The signal stream, for answers at hosts."""
    wall_now: Callable[[], float]
    published: PublishedProofs
    issuer: str
    """The name of the issuer."""
    user_id: int = 0
    """The user of the certificate; 0: none, as for proofs that are only taken back."""


class SolverKind(Protocol):
    """One type of entry."""

    def check(self, given: Mapping[str, Any], path: str, secrets: Mapping[str, bytes]) -> Entry:
        """Return the entry that an operator gives at ``path`` of the settings. Raises ConfigError."""
        ...

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], parts: SolverParts) -> Solver:
        """Return the solver of an entry that was checked and stored."""
        ...
