"""Texts that came from outside, made fit for one line on a person's screen."""

from __future__ import annotations

import unicodedata
from typing import Any

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Control, format (bidirectional tricks), surrogate, private, line and paragraph separators."""


def line(value: Any, longest: int = 200) -> str:
    """Return a text without control characters, at most ``longest`` long; anything but a text or number is empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    words = " ".join(str(value)[: longest * 2].split())
    text = "".join(c for c in words if unicodedata.category(c) not in _HIDDEN).strip()
    return text if len(text) <= longest else text[: longest - 1] + "…"
