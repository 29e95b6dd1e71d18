"""RealHostFiles: the files of this host, opened so that neither a pipe nor a device holds the search up."""

from __future__ import annotations

import os
import stat
from itertools import islice

from certctrl.install.adopt.sources import Kind, UnreadableError

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_ERRORS = (OSError, ValueError)  # ValueError: a path with NUL, or that cannot be encoded


class RealHostFiles:
    """The file system of this host. It does not change while a search runs, as far as this is concerned."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}

    def read(self, path: str, limit: int) -> bytes:
        """Return the contents of a regular file."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a device may do something
                raise UnreadableError("it is not a regular file")
            fd = os.open(path, _FLAGS)
            try:
                return self._read(fd, limit)
            finally:
                os.close(fd)
        except _ERRORS as error:
            raise UnreadableError(_why(error)) from None

    def _read(self, fd: int, limit: int) -> bytes:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableError("it is not a regular file")
        data = b""
        while len(data) <= limit and (part := os.read(fd, limit + 1 - len(data))):
            data += part
        if len(data) > limit:
            raise UnreadableError(f"it has more than {limit} bytes")
        return data

    def names(self, directory: str, limit: int) -> list[str]:
        """Return the names in a directory."""
        try:
            with os.scandir(directory) as entries:
                return sorted(entry.name for entry in islice(entries, limit))
        except _ERRORS as error:
            raise UnreadableError(_why(error)) from None

    def kind(self, path: str) -> Kind:
        """Return what a path leads to."""
        try:
            mode = os.stat(path).st_mode
        except PermissionError:
            return Kind.OTHER
        except _ERRORS:
            return Kind.MISSING
        return Kind.FILE if stat.S_ISREG(mode) else Kind.DIR if stat.S_ISDIR(mode) else Kind.OTHER

    def real(self, path: str) -> str:
        """Return a path with all links followed."""
        if path not in self._real:
            try:
                self._real[path] = os.path.realpath(path)
            except _ERRORS:
                self._real[path] = path
        return self._real[path]


def _why(error: Exception) -> str:
    return (error.strerror or "it cannot be read") if isinstance(error, OSError) else "no file can have that name"
