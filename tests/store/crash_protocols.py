"""All protocols of the store."""

from __future__ import annotations

from crash_challenges import Answer
from crash_deployments import (
    Batch,
    Copies,
    CopiesDropped,
    CopiesEach,
    CopiesHelped,
    CopiesHelpedUndone,
    CopiesInPlace,
    CopiesInPlaceEach,
    CopiesInPlaceUndone,
    CopiesModeOnly,
    CopiesUndone,
    FirstInstall,
    FirstInstallEach,
    Renew,
    RenewEach,
    RenewWithCopies,
    Rollback,
    Withdraw,
)
from crash_protocol import Protocol
from crash_state import EarlierFailures, FailedSignals, Records, Refresh, Register, Resync, Signals, SignalsWithoutPage

PROTOCOLS: tuple[type[Protocol], ...] = (
    FirstInstall, FirstInstallEach, Renew, RenewEach, Batch, Rollback, Withdraw, Copies, CopiesDropped, CopiesEach, CopiesUndone,
    CopiesModeOnly, CopiesInPlace, CopiesInPlaceEach, CopiesInPlaceUndone, CopiesHelped, CopiesHelpedUndone,
    RenewWithCopies, Register, Refresh, Signals,
    SignalsWithoutPage, FailedSignals, EarlierFailures,
    Resync, Records, Answer,
)  # fmt: skip
