"""Archives that have the same bytes for the same files."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO


def write_tar(tree: Path, into: BinaryIO, date: int, *, as_root: bool = False) -> None:
    """Write directories, files and links of a tree, sorted, none newer than ``date``.

    ``as_root``: all belong to root, and have one of two modes.
    """
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(tree.rglob("*")):
            entry = tar.gettarinfo(path, str(path.relative_to(tree)))
            if entry is None or not (entry.isdir() or entry.isreg() or entry.issym() or entry.islnk()):
                continue
            entry.uname = entry.gname = ""
            entry.mtime = min(int(entry.mtime), date)
            if as_root:
                entry.mtime, entry.uid, entry.gid = date, 0, 0
                entry.mode = 0o755 if entry.isdir() or (entry.mode & 0o100 and path.suffix != ".so") else 0o644
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
