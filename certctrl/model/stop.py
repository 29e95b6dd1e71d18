"""The end of a run, as a value."""

from __future__ import annotations

import attrs

from certctrl.model.status import StopReason


@attrs.frozen
class Stop:
    """Why a run ended."""

    reason: StopReason
    detail: str = ""
