"""Write-ahead journal of deployments to explicit destinations.

One file per deployment, with two records. ``plan`` is durable before the first temporary file exists, so that no crash
leaves a private key in an unknown place. ``armed`` is durable after all temporary files and backups are, and before
the first rename: from then on the deployment can be completed or rolled back after any failure. Rolling back needs no
third record: the contents of each destination show how far it came.

    plan → temporaries and backups → armed → renames → (verified) → backups removed → journal removed

The state of a destination is determined by its contents: *old*, *new*, or neither; in the last case it was changed by
others and is kept. The journal contains hashes and names, no contents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import attrs

from certctrl.errors import StateCorruptError
from certctrl.model.paths import path_fault
from certctrl.store import decode
from certctrl.store.deployments.generation_files import sync_all
from certctrl.store.disk.atomic import is_temp
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.disk.safe_path import DestinationFact, facts_at, open_parent, read_at
from certctrl.store.layout import SECRET_MODE, ConfigDir
from certctrl.store.structure import Mismatch, strict_converter, structure

SUFFIX = ".jsonl"
_LIMIT = 16 * 1024 * 1024


@attrs.frozen
class FileState:
    """Contents and metadata of a file, for comparison."""

    sha256: str
    mode: int
    uid: int
    gid: int


@attrs.frozen(kw_only=True)
class Entry:
    """One destination of a deployment."""

    path: str
    temp: str
    """Name, in the same directory, of the new file until it is renamed."""
    backup: str
    """Name, in the same directory, of the copy of the old file; unused if ``old`` is None."""
    old: FileState | None
    new: FileState
    owner: int | None = None
    """The user who may own the directory, besides root and the current user."""

    @property
    def is_sound(self) -> bool:
        """Whether an entry that was read names a plain path, and temporary files as the agent makes them."""
        temps = (self.temp, self.backup)
        return not path_fault(self.path) and all(is_temp(name) and "/" not in name for name in temps)

    def is_new(self, found: DestinationFact) -> bool:
        """Return whether the destination has the new file."""
        return self._matches(self.new, found)

    def is_old(self, found: DestinationFact) -> bool:
        """Return whether the destination has the old file, or none if there was none."""
        return found.kind is FileKind.MISSING if self.old is None else self._matches(self.old, found)

    def _matches(self, expected: FileState, found: DestinationFact) -> bool:
        if found.kind is not FileKind.FILE or found.sha256 != expected.sha256:
            return False
        if self.old is None or self.old.sha256 != self.new.sha256:
            return True
        return (found.mode, found.uid, found.gid) == (expected.mode, expected.uid, expected.gid)


class Journal:
    """The journal file of one deployment."""

    def __init__(self, fs: Fs, layout: ConfigDir, name: str) -> None:
        self._fs = fs
        self._layout = layout
        self.name = name

    def plan(self, entries: Sequence[Entry]) -> None:
        """Record the entries durably."""
        record = {"plan": strict_converter().unstructure(list(entries))}
        with closing(self._fs, self._fs.open_dir(self._layout.journal)) as parent:
            with closing(self._fs, self._fs.create(self.name, SECRET_MODE, at=parent)) as handle:
                self._fs.write(handle, decode.to_json(record))
                self._fs.fsync(handle)
            self._fs.fsync(parent)

    def arm(self) -> None:
        """Record durably that all temporary files are in place: this is the commit point."""
        with closing(self._fs, self._fs.open_append(self._layout.journal / self.name, SECRET_MODE)) as handle:
            self._fs.write(handle, decode.to_json({"armed": True}))
            self._fs.fsync(handle)

    def sync(self) -> None:
        """Make durable what a killed process wrote but did not sync: actions based on it must not outlive it."""
        with closing(self._fs, self._fs.open_file(self._layout.journal / self.name)) as handle:
            self._fs.fsync(handle)

    def remove(self) -> None:
        """Remove the journal; idempotent. The temporary files and backups must be removed before."""
        path = self._layout.journal / self.name
        if self._fs.lstat(path) is not None:
            self._fs.unlink(path)

    def load(self) -> tuple[list[Entry], bool]:
        """Return the entries and whether the journal is armed; no entries: no file was created yet.

        Raises StateCorruptError if the plan is unreadable although files may exist.
        """
        path = str(self._layout.journal / self.name)
        fix = f"check the files it names, then remove {path}"
        with closing(self._fs, self._fs.open_file(path)) as handle:
            first, _, rest = self._fs.read(handle, _LIMIT).partition(b"\n")
        try:
            plan = structure(tuple[Entry, ...], json.loads(first)["plan"])
            if not all(entry.is_sound for entry in plan):
                raise StateCorruptError(f"{path} names files that the agent does not write", path=path, fix=fix)
        except (ValueError, TypeError, KeyError, Mismatch, RecursionError):
            if rest:
                raise StateCorruptError(f"{path} is damaged", path=path, fix=fix) from None
            return [], False  # torn before it was durable: nothing was created after it
        return list(plan), _is_armed(rest)


def _is_armed(rest: bytes) -> bool:
    try:
        return bool(json.loads(rest)["armed"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False  # torn before it was durable: nothing was renamed after it


# --- steps of a running deployment and of recovery ---------------------------------------------------------


def observe(fs: Fs, entry: Entry, parent: Handle) -> DestinationFact:
    """Return what is at the destination now."""
    return facts_at(fs, parent, Path(entry.path))


def parent_of(fs: Fs, entry: Entry) -> Handle:
    """Open the directory of an entry, as `open_parent` does."""
    return open_parent(fs, Path(entry.path), owner=entry.owner)


def is_intact(fs: Fs, parent: Handle, name: str, expected: FileState) -> bool:
    """Return whether a temporary file or backup exists with the expected contents."""
    found = fs.lstat(name, at=parent)
    if found is None or found.kind is not FileKind.FILE:
        return False
    return hashlib.sha256(read_at(fs, parent, name)).hexdigest() == expected.sha256


def rename_new(fs: Fs, entry: Entry, parent: Handle) -> None:
    """Rename the new file into place, unless it already is there."""
    if not entry.is_new(observe(fs, entry, parent)):
        fs.rename(entry.temp, Path(entry.path).name, at=parent)


def restore_old(fs: Fs, entry: Entry, parent: Handle) -> None:
    """Replace the new file by the old one; any other file is kept."""
    if not entry.is_new(observe(fs, entry, parent)):
        return
    name = Path(entry.path).name
    if entry.old is None:
        fs.unlink(name, at=parent)
    elif fs.lstat(entry.backup, at=parent) is not None:  # otherwise it was verified, and its backup removed
        fs.rename(entry.backup, name, at=parent)


def drop_leftovers(fs: Fs, entry: Entry, parent: Handle) -> bool:
    """Remove temporary file and backup; return whether either existed."""
    dropped = False
    for name in (entry.temp, entry.backup):
        if fs.lstat(name, at=parent) is not None:
            fs.unlink(name, at=parent)
            dropped = True
    return dropped


def sync_parents(fs: Fs, parents: Sequence[Handle]) -> None:
    """Make renames in several directories durable, each directory once, grouped by file system."""
    by_device: dict[int, dict[int, Handle]] = {}
    for handle in parents:
        found = fs.fstat(handle)
        by_device.setdefault(found.dev, {})[found.ino] = handle
    for handles in by_device.values():
        sync_all(fs, list(handles.values()))


def journals(fs: Fs, layout: ConfigDir) -> list[Journal]:
    """Return the journals of unfinished deployments, oldest first."""
    with closing(fs, fs.open_dir(layout.journal)) as parent:
        found = [(name, fs.lstat(name, at=parent)) for name in fs.listdir(parent) if name.endswith(SUFFIX)]
    ages = {name: (facts.mtime_ns, name) for name, facts in found if facts is not None}
    return [Journal(fs, layout, name) for name in sorted(ages, key=ages.__getitem__)]
