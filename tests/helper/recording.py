"""Units that record what is asked of them."""

from __future__ import annotations

from certctrl.errors import CommandError
from certctrl.helper.units import Units


class Recording(Units):
    """Units that record what is asked of them; ``fault`` is why they fail."""

    def __init__(self, fault: str = "") -> None:
        super().__init__("/nonexistent")
        self.calls: list[tuple[str, str]] = []
        self.fault = fault

    def act(self, verb: str, unit: str) -> None:
        self.calls.append((verb, unit))
        if self.fault:
            raise CommandError(self.fault, fix="look")
