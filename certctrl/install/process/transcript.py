"""Prepare a command's output for the log: bounded, decoded, escaped, without private keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

KEEP_BYTES = 32 * 1024
"""Bytes kept of the start and of the end each."""

_KEY_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_KEY_TAIL = re.compile(r"\A(?:(?!-----BEGIN).)*?-----END [A-Z0-9 ]*PRIVATE KEY-----", re.DOTALL)
_UNUSUAL = re.compile(r"[^\n\x20-\x7e]")
_REMOVED = "[private key removed]"


def transcript(head: bytes, tail: bytes, total: int, secrets: Iterable[bytes] = ()) -> str:
    """Return output as text; all control and direction characters except line breaks are escaped.

    ``head`` and ``tail`` are the kept start and end of ``total`` bytes. PEM private keys, complete or truncated, and
    the given ``secrets`` are removed.
    """
    left_out = total - len(head) - len(tail)
    if left_out <= 0:
        return _clean(head + tail, secrets, cut=False)
    first, last = _clean(head, secrets, cut=False), _clean(tail, secrets, cut=True)
    return f"{first}\n[{left_out} bytes left out]\n{last}"


def last_line(text: str, limit: int = 200) -> str:
    """Return the last line that is not empty, for one-line reports."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _clean(data: bytes, secrets: Iterable[bytes], *, cut: bool) -> str:
    for secret in secrets:
        if secret:
            data = data.replace(secret, b"[secret removed]")
    text = data.decode("utf-8", errors="backslashreplace").replace("\r\n", "\n")
    if cut:  # the start of a key may be in the part that was left out
        text = _KEY_TAIL.sub(_REMOVED, text)
    text = _KEY_BLOCK.sub(_REMOVED, text)
    return _UNUSUAL.sub(_escaped, text).strip("\n")


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else found[0].encode("unicode_escape").decode()
