"""Why a run ended. What `status` shows is a plain dict (``agent/reporter.py``), so that it imports nothing."""

from __future__ import annotations

from enum import StrEnum

import attrs

from certctrl.errors import ExitStatus


class StopReason(StrEnum):
    """Endings are values: returned, never raised across a nursery."""

    ASKED = "asked to stop"
    REVOKED = "device revoked"
    REFRESH_REFUSED = "refresh token refused"

    @property
    def exit_status(self) -> ExitStatus:
        """Return the status the process ends with."""
        return ExitStatus.DONE if self is StopReason.ASKED else ExitStatus.NOT_REGISTERED


@attrs.frozen
class Stop:
    """One ending."""

    reason: StopReason
    detail: str = ""
