"""The model disk of a simulated host: it can be full or faulty, and be cut off at any operation.

`ModelFs` fails only for changes; here reads fail as well. A killed process keeps writing to the disk that was cut
off, which no other process sees.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from disk_changes import Change, Node
from modeldisk import ModelFs

from certctrl.store.disk.fs import Handle, disk_error

NEEDS_SPACE = ("create", "write", "mkdir", "symlink", "allocate")

MOST_PENDING = 120
"""Changes that the kernel caches before it writes them back."""


class SimulatedDisk(ModelFs):
    """A ModelFs with faults."""

    trouble: int = 0
    """errno of operations that need space (ENOSPC, EDQUOT) or of all changes (EROFS); 0 without a fault."""
    full: str = ""
    """Directory of another file system that is full."""
    rotten: float = 0.0
    """Share of reads and syncs that fail with EIO."""
    chance: random.Random
    cut: Callable[[SimulatedDisk], None] | None = None
    """Called once, when ``cut_in`` more changes have begun."""
    cut_in: int = -1
    synced: int = 0
    """Counter that grows when the durable state changes."""
    switched: Callable[[SimulatedDisk, str], None] | None = None
    """Called with a name after its link in ``certs/.live`` was set or removed."""

    def fault_of(self, verb: str) -> int | None:
        """Return the errno of an operation now; None if it succeeds."""
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
        if self.full and verb in NEEDS_SPACE and path.startswith(f"{self.full}/"):
            raise disk_error(verb, path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if (self.trouble or self.rotten) and (code := self.fault_of(verb)):
            raise disk_error(verb, path, OSError(code, os.strerror(code)))

    def open_file(self, path: str | Path, at: Handle | None = None) -> Handle:
        handle = super().open_file(path, at)
        if self.rotten and self.fault_of("read"):
            self.close(handle)
            raise disk_error("read", str(path), OSError(errno.EIO, os.strerror(errno.EIO)))
        return handle

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        super().rename(old, new, at)
        self._report_switch(new, at)

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        super().unlink(path, at)
        self._report_switch(path, at)

    def _report_switch(self, name: str | Path, at: Handle | None) -> None:
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
        """Make everything durable, as a kernel does after a while."""
        self.synced += 1
        self.base, self.pending = dict(self.now), []

    def successor(self, other: ModelFs) -> SimulatedDisk:
        """Return ``other`` as the disk of the next process, with the faults of this one."""
        disk = SimulatedDisk(uid=self._uid, syncfs=self.can_syncfs)
        disk.base, disk.now, disk.pending = other.base, other.now, other.pending
        disk._count_from(10_000 + max(disk.now | disk.base))
        disk.trouble, disk.rotten, disk.chance, disk.full = self.trouble, self.rotten, self.chance, self.full
        return disk

    def crashed(self, *, power: bool) -> SimulatedDisk:
        """Return the disk after a kill (everything written) or a power cut (any legal part of it)."""
        if not power:
            return self.successor(self.copy())
        states = list(self.crash_states(6, self.chance))
        return self.successor(self.chance.choice(states))


def file_in(nodes: dict[int, Node], path: str | Path) -> bytes | None:
    """Return the bytes of a file in the nodes of a disk (``now`` or ``base``), links followed; None without one."""
    here, trail, steps = 1, list[int](), str(path).split("/")[:0:-1]  # the next step last
    for _ in range(100):
        node = nodes.get(here)
        if node is None:
            return None
        if not steps:
            return node.data if node.kind == "file" else None
        name = steps.pop()
        if name == "..":
            here = trail.pop() if trail else 1
            continue
        child = node.entries.get(name)
        found = nodes.get(child or 0)
        if child is None or found is None:
            return None
        if found.kind == "link":
            steps += found.text.split("/")[::-1]
            if found.text.startswith("/"):
                here, trail = 1, []
            continue
        trail.append(here)
        here = child
    return None


def link_text(nodes: dict[int, Node], path: str | Path) -> str | None:
    """Return the text of a link whose parents are real directories; None without one."""
    here = nodes.get(1)
    for name in str(path).split("/")[1:]:
        child = None if here is None else here.entries.get(name)
        here = None if child is None else nodes.get(child)
    return here.text if here is not None and here.kind == "link" else None


def names_in(nodes: dict[int, Node], path: str | Path) -> list[str]:
    """Return the names in a directory; empty if it does not exist."""
    here = nodes.get(1)
    for name in str(path).split("/")[1:]:
        child = None if here is None else here.entries.get(name)
        here = None if child is None else nodes.get(child)
    return sorted(here.entries) if here is not None else []
