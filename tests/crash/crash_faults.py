"""Faults of a disk: the errors of each syscall, once or from a point on, and short writes."""

from __future__ import annotations

from collections.abc import Iterator

from crash_trials import CALLS, Point

CREATING = {"openat", "mkdir", "mkdirat", "symlink", "symlinkat", "rename", "renameat", "write", "fallocate", "link"}
SYNCING = {"fsync", "fdatasync", "syncfs"}
MAY_FAIL = {
    "ENOSPC": CREATING | SYNCING | {"ftruncate"},
    "EDQUOT": CREATING | SYNCING | {"ftruncate", "fchown"},
    "EIO": set(CALLS),
    "EROFS": set(CALLS) - SYNCING,
    "EMFILE": {"openat"},
    "EINTR": {"openat", "write", "fsync", "fdatasync", "fallocate", "ftruncate", "syncfs"},
}
TURNS = 3
"""How often EINTR comes in a row; a kernel does not send it forever."""


def faults(point: Point) -> Iterator[tuple[str, list[str]]]:
    """Yield every fault at a point: its name and the rules for strace."""
    for code, calls in MAY_FAIL.items():
        if point.call not in calls:
            continue
        yield f"{code} once", [f"{point.call}:error={code}:when={point.number}"]
        if code == "EINTR":
            when = f"{point.number}..{point.number + TURNS - 1}"
            yield f"{code} {TURNS} times", [f"{point.call}:error={code}:when={when}"]
        else:
            yield f"{code} from there on", list(sticky(point, code, calls))


def sticky(point: Point, code: str, calls: set[str]) -> Iterator[str]:
    """Yield rules that fail every call that can fail with this error, from a point on.

    Opens only fail with EMFILE: strace cannot distinguish opening for reading from creating.
    """
    for call in sorted(calls):
        if call != "openat" or code == "EMFILE":
            yield f"{call}:error={code}:when={point.before.get(call, 0) + 1}+"


def starves(point: Point, name: str) -> bool:
    """Return whether a fault means "no space", so that no token may be used. Reserved space cannot run out."""
    return name.startswith(("ENOSPC", "EDQUOT")) and point.call in ("openat", "fallocate")
