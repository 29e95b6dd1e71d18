"""Rules for the text of absolute paths. What only the disk shows is checked where the path is opened."""

from __future__ import annotations

from functools import lru_cache

STATE_DIR = "state"
"""The directory of the agent's state, in its config directory."""
PLANE_CA = "plane-ca.pem"
"""The file that `init --ca` writes; in the state directory, the one that the plane announced in place of it."""
NEXT_PLANE_CA = "plane-ca.next.pem"
"""In the state directory: the one that is used in addition until a connection has proven it."""
MAX_PATH = 4000
MAX_NAME = 200
"""Bytes of one name; a temporary name needs the rest of the 255 that a file system allows."""


@lru_cache(maxsize=8192)
def path_fault(path: str) -> str:
    """Return what is wrong with the text of an absolute path; empty: nothing."""
    if not path.startswith("/"):
        return "it is not an absolute path"
    if not path.isprintable():
        return "it has characters that are not printable"
    names = path[1:].split("/")
    if any(name in ("", ".", "..") for name in names):
        return "it is not normalized ('..', '.', '//' or a final '/')"
    if len(path.encode()) > MAX_PATH or any(len(name.encode()) > MAX_NAME for name in names):
        return "it, or a name in it, is too long"
    return ""


def is_below(path: str, root: str) -> bool:
    """Return whether a path is strictly below a directory, by whole names; False if either is not normalized."""
    base = root.rstrip("/")
    rooted = root.startswith("/") and not path_fault(base or "/x")
    return rooted and not path_fault(path) and path.startswith(f"{base}/")
