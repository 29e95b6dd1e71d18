"""SharedSolver: the solver of one order, whose proofs other orders may need, on this plane or another."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from certctrl.plane.challenges.chosen import ChosenSolver, Rule
from certctrl.plane.challenges.published import FOREVER, PublishedProofs
from certctrl.plane.challenges.solver import Failures, Proof
from certctrl.plane.storage.database import Database

PAUSE = 1.0
"""Until an order asks again whether a proof that it needs, too, has been removed."""


class SharedSolver(ChosenSolver):
    """Publishes what no plane is removing, and removes what no other order needs."""

    def __init__(
        self, rules: Sequence[Rule], database: Database, published: PublishedProofs, *, issuer: str, holder: str
    ) -> None:
        """``holder`` is the name of the order, the same at each attempt; empty: proofs are only taken back."""
        super().__init__(rules)
        self._db = database
        self._published = published
        self._issuer = issuer
        self._holder = holder
        self._until = FOREVER
        """Until when this attempt needs what it has published; an attempt that follows one at another plane does not know."""

    async def present(self, proofs: Sequence[Proof]) -> None:
        """Note and publish proofs, after removals of the same ones, which end soon. Raises IssuerError."""
        until = 0.0
        while not until:
            until = await self._db.work(self._published.take, self._issuer, self._holder, proofs)
            if not until:
                await trio.sleep(PAUSE)
        self._until = until
        await super().present(proofs)

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        """Remove proofs that no other order needs; failures are noted, and tried again later."""
        mine = self._issuer, self._holder, proofs, self._until
        unneeded = await self._db.work(self._published.give_back, *mine)
        failures = await super().clean_up(unneeded)
        await self._db.work(self._published.settle, unneeded, failures)
        return failures
