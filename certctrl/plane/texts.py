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
    shown = (c for c in str(value)[: longest * 2] if c.isspace() or unicodedata.category(c) not in _HIDDEN)
    text = " ".join("".join(shown).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
