"""Remove files that this agent put at explicit destinations, while they are still what it put there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from certctrl.store.atomic import read_bytes
from certctrl.store.fs import Fs, Handle, closing

LARGEST = 4 * 1024 * 1024


def remove_files(fs: Fs, doomed: Mapping[str, str]) -> int:
    """Remove files by absolute path while their bytes have the given SHA-256; return how many went, durably.

    The way there is walked step by step by directory handles: a symbolic link in it, or in place of the file,
    ends it. Raises DiskError.
    """
    removed = 0
    for path, digest in doomed.items():
        parent = _walk(fs, path.split("/")[1:-1])
        with closing(fs, parent):
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


def _walk(fs: Fs, steps: list[str]) -> Handle:
    here = fs.open_dir("/")
    for step in steps:
        with closing(fs, here):
            deeper = fs.open_dir(step, at=here)
        here = deeper
    return here
