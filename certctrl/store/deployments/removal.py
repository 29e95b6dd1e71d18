"""Remove files that this agent put at explicit destinations, while they are still what it put there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from certctrl.store.disk.fs import Fs, closing
from certctrl.store.disk.safe_path import SIZE_LIMIT, NoDirectoryError, open_parent, read_at

NOT_OURS = "it is not the file that was put there"


def remove_ours(fs: Fs, path: str, digest: str, owner: int | None = None) -> str:
    """Remove a file, durably, while its bytes have the given SHA-256; return why it stays, empty when it is gone.

    The way there is walked step by step by directory handles: a symbolic link in it, or in place of the file,
    ends it. Raises DiskError when it cannot be told whose file it is, PolicyRefusedError for the way there.
    """
    try:
        parent = open_parent(fs, Path(path), owner=owner)
    except NoDirectoryError:
        return ""
    with closing(fs, parent):
        name = path.rpartition("/")[2]
        found = fs.lstat(name, at=parent)
        if found is None:
            return ""
        readable = found.kind == "file" and found.size <= SIZE_LIMIT  # ours is, and what is not must hold up nothing
        if not readable or hashlib.sha256(read_at(fs, parent, name)[0]).hexdigest() != digest:
            return NOT_OURS
        if found.nlink != 1:
            return f"it has {found.nlink} hard links"
        fs.unlink(name, at=parent)
        fs.fsync(parent)
    return ""
