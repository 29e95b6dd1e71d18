"""Questions that an operator may ask a live agent through the control plane, and their limits."""

from __future__ import annotations

from enum import StrEnum


class QuestionKind(StrEnum):
    """A question; its answer is that of the command with this name."""

    STATUS = "status"
    DOCTOR = "doctor"
    PLAN = "plan"
    HISTORY = "history"


MAX_OPEN = 4
"""Open questions of a device."""
MAX_ANSWER = 200 * 1024
"""Bytes of an answer as JSON."""
MAX_SECONDS = 25
"""Time limit that an operator may set; less than that of the operator's request."""
