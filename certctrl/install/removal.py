"""Remove files that this agent put at explicit destinations, while they are still what it put there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from certctrl.store.atomic import read_bytes
from certctrl.store.fs import Fs, closing
from certctrl.store.walk import open_parent

LARGEST = 4 * 1024 * 1024


def remove_files(fs: Fs, doomed: Mapping[str, str], owner: int | None = None) -> int:
    """Remove files by absolute path while their bytes have the given SHA-256; return how many went, durably.

    The way there is walked step by step by directory handles: a symbolic link in it, or in place of the file,
    ends it. Raises DiskError, PolicyRefusedError.
    """
    removed = 0
    for path, digest in doomed.items():
        with closing(fs, open_parent(fs, Path(path), owner=owner)) as parent:
            name = path.rpartition("/")[2]
            found = fs.lstat(name, at=parent)
            if found is None or found.kind != "file":
                continue
            data = read_bytes(fs, name, LARGEST, at=parent)
            if data is not None and hashlib.sha256(data).hexdigest() == digest:
                fs.unlink(name, at=parent)
                fs.fsync(parent)
                removed += 1
    return removed
