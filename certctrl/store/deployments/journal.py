"""Write-ahead journal of deployments to explicit destinations.

One file per deployment, with two records. ``plan`` is durable before the first temporary file exists, so that no crash
leaves a private key in an unknown place. ``armed`` is durable once all temporary files and backups are, and before the
first rename: from then on the deployment can be completed or rolled back after any failure. Rolling back needs no third
record: the contents of the destinations show its progress.

    plan → temporaries and backups → armed → renames → (verified) → backups removed → journal removed

A file that cannot be replaced is overwritten after the renames; its new and old bytes are in the journal's directory.

The contents of a destination determine its state: *old*, *new*, or neither; in the last case it was changed by others
and is kept. The journal contains hashes and names, but no contents.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from certctrl import lean
from certctrl.errors import DiskError, StateCorruptError
from certctrl.model.paths import path_fault
from certctrl.store import decode
from certctrl.store.deployments.generation_files import sync_all
from certctrl.store.deployments.in_place import Overwrite, is_mix, overwrite
from certctrl.store.disk.atomic import is_temp
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.disk.safe_path import IN_PLACE, MOUNTED, DestinationFact, facts_at, open_parent, read_at
from certctrl.store.layout import SECRET_MODE, ConfigDir
from certctrl.store.structure import Mismatch, strict_converter, structure

SUFFIX = ".jsonl"
_LIMIT = 16 * 1024 * 1024


@lean.frozen
class FileState:
    """Contents and metadata of a file, for comparison."""

    sha256: str
    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, found: DestinationFact) -> FileState:
        """Return the state of a file that was found."""
        return cls(found.sha256 or "", found.mode or 0, found.uid or 0, found.gid or 0)


@lean.frozen(kw_only=True)
class Entry:
    """One destination of a deployment."""

    path: str
    temp: str
    """Name of the new file until it is renamed, in the same directory; if ``in_place``, in that of the journal."""
    backup: str
    """Name, next to ``temp``, of the copy of the old file; unused if ``old`` is None."""
    old: FileState | None
    new: FileState
    owner: int | None = None
    """The user who may own the directory, besides root and the current user."""
    in_place: bool = False
    """Whether the old file is overwritten instead of replaced."""
    helper: bool = False
    """Whether the root helper writes the file, because the agent cannot."""

    @property
    def is_sound(self) -> bool:
        """Whether an entry from a file names a plain path, and temporary files as the agent makes them."""
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
        rows: list[dict[str, Any]] = strict_converter().unstructure(list(entries))
        record = {"plan": [_for_earlier_releases(row) for row in rows]}
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
        """Make the records of a killed process durable: actions based on them must not outlive them."""
        with closing(self._fs, self._fs.open_file(self._layout.journal / self.name)) as handle:
            self._fs.fsync(handle)

    def remove(self) -> None:
        """Remove the journal; idempotent. The temporary files and backups must be removed before."""
        path = self._layout.journal / self.name
        if self._fs.lstat(path) is not None:
            self._fs.unlink(path)

    def load(self) -> tuple[list[Entry], bool]:
        """Return the entries and whether the journal is armed; without entries, no file was created yet.

        Raises StateCorruptError if the plan is unreadable although files may exist.
        """
        path = str(self._layout.journal / self.name)
        fix = f"check the files it names, then remove {path}"
        with closing(self._fs, self._fs.open_file(path)) as handle:
            first, _, rest = self._fs.read(handle, _LIMIT).partition(b"\n")
        try:
            raw = json.loads(first)
            if raw[decode.VERSION_KEY] > decode.VERSION:
                raise decode.of_later_release(path, raw[decode.VERSION_KEY])
            plan = structure(tuple[Entry, ...], raw["plan"])
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


def _for_earlier_releases(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the keys that they do not know, if they need not know them."""
    return {name: value for name, value in row.items() if value or name not in ("in_place", "helper")}


# --- steps of a running deployment and of recovery ---------------------------------------------------------


class Place(NamedTuple):
    """An entry and the open directories of its files."""

    entry: Entry
    parent: Handle
    """The directory of the destination."""
    side: Handle
    """The directory of the new file and the backup."""


def observe(fs: Fs, place: Place) -> DestinationFact:
    """Return the current state of the destination."""
    return facts_at(fs, place.parent, Path(place.entry.path), in_place=place.entry.in_place)


def parent_of(fs: Fs, entry: Entry) -> Handle:
    """Open the directory of an entry, as `open_parent` does."""
    return open_parent(fs, Path(entry.path), owner=entry.owner)


def can_be_new(fs: Fs, place: Place, found: DestinationFact) -> bool:
    """Return whether an old or half-written destination can get its new file."""
    entry = place.entry
    if not (entry.is_old(found) or (entry.in_place and _is_ours(fs, place, found))):
        return False
    staged = _read_aside(fs, place, entry.temp)
    return staged is not None and hashlib.sha256(staged).hexdigest() == entry.new.sha256


def put_new(fs: Fs, places: Sequence[Place]) -> None:
    """Give destinations their new files, one immediately after the other. Raises DiskError.

    New names are not durable yet.
    """
    overwrites = [new for place in places if place.entry.in_place and (new := _new(fs, place)) is not None]
    for place in places:
        if not place.entry.in_place:
            rename_new(fs, place)
    overwrite(fs, overwrites)


def sync_in_place(fs: Fs, places: Sequence[Place]) -> None:
    """Make overwritten files durable, before the copies of their bytes are removed. Raises DiskError."""
    for place in places:
        if place.entry.in_place:
            with closing(fs, fs.open_file(Path(place.entry.path).name, at=place.parent)) as handle:
                fs.fsync(handle)


def rename_new(fs: Fs, place: Place) -> None:
    """Rename the new file into place. Raises DiskError."""
    path = place.entry.path
    try:
        fs.rename(place.entry.temp, Path(path).name, at=place.parent)
    except DiskError as error:
        if error.errno != errno.EBUSY:
            raise
        raise DiskError(f"{path} {MOUNTED}", path=path, errno=errno.EBUSY, fix=IN_PLACE) from error


def restore_old(fs: Fs, places: Sequence[Place]) -> list[DiskError]:
    """Replace the new files by the old ones, keep any other files, and return the errors.

    Overwritten files are restored together or not at all.
    """
    faults, overwrites = list[DiskError](), list[Overwrite]()
    for place in places:
        try:
            if not place.entry.in_place:
                _rename_old(fs, place)
            elif (old := _old(fs, place)) is not None:
                overwrites.append(old)
        except DiskError as error:
            faults.append(error)
    try:
        overwrite(fs, overwrites)
    except DiskError as error:
        faults.append(error)
    return faults


def _rename_old(fs: Fs, place: Place) -> None:
    entry, name = place.entry, Path(place.entry.path).name
    if not entry.is_new(observe(fs, place)):
        return
    if entry.old is None:
        fs.unlink(name, at=place.parent)
    elif fs.lstat(entry.backup, at=place.side) is not None:  # otherwise it was verified, and its backup removed
        fs.rename(entry.backup, name, at=place.parent)


def _new(fs: Fs, place: Place) -> Overwrite | None:
    """Return the overwrite of an old file by the new one; None if that was verified and the copies removed."""
    found, staged = observe(fs, place), _read_aside(fs, place, place.entry.temp)
    if staged is None:
        return None
    if not (place.entry.is_new(found) or _is_ours(fs, place, found)):
        path = place.entry.path
        raise DiskError(f"{path} was changed while it was to be written", path=path, fix="try again")
    return _overwrite(place, found, staged, place.entry.new)


def _old(fs: Fs, place: Place) -> Overwrite | None:
    """Return the overwrite of a new file by the old one; None if others changed it.

    A file with the old contents is only made durable: a killed process may have restored it.
    """
    found, kept, old = observe(fs, place), _read_aside(fs, place, place.entry.backup), place.entry.old
    if old is None or kept is None or not _is_ours(fs, place, found):
        return None
    if FileState.of(found) == old and found.refusal is not None:
        return None
    return _overwrite(place, found, kept, old)


def _is_ours(fs: Fs, place: Place, found: DestinationFact) -> bool:
    """Return whether an overwritten file has old bytes, new bytes, or a mix of them."""
    old, new = _read_aside(fs, place, place.entry.backup), _read_aside(fs, place, place.entry.temp)
    return found.kind is FileKind.FILE and old is not None and new is not None and is_mix(found.data, old, new)


def _overwrite(place: Place, found: DestinationFact, data: bytes, wanted: FileState) -> Overwrite:
    if found.refusal is not None:
        raise DiskError(found.refusal, path=place.entry.path, fix=f"check {place.entry.path}")
    return Overwrite(place.parent, found, data, wanted.mode, wanted.uid, wanted.gid)


def _read_aside(fs: Fs, place: Place, name: str) -> bytes | None:
    """Return the bytes of a new file or backup; None if it does not exist."""
    found = fs.lstat(name, at=place.side)
    return None if found is None or found.kind is not FileKind.FILE else read_at(fs, place.side, name)


def drop_leftovers(fs: Fs, entry: Entry, side: Handle) -> bool:
    """Remove the new file that was not renamed, and the backup; return whether either existed."""
    dropped = False
    for name in (entry.temp, entry.backup):
        if fs.lstat(name, at=side) is not None:
            fs.unlink(name, at=side)
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
