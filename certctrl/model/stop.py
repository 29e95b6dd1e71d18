"""The end of a run, as a value."""

from __future__ import annotations

from certctrl import lean
from certctrl.model.status import StopReason


@lean.frozen
class Stop:
    """Why a run ended."""

    reason: StopReason
    detail: str = ""
