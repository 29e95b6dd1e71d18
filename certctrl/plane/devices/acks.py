"""Ack: the outcome of one signal, as a device reported it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.model.causes import Cause
from certctrl.model.plan import OutcomeKind


@lean.frozen(kw_only=True)
class Ack:
    """The outcome of one signal."""

    type: str
    ts_ms: int
    ref: Mapping[str, Any]
    outcome: OutcomeKind
    detail: str = ""
    cause: Cause | None = None
    deployed: Sequence[Any] = ()
    duration_ms: int = 0
