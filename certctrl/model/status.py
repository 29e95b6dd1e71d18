"""Reasons to stop and health. `status` imports this module, so it must not import attrs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, assert_never

from certctrl.errors import ExitStatus


class Health(StrEnum):
    """The health of a running agent."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """The operator has to act."""
    STALE = "stale"
    """The control plane has not answered for too long."""

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of ``status``."""
        match self:
            case Health.HEALTHY:
                return ExitStatus.DONE
            case Health.DEGRADED | Health.STALE:
                return ExitStatus.FAILED
            case _:
                assert_never(self)


class StopReason(StrEnum):
    """Why a run ended; returned, never raised across a nursery."""

    ASKED = "asked to stop"
    REVOKED = "device revoked"
    REFRESH_REFUSED = "refresh token refused"
    PACKAGE_CHANGED = "installed package changed"

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of the daemon."""
        match self:
            case StopReason.ASKED:
                return ExitStatus.DONE
            case StopReason.REVOKED | StopReason.REFRESH_REFUSED:
                return ExitStatus.NOT_REGISTERED
            case StopReason.PACKAGE_CHANGED:
                return ExitStatus.BUSY
            case _:
                assert_never(self)


def not_deployed(awaited: Mapping[str, Any]) -> str:
    """Return what a certificate waits for whose key is made (``order_id``: the plane's order)."""
    return f"its key is made here, order {awaited['order_id']} of the control plane is not deployed yet"
