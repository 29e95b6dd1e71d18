"""Overwrite an existing file, for destinations that cannot be replaced.

Readers may find a mix of old and new bytes for a moment, so this is done only on request. The new bytes and a copy of
the old ones are durable elsewhere before the first byte is overwritten. A crash in between leaves a mix, which is
recognized by its bytes; the journal completes it or restores the old bytes at the next start.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from typing import NamedTuple

from certctrl.errors import DiskError
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.disk.safe_path import DestinationFact


class Overwrite(NamedTuple):
    """One file to overwrite."""

    parent: Handle
    found: DestinationFact
    """The checked file: only this one is written."""
    data: bytes
    mode: int
    uid: int
    gid: int


def overwrite(fs: Fs, files: Sequence[Overwrite]) -> None:
    """Overwrite files, one immediately after the other, durably.

    Rights are narrowed before the bytes are written and widened once they are durable, so that only those who may read
    both the old and the new bytes can read any, even after a power cut. Raises DiskError, before any bytes are written
    if a file was replaced since it was checked, or its owner or mode cannot be set.
    """
    with ExitStack() as stack:
        handles = [stack.enter_context(closing(fs, _open(fs, file))) for file in files]
        for handle, file in zip(handles, files, strict=True):
            _narrow(fs, handle, file)
        for handle, file in zip(handles, files, strict=True):
            if file.data != file.found.data:
                fs.write(handle, file.data)
                fs.truncate(handle, len(file.data))
        for handle, file in zip(handles, files, strict=True):
            if fs.fstat(handle).mode != file.mode:
                fs.fsync(handle)
                fs.chmod(handle, file.mode)
        for handle in handles:
            fs.fsync(handle)


def _open(fs: Fs, file: Overwrite) -> Handle:
    path = file.found.path
    handle = fs.open_in_place(path.name, at=file.parent)
    found = fs.fstat(handle)
    if (found.kind, found.nlink, (found.dev, found.ino)) != (FileKind.FILE, 1, file.found.identity):
        fs.close(handle)
        raise DiskError(f"{path} was replaced while it was to be written", path=str(path), fix="try again")
    return handle


def _narrow(fs: Fs, handle: Handle, file: Overwrite) -> None:
    """Remove the rights that the old or the new mode does not give, durably, and set the owner."""
    found = fs.fstat(handle)
    if (found.mode, found.uid, found.gid) == (file.mode, file.uid, file.gid):
        return
    kept = 0o777 if found.gid == file.gid else 0o700
    narrow = found.mode & file.mode & (kept if found.uid == file.uid else 0)
    if found.mode != narrow:
        fs.chmod(handle, narrow)
    if (found.uid, found.gid) != (file.uid, file.gid):
        fs.chown(handle, file.uid, file.gid)
    fs.fsync(handle)


def is_mix(found: bytes, old: bytes, new: bytes) -> bool:
    """Return whether an interrupted write of ``new`` over ``old`` may leave these bytes; zeros are unwritten blocks."""
    if not min(len(old), len(new)) <= len(found) <= max(len(old), len(new)):
        return False
    return all(
        byte in (0, before, after) for byte, before, after in zip_longest(found, old[: len(found)], new[: len(found)])
    )


def empty(fs: Fs, parent: Handle, found: DestinationFact) -> None:
    """Empty a file that cannot be removed, durably. Raises as `overwrite`."""
    owner = (found.mode or 0, found.uid or 0, found.gid or 0)
    overwrite(fs, [Overwrite(parent, found, b"", *owner)])
