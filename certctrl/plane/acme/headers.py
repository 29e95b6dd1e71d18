"""Headers of a CA's answers: Retry-After, Link and Replay-Nonce."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

MAX_RETRY_AFTER = 86_400.0
MAX_LINKS = 10
_MAX_LENGTH = 4096
_NONCE = re.compile(r"[A-Za-z0-9_-]{1,512}")
_LINK = re.compile(r"<([^<>]{1,2000})>([^<]{0,400})")
_RELATION = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]+))', re.IGNORECASE)


def retry_after(headers: Mapping[str, str], now: float, *, most: float = MAX_RETRY_AFTER) -> float | None:
    """Return the seconds of Retry-After within [0, ``most``], given as a number or an HTTP date; None without one."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:20]), most)
    if not text or len(text) > 100:
        return None
    try:
        at = parsedate_to_datetime(text)
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
    return min(max(seconds, 0.0), most)


def links(headers: Mapping[str, str], relation: str, base: str) -> list[str]:
    """Return the URLs of a relation, at most `MAX_LINKS`; relative ones start at ``base``."""
    found = []
    for target, parameters in _LINK.findall(headers.get("link", "")[: _MAX_LENGTH * 4]):
        named = _RELATION.search(parameters)
        if named is not None and relation in (named[1] or named[2] or "").lower().split():
            try:
                found.append(urljoin(base, target))
            except ValueError:
                continue
    return found[:MAX_LINKS]


def replay_nonce(headers: Mapping[str, str]) -> str | None:
    """Return the nonce of an answer; None if there is none or it is malformed."""
    nonce = headers.get("replay-nonce", "").strip()
    return nonce if _NONCE.fullmatch(nonce) else None
