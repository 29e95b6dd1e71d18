"""How many examples hypothesis tries where a property says so itself."""

from __future__ import annotations

import os


def at_most(usual: int) -> int:
    """Return the usual number of examples, or the fewer that CERTCTRL_TEST_EXAMPLES asks for."""
    return min(usual, int(os.environ.get("CERTCTRL_TEST_EXAMPLES") or usual))
