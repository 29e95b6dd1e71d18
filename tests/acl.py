"""Access control lists of real files, for tests."""

from __future__ import annotations

import os
import struct
from pathlib import Path

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NO_ONE = 0xFFFFFFFF
TAGS = {"user::": 1, "user": 2, "group::": 4, "group": 8, "mask": 16, "other": 32}


def packed(text: str) -> bytes:
    """Return the list that ``user::6 user:1234:4 group::0 mask::4 other::0`` describes, as the kernel stores it."""
    raw = struct.pack("<I", 2)
    for word in text.split():
        kind, name, perm = word.split(":")
        tag = TAGS.get(kind) if name or kind in ("mask", "other") else TAGS[f"{kind}::"]
        raw += struct.pack("<HHI", tag, int(perm), int(name) if name else NO_ONE)
    return raw


def set_acl(path: Path, text: str, name: str = ACCESS) -> None:
    os.setxattr(path, name, packed(text))


def acl_of(path: Path) -> bytes | None:
    """Return the list of a file; None if its mode says all."""
    return os.getxattr(path, ACCESS) if ACCESS in os.listxattr(path) else None


def supported(place: Path) -> bool:
    """Return whether the file system of a directory has access control lists."""
    probe = place / ".acl"
    probe.touch()
    try:
        set_acl(probe, "user::6 user:1234:4 group::0 mask::4 other::0")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True
