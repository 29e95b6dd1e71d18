"""Escape untrusted text for one line of a log, a terminal or a page."""

from __future__ import annotations

LINE_LIMIT = 200


def one_line(
    text: str, limit: int | None = LINE_LIMIT, *, replacement: str | None = None, ascii_only: bool = False
) -> str:
    """Return text as one printable line of at most ``limit`` characters; None means unlimited.

    Control, bidirectional and other invisible characters are escaped (``\\n``, ``\\u202e``), or replaced by
    ``replacement``. ``ascii_only`` also escapes all characters outside ASCII.
    """
    if text.isprintable() and (limit is None or len(text) <= limit) and (not ascii_only or text.isascii()):
        return text
    source = text if limit is None else text[: limit + 1]
    line = "".join(
        char if char.isprintable() and (not ascii_only or char.isascii()) else _substitute(char, replacement)
        for char in source
    )
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def _substitute(char: str, replacement: str | None) -> str:
    return char.encode("unicode_escape").decode("ascii") if replacement is None else replacement
