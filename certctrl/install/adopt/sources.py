"""Read configuration files with their includes, within limits.

A configuration may include itself, a device, or ten thousand files. Nothing here raises for what is on the disk: a file
that cannot be read becomes a remark, and the rest is read.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from fnmatch import translate
from typing import Protocol

from certctrl.install.adopt.uses import At, Remark

MAX_INCLUSIONS = 2_000
"""Files, counted again for each place that includes them."""
MAX_DEPTH = 20
MAX_FILE = 4 * 1024 * 1024
MAX_BYTES = 16 * 1024 * 1024
MAX_NAMES = 20_000
"""Names of directories that patterns are compared with."""
MAX_REMARKS = 200
_MAGIC = re.compile(r"[*?\[]")


class Kind(StrEnum):
    """What a path leads to, links followed."""

    FILE = "file"
    DIR = "dir"
    OTHER = "other"
    MISSING = "missing"


class UnreadableError(Exception):
    """A file or directory that cannot be read; its text says why."""


class HostFiles(Protocol):
    """The files of a host. ``read`` and ``names`` raise UnreadableError."""

    def read(self, path: str, limit: int) -> bytes:
        """Return the contents of a regular file of at most ``limit`` bytes."""

    def names(self, directory: str, limit: int) -> list[str]:
        """Return the names in a directory, at most ``limit``, sorted."""

    def kind(self, path: str) -> Kind:
        """Return what a path leads to."""

    def real(self, path: str) -> str:
        """Return a path with all links followed, as far as it exists."""


class Sources:
    """The configuration of a host, as far as the limits allow; collects remarks."""

    def __init__(self, files: HostFiles) -> None:
        self.files = files
        self.remarks: list[Remark] = []
        self._open: list[str] = []
        self._texts: dict[str, str | None] = {}
        self._inclusions = self._bytes = self._names = 0

    def remark(self, at: At, what: str, fix: str = "") -> None:
        """Add a remark, once."""
        found = Remark(at=at, what=what, fix=fix)
        if found not in self.remarks and len(self.remarks) < MAX_REMARKS:
            self.remarks.append(found)

    @contextmanager
    def opened(self, path: str, by: At) -> Iterator[str | None]:
        """Yield the text of a file that is included at ``by``; None, with a remark, if it is not read."""
        real = self.files.real(path)
        text = self._text(path, real, by)
        self._open.append(real)
        try:
            yield text
        finally:
            self._open.pop()

    def _text(self, path: str, real: str, by: At) -> str | None:
        if real in self._open:
            self.remark(by, f"includes itself: {path}")
            return None
        if len(self._open) >= MAX_DEPTH:
            self.remark(by, f"{path} is not read: files include each other {MAX_DEPTH} levels deep")
            return None
        self._inclusions += 1
        if self._inclusions > MAX_INCLUSIONS:
            if self._inclusions == MAX_INCLUSIONS + 1:
                self.remark(At(path), f"is not read, nor are further files: {MAX_INCLUSIONS} are included before")
            return None
        if self._bytes > MAX_BYTES:
            return None
        if real not in self._texts:
            self._texts[real] = self._decoded(path, by)
        text = self._texts[real]
        self._bytes += len(text or "")
        if self._bytes > MAX_BYTES:
            self.remark(At(path), f"is not read, nor are further files: over {MAX_BYTES} bytes of configuration")
            return None
        return text

    @property
    def is_exhausted(self) -> bool:
        """Whether a limit is reached, so that nothing further is read."""
        return self._inclusions > MAX_INCLUSIONS or self._bytes > MAX_BYTES

    def _decoded(self, path: str, by: At) -> str | None:
        try:
            data = self.files.read(path, MAX_FILE)
        except UnreadableError as error:
            self.remark(by, f"cannot read {path}: {error}")
            return None
        if b"\0" in data:
            self.remark(by, f"cannot read {path}: it is not text")
            return None
        return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")

    def matching(self, pattern: str, by: At) -> list[str]:
        """Return the paths that an absolute pattern with ``*``, ``?`` and ``[…]`` matches, sorted."""
        found = ["/"]
        for part in filter(None, pattern.split("/")):
            if not _MAGIC.search(part):
                found = [posixpath.join(path, part) for path in found]
                continue
            regex, hidden = re.compile(translate(part)), part.startswith(".")
            found = [
                posixpath.join(path, name)
                for path in found
                for name in self.listed(path, by)
                if (hidden or not name.startswith(".")) and regex.match(name)
            ]
        return [path for path in found if self.files.kind(path) is not Kind.MISSING]

    def included(self, pattern: str, by: At) -> Sequence[str]:
        """Return the paths that an include directive means: a pattern, or one path whether it exists or not."""
        return self.matching(pattern, by) if _MAGIC.search(pattern) else [pattern]

    def listed(self, directory: str, by: At) -> list[str]:
        """Return the names in a directory, sorted; empty, with a remark, if it is not read."""
        if self.files.kind(directory) is not Kind.DIR:
            return []
        left = MAX_NAMES - self._names
        if left <= 0:
            self.remark(by, f"{directory} is not searched: {MAX_NAMES} names are compared before")
            return []
        try:
            names = self.files.names(directory, left)
        except UnreadableError as error:
            self.remark(by, f"cannot read {directory}: {error}")
            return []
        self._names += len(names)
        return names
