"""Memo: what was read from a head is read once, while a connection repeats the same bytes.

A waiting agent does: its cursor stays, and so do its token and all other headers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

A = TypeVar("A")
T = TypeVar("T")
MEMO = "certctrl.memo"
"""Key of the memo in a scope; absent: nothing is remembered."""


def remembered(memo: dict[Any, Any] | None, read: Callable[[A], T], head: A) -> T:
    """Return what a function reads from a head and nothing else; not called again for the same bytes."""
    if memo is None:
        return read(head)
    found: T | None = memo.get(read)
    if found is None:
        found = memo[read] = read(head)
    return found
