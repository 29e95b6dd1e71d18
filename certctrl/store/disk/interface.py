"""The verbs of the disk: what the store asks of a file system, and nothing of how it is done.

Names are either a whole path or, with ``at``, one name inside an open directory: where somebody else may own
a parent, code walks by directory handles and never by path.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol


class Handle:
    """An open file or directory and the path it was opened by."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __repr__(self) -> str:
        return f"Handle({self.fd}, {self.path!r})"


class Stat(NamedTuple):
    """The facts of one directory entry; ``kind`` is ``file``, ``dir``, ``link`` or ``other``."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    ino: int
    dev: int
    mtime_ns: int


class Fs(Protocol):
    """What the store asks of a file system. All verbs raise DiskError; none follows a symbolic link at its end."""

    def open_dir(self, path: str | Path, at: Handle | None = None) -> Handle:
        """Open a directory."""

    def open_file(self, path: str | Path, at: Handle | None = None) -> Handle:
        """Open a file for reading; never blocks on a FIFO."""

    def open_append(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        """Open a file for writing at its end; make it when it is missing."""

    def open_lock(self, path: str | Path, mode: int) -> Handle:
        """Open a file for reading and writing in place; make it when it is missing."""

    def create(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        """Make a new file with exactly this mode, whatever the umask; EEXIST when the name is taken."""

    def read(self, handle: Handle, limit: int) -> bytes:
        """Return up to ``limit`` bytes from the handle's position."""

    def write(self, handle: Handle, data: bytes) -> None:
        """Write all of ``data`` at the handle's position."""

    def truncate(self, handle: Handle, size: int) -> None:
        """Cut or extend the file."""

    def allocate(self, handle: Handle, size: int) -> None:
        """Reserve the space of the first ``size`` bytes, so that writing them cannot fail for want of it."""

    def chmod(self, handle: Handle, mode: int) -> None:
        """Set the permission bits of what the handle has open."""

    def chown(self, handle: Handle, uid: int, gid: int) -> None:
        """Set owner and group of what the handle has open."""

    def label(self, handle: Handle) -> bytes | None:
        """Return the SELinux label; None where there is none."""

    def relabel(self, handle: Handle, label: bytes) -> None:
        """Set the SELinux label."""

    def fsync(self, handle: Handle) -> None:
        """Make one file's bytes and facts, or one directory's entries, durable."""

    def syncfs(self, handle: Handle) -> bool:
        """Make everything on the handle's file system durable; False where that cannot be relied on."""

    def try_lock(self, handle: Handle) -> bool:
        """Take the exclusive flock of a handle without waiting; it goes with the handle or the process."""

    def close(self, handle: Handle) -> None:
        """Close a handle; closing twice is nothing."""

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        """Rename inside one directory handle (or by path), replacing ``new``."""

    def symlink(self, text: str, path: str | Path, at: Handle | None = None) -> None:
        """Make a symbolic link at ``path`` that says ``text``."""

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        """Remove a name that is no directory."""

    def mkdir(self, path: str | Path, mode: int, at: Handle | None = None) -> None:
        """Make a directory."""

    def rmdir(self, path: str | Path, at: Handle | None = None) -> None:
        """Remove an empty directory."""

    def listdir(self, handle: Handle) -> list[str]:
        """Return the names in a directory."""

    def lstat(self, path: str | Path, at: Handle | None = None) -> Stat | None:
        """Return the facts of a name, not of what a link leads to; None when there is no such name."""

    def fstat(self, handle: Handle) -> Stat:
        """Return the facts of what the handle has open."""

    def readlink(self, path: str | Path, at: Handle | None = None) -> str:
        """Return the text of a symbolic link."""

    def uid(self) -> int:
        """Return the user that files are made as."""

    def gid(self) -> int:
        """Return the group that files are made as."""

    def token(self) -> str:
        """Return letters and digits nobody can guess, for temporary names."""
