"""The interface of the disk: operations that the store needs, without implementation.

A path is absolute or, with ``at``, one name inside an open directory. Where another user may own a parent directory,
code walks by directory handles, never by path.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol


class FileKind(StrEnum):
    """The kind of a directory entry."""

    FILE = "file"
    DIR = "dir"
    LINK = "link"
    OTHER = "other"
    """A device, pipe or socket."""
    MISSING = "missing"
    """There is no such entry."""


class Handle:
    """An open file or directory and the path it was opened by."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __repr__(self) -> str:
        return f"Handle({self.fd}, {self.path!r})"


class Stat(NamedTuple):
    """Metadata of one directory entry."""

    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    ino: int
    dev: int
    mtime_ns: int


class Fs(Protocol):
    """A file system. All methods raise DiskError; none follows a symbolic link in the last component."""

    def open_dir(self, path: str | Path, at: Handle | None = None) -> Handle:
        """Open a directory."""

    def open_file(self, path: str | Path, at: Handle | None = None) -> Handle:
        """Open a file for reading; never blocks on a FIFO."""

    def open_append(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        """Open a file for appending; create it if it is missing."""

    def open_lock(self, path: str | Path, mode: int) -> Handle:
        """Open a file for reading and writing in place; create it if it is missing."""

    def open_in_place(self, path: str | Path, at: Handle | None = None) -> Handle:
        """Open an existing file to overwrite it; never blocks on a FIFO."""

    def create(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        """Create a new file with exactly this mode, regardless of the umask; EEXIST if the name exists."""

    def read(self, handle: Handle, limit: int) -> bytes:
        """Return up to ``limit`` bytes from the handle's position."""

    def write(self, handle: Handle, data: bytes) -> None:
        """Write all of ``data`` at the handle's position."""

    def truncate(self, handle: Handle, size: int) -> None:
        """Truncate or extend the file."""

    def allocate(self, handle: Handle, size: int) -> None:
        """Allocate the first ``size`` bytes, so that writing them cannot fail for lack of space."""

    def chmod(self, handle: Handle, mode: int) -> None:
        """Set the permission bits of the open file or directory."""

    def chown(self, handle: Handle, uid: int, gid: int) -> None:
        """Set owner and group of the open file or directory."""

    def attributes(self, handle: Handle) -> dict[str, bytes]:
        """Return the extended attributes that affect access (`acl.is_kept`): ACLs and security labels."""

    def set_attribute(self, handle: Handle, name: str, value: bytes | None) -> None:
        """Set an extended attribute; None removes it."""

    def fsync(self, handle: Handle) -> None:
        """Make one file's bytes and metadata, or one directory's entries, durable."""

    def syncfs(self, handle: Handle) -> bool:
        """Make the handle's whole file system durable; False if the kernel cannot guarantee it."""

    def try_lock(self, handle: Handle) -> bool:
        """Take the exclusive flock of a handle without waiting; it ends with the handle or the process."""

    def close(self, handle: Handle) -> None:
        """Close a handle; idempotent."""

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        """Rename inside one directory handle (or by path), replacing ``new``."""

    def symlink(self, text: str, path: str | Path, at: Handle | None = None) -> None:
        """Create a symbolic link at ``path`` to ``text``."""

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        """Remove a name that is not a directory."""

    def mkdir(self, path: str | Path, mode: int, at: Handle | None = None) -> None:
        """Create a directory."""

    def rmdir(self, path: str | Path, at: Handle | None = None) -> None:
        """Remove an empty directory."""

    def listdir(self, handle: Handle) -> list[str]:
        """Return the names in a directory."""

    def lstat(self, path: str | Path, at: Handle | None = None) -> Stat | None:
        """Return the metadata of a name, links not followed; None if it does not exist."""

    def fstat(self, handle: Handle) -> Stat:
        """Return the metadata of the open file or directory."""

    def mount(self, handle: Handle) -> int:
        """Return a number of the mount that the open file or directory is on; 0 if unknown."""

    def readlink(self, path: str | Path, at: Handle | None = None) -> str:
        """Return the target of a symbolic link."""

    def uid(self) -> int:
        """Return the user that new files belong to."""

    def gid(self) -> int:
        """Return the group that new files belong to."""

    def token(self) -> str:
        """Return unguessable letters and digits for temporary names."""
