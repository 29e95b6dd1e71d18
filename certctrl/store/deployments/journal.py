"""Journal: what a deployment to explicit destinations is about to do, written down before it does it.

One file per deployment, two records. ``plan`` is durable before the first temporary file exists, so that no
crash leaves a private key in a place nobody remembers. ``armed`` is durable after all temporary files and
backups are, and before the first rename: from then on the deployment can be finished or taken back, whatever
happens. A third record for "taking back" is not needed: what each destination holds says how far that came.

    plan → temporaries and backups → armed → renames → (proven) → backups removed → journal removed

What each entry holds is told by content: a destination is *old*, *new*, or neither, which means somebody else
wrote it since; then it is theirs, and stays as it is. The journal holds hashes and names, no contents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import attrs

from certctrl.errors import StateCorruptError
from certctrl.store import decode
from certctrl.store.deployments.generation_files import sync_all
from certctrl.store.disk.atomic import adopt_owner
from certctrl.store.disk.fs import Fs, Handle, closing
from certctrl.store.disk.safe_path import DestinationFact, facts_at, open_parent, read_at
from certctrl.store.layout import SECRET_MODE, ConfigDir
from certctrl.store.structure import Mismatch, strict_converter, structure

SUFFIX = ".jsonl"
_LIMIT = 16 * 1024 * 1024


@attrs.frozen
class Print:
    """What a file is, for comparing."""

    sha256: str
    mode: int
    uid: int
    gid: int


@attrs.frozen(kw_only=True)
class Entry:
    """One destination of a deployment."""

    path: str
    temp: str
    """Name beside the destination that holds the new file until it is renamed."""
    backup: str
    """Name beside the destination that holds a copy of the old file; there is none when ``old`` is None."""
    old: Print | None
    new: Print
    owner: int | None = None
    """The user whose directory it may be."""

    def is_new(self, found: DestinationFact) -> bool:
        """Return whether the destination holds what this deployment wrote."""
        return self._is(self.new, found)

    def is_old(self, found: DestinationFact) -> bool:
        """Return whether the destination holds what was there before."""
        return found.kind == "missing" if self.old is None else self._is(self.old, found)

    def _is(self, wanted: Print, found: DestinationFact) -> bool:
        if found.kind != "file" or found.sha256 != wanted.sha256:
            return False
        if self.old is None or self.old.sha256 != self.new.sha256:
            return True
        return (found.mode, found.uid, found.gid) == (wanted.mode, wanted.uid, wanted.gid)


class Journal:
    """The file of one deployment."""

    def __init__(self, fs: Fs, layout: ConfigDir, name: str) -> None:
        self._fs = fs
        self._layout = layout
        self.name = name

    def plan(self, entries: Sequence[Entry]) -> None:
        """Write down what is going to be made, durably."""
        record = {"plan": strict_converter().unstructure(list(entries))}
        with closing(self._fs, self._fs.open_dir(self._layout.journal)) as parent:
            with closing(self._fs, self._fs.create(self.name, SECRET_MODE, at=parent)) as handle:
                adopt_owner(self._fs, handle, parent)
                self._fs.write(handle, decode.to_json(record))
                self._fs.fsync(handle)
            self._fs.fsync(parent)

    def arm(self) -> None:
        """Write down that everything is in place, durably: this is the commit point."""
        with closing(self._fs, self._fs.open_append(self._layout.journal / self.name, SECRET_MODE)) as handle:
            self._fs.write(handle, decode.to_json({"armed": True}))
            self._fs.fsync(handle)

    def settle(self) -> None:
        """Make durable what a killed process wrote and did not sync: what is done on its word must not outlive it."""
        with closing(self._fs, self._fs.open_file(self._layout.journal / self.name)) as handle:
            self._fs.fsync(handle)

    def remove(self) -> None:
        """Forget the deployment; doing it twice is nothing. What it left beside destinations must be gone before."""
        path = self._layout.journal / self.name
        if self._fs.lstat(path) is not None:
            self._fs.unlink(path)

    def load(self) -> tuple[list[Entry], bool]:
        """Return the entries and whether it is armed; no entries: nothing was made yet.

        Raises StateCorruptError when a plan that was carried out cannot be read.
        """
        path = str(self._layout.journal / self.name)
        fix = f"look at the files it names, then remove {path}"
        with closing(self._fs, self._fs.open_file(path)) as handle:
            first, _, rest = self._fs.read(handle, _LIMIT).partition(b"\n")
        try:
            plan = structure(tuple[Entry, ...], json.loads(first)["plan"])
        except (ValueError, TypeError, KeyError, Mismatch, RecursionError):
            if rest:
                raise StateCorruptError(f"{path} is damaged", path=path, fix=fix) from None
            return [], False  # torn before it was durable: so nothing was made after it
        return list(plan), _is_armed(rest)


def _is_armed(rest: bytes) -> bool:
    try:
        return bool(json.loads(rest)["armed"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False  # torn before it was durable: so nothing was renamed after it


# --- moving between old and new: shared by a running deployment and by recovery ---------------------------


def look(fs: Fs, entry: Entry, parent: Handle) -> DestinationFact:
    """Return what the destination holds now."""
    return facts_at(fs, parent, Path(entry.path))


def parent_of(fs: Fs, entry: Entry) -> Handle:
    """Open the directory of an entry, on the guarded way."""
    return open_parent(fs, Path(entry.path), owner=entry.owner)


def has(fs: Fs, parent: Handle, name: str, wanted: Print) -> bool:
    """Return whether a temporary file or backup is there, whole."""
    found = fs.lstat(name, at=parent)
    if found is None or found.kind != "file":
        return False
    data, _ = read_at(fs, parent, name)
    return hashlib.sha256(data).hexdigest() == wanted.sha256


def put_new(fs: Fs, entry: Entry, parent: Handle) -> None:
    """Rename the new file into place, unless it is there."""
    if not entry.is_new(look(fs, entry, parent)):
        fs.rename(entry.temp, Path(entry.path).name, at=parent)


def put_old(fs: Fs, entry: Entry, parent: Handle) -> None:
    """Bring the old file back where the new one is; where something else is, it stays."""
    if not entry.is_new(look(fs, entry, parent)):
        return
    name = Path(entry.path).name
    if entry.old is None:
        fs.unlink(name, at=parent)
    elif fs.lstat(entry.backup, at=parent) is not None:  # else it was proven, and its backup given up
        fs.rename(entry.backup, name, at=parent)


def drop_leftovers(fs: Fs, entry: Entry, parent: Handle) -> bool:
    """Remove temporary file and backup; return whether there was any."""
    dropped = False
    for name in (entry.temp, entry.backup):
        if fs.lstat(name, at=parent) is not None:
            fs.unlink(name, at=parent)
            dropped = True
    return dropped


def sync_parents(fs: Fs, parents: Sequence[Handle]) -> None:
    """Make the renames in several directories durable, each once, together where they share a file system."""
    by_device: dict[int, dict[int, Handle]] = {}
    for handle in parents:
        found = fs.fstat(handle)
        by_device.setdefault(found.dev, {})[found.ino] = handle
    for handles in by_device.values():
        sync_all(fs, list(handles.values()))


def journals(fs: Fs, layout: ConfigDir) -> list[Journal]:
    """Return the journals of deployments that did not end, oldest first."""
    with closing(fs, fs.open_dir(layout.journal)) as parent:
        found = [(name, fs.lstat(name, at=parent)) for name in fs.listdir(parent) if name.endswith(SUFFIX)]
    ages = {name: (facts.mtime_ns, name) for name, facts in found if facts is not None}
    return [Journal(fs, layout, name) for name in sorted(ages, key=ages.__getitem__)]
