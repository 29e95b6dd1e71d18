"""Pace: choose how long polls are held, and when devices return to a control plane that stops.

One signal to all devices ends all held polls within a second or two. If each next poll were held for its whole wait, all
would end together again, forever.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable

from certctrl.protocol.wire.poll import LEAST_HELD

FIRST_RETURN, LAST_RETURN = 5, 25
"""Bounds in seconds of the time after which devices return to a control plane that stops; most restarts are shorter."""


class Pace:
    """Random lengths; ``random()`` returns a float in [0, 1)."""

    def __init__(self, random: Callable[[], float] = random_module.random) -> None:
        self._random = random

    def hold_seconds(self, wait: float) -> float:
        """Return how long a poll is held that may last ``wait`` seconds."""
        return wait * (LEAST_HELD + (1 - LEAST_HELD) * self._random())

    def return_seconds(self) -> int:
        """Return the ``Retry-After`` of a poll that a stopping control plane answers."""
        return FIRST_RETURN + int(self._random() * (LAST_RETURN - FIRST_RETURN + 1))
