"""The model disk of a simulated host: full, broken, slow, and cut off at any operation.

`ModelFs` fails only where something is changed; here reading fails as well. Whoever still holds a disk that was cut
off (the process that was killed) goes on writing to what nobody will ever see.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from modeldisk import Change, ModelFs, Node

from certctrl.store.disk.fs import Handle, disk_error

NEEDS_SPACE = ("create", "write", "mkdir", "symlink", "allocate")

MOST_PENDING = 120
"""Changes that a kernel keeps to itself."""


class SimulatedDisk(ModelFs):
    """A ModelFs with bad times."""

    trouble: int = 0
    """errno of everything that needs space (ENOSPC, EDQUOT), or that changes anything (EROFS); 0: all is well."""
    rotten: float = 0.0
    """Share of reads and syncs that fail with EIO."""
    chance: random.Random
    cut: Callable[[SimulatedDisk], None] | None = None
    """Called once, when ``cut_in`` more changing operations have been begun."""
    cut_in: int = -1
    synced: int = 0
    """Changes with what is durable."""
    switched: Callable[[SimulatedDisk, str], None] | None = None
    """Called with a name after its link in ``certs/.live`` was set or removed."""

    def ailing(self, verb: str) -> int | None:
        """Return the errno that an operation meets now."""
        if self.trouble == errno.EROFS or (self.trouble and verb in NEEDS_SPACE):
            return self.trouble
        if self.rotten and verb in ("read", "fsync", "syncfs") and self.chance.random() < self.rotten:
            return errno.EIO
        return None

    def _before(self, verb: str, path: str) -> None:
        if self.cut_in >= 0:
            self.cut_in -= 1
            if self.cut_in < 0 and self.cut is not None:
                self.cut(self)
        if (self.trouble or self.rotten) and (code := self.ailing(verb)):
            raise disk_error(verb, path, OSError(code, os.strerror(code)))

    def open_file(self, path: str | Path, at: Handle | None = None) -> Handle:
        handle = super().open_file(path, at)
        if self.rotten and self.ailing("read"):
            self.close(handle)
            raise disk_error("read", str(path), OSError(errno.EIO, os.strerror(errno.EIO)))
        return handle

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        super().rename(old, new, at)
        self._tell(new, at)

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        super().unlink(path, at)
        self._tell(path, at)

    def _tell(self, name: str | Path, at: Handle | None) -> None:
        if self.switched is not None and at is not None and at.path.endswith("/.live") and str(name)[0] != ".":
            self.switched(self, str(name))

    def _make_durable(self, chosen: Callable[[Change], bool]) -> None:
        self.synced += 1
        super()._make_durable(chosen)

    def fsync(self, handle: Handle) -> None:
        super().fsync(handle)
        if len(self.pending) > MOST_PENDING:
            self.write_back()

    def write_back(self) -> None:
        """Let everything reach the disk, as a kernel does after a while."""
        self.synced += 1
        self.base, self.pending = dict(self.now), []

    def heir(self, other: ModelFs) -> SimulatedDisk:
        """Return ``other`` as the disk that the next process finds, in the same condition as this one."""
        disk = SimulatedDisk(uid=self._uid, syncfs=self.can_syncfs)
        disk.base, disk.now, disk.pending = other.base, other.now, other.pending
        disk._count_from(10_000 + max(disk.now | disk.base))
        disk.trouble, disk.rotten, disk.chance = self.trouble, self.rotten, self.chance
        return disk

    def crashed(self, *, power: bool) -> SimulatedDisk:
        """Return what is left after a kill (everything written) or a power cut (any legal part of it)."""
        if not power:
            return self.heir(self.copy())
        states = list(self.crash_states(6, self.chance))
        return self.heir(self.chance.choice(states))


def file_in(nodes: dict[int, Node], path: str | Path) -> bytes | None:
    """Return the bytes at a path of a disk given by its nodes (``now`` or ``base``), links followed; None: nothing."""
    here, trail, steps = 1, list[int](), str(path).split("/")[1:]
    for _ in range(100):
        node = nodes.get(here)
        if node is None:
            return None
        if not steps:
            return node.data if node.kind == "file" else None
        name = steps.pop(0)
        if name == "..":
            here = trail.pop() if trail else 1
            continue
        child = node.entries.get(name)
        found = nodes.get(child or 0)
        if child is None or found is None:
            return None
        if found.kind == "link":
            steps = found.text.split("/") + steps
            if found.text.startswith("/"):
                here, trail = 1, []
            continue
        trail.append(here)
        here = child
    return None


def link_text(nodes: dict[int, Node], path: str | Path) -> str | None:
    """Return the text of the link at a path whose directories are real; None: there is none."""
    here = nodes.get(1)
    for name in str(path).split("/")[1:]:
        child = None if here is None else here.entries.get(name)
        here = None if child is None else nodes.get(child)
    return here.text if here is not None and here.kind == "link" else None


def names_in(nodes: dict[int, Node], path: str | Path) -> list[str]:
    """Return the names in a directory; empty when there is none."""
    here = nodes.get(1)
    for name in str(path).split("/")[1:]:
        child = None if here is None else here.entries.get(name)
        here = None if child is None else nodes.get(child)
    return sorted(here.entries) if here is not None else []
