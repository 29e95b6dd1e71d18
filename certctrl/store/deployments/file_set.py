"""Write several files at explicit destinations as one deployment that can be rolled back.

Renames in several directories cannot be atomic. But they follow each other immediately, and after a crash the next
start completes them or rolls them back: the new file and a copy of the old one are next to the destination before the
first rename, so that neither needs space. Rejected: a backup by renaming the old file (for a moment there is no file),
a backup by hard link (renaming between two names of one file does nothing and leaves both), temporary files elsewhere
(another file system).

A file that cannot be replaced, such as a bind-mounted one, is overwritten on request (`in_place`); its new file and
backup are in the journal's directory, because its own may be read-only or not durable.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import attrs

from certctrl import lean
from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.store.deployments import journal
from certctrl.store.deployments.generation_files import MANY
from certctrl.store.deployments.helped import Helped, planned
from certctrl.store.deployments.in_place import empty
from certctrl.store.deployments.journal import Entry, FileState, Journal, Place
from certctrl.store.disk.atomic import temp_name, write_new
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.disk.helper import FileHelper
from certctrl.store.disk.safe_path import (
    SIZE_LIMIT,
    DestinationFact,
    NoDirectoryError,
    facts_at,
    open_parent,
    read_at,
)
from certctrl.store.layout import SECRET_MODE, ConfigDir

CHANGED = "it is not the file that was put there"
"""Why `remove_unchanged` keeps a file whose contents have changed."""


@lean.frozen(kw_only=True)
class FileWrite:
    """One file to write."""

    path: Path = attrs.field(converter=Path)
    data: bytes = attrs.field(repr=False)
    mode: int
    uid: int | None = None
    """None: the old file's, otherwise the current user."""
    gid: int | None = None
    in_place: bool = False
    """Whether an existing file is written over, not replaced."""
    helper: bool = False
    """Whether the root helper writes it; ``uid`` and ``gid`` are then those of its rule."""


class _PlannedFile(NamedTuple):
    place: Place
    data: bytes
    found: DestinationFact
    """The checked destination, whose bytes and attributes go into the backup."""


class FileSet:
    """One deployment: `begin`, `commit`, then `close` once verified, or `undo`. Methods block on the disk.

    Between `begin` and `commit` it keeps neither directories open nor contents in memory: a thousand may wait for one
    switch.
    """

    def __init__(
        self, layout: ConfigDir, fs: Fs, *, left: set[str] | None = None, helper: FileHelper | None = None
    ) -> None:
        """``left`` collects the names of journals whose files a failing disk did not remove (`clear_up`)."""
        self._layout = layout
        self._fs = fs
        self._helper = helper
        self._left = set[str]() if left is None else left
        self._stack = ExitStack()
        self._parents: dict[Path, Handle] = {}
        self._entries: list[Entry] = []
        self._journal: Journal | None = None

    def begin(self, writes: Sequence[FileWrite]) -> None:
        """Write the new files and copies of the old ones next to the destinations, durably; nothing live changes.

        Destinations that already are as requested are skipped. Raises PolicyRefusedError for an unsafe destination,
        DiskError; then nothing is left behind.
        """
        try:
            files = [file for write in writes if not write.helper and (file := self._plan_file(write)) is not None]
            helped = [(entry, write) for write in writes if write.helper and (entry := self._plan_helped(write))]
            entries = [*(file.place.entry for file in files), *(entry for entry, _ in helped)]
            if len({entry.path for entry in entries}) != len(entries):
                raise ValueError("a destination occurs twice in one deployment")
            if entries:
                self._journal = Journal(self._fs, self._layout, f"{self._fs.token()}{journal.SUFFIX}")
                self._journal.plan(entries)
                self._entries = entries
                self._stage_all(files, helped)
            self._close_parents()
        except BaseException:
            self._abandon()
            raise

    def is_current(self) -> bool:
        """Return whether all destinations still are as `begin` found them. Raises DiskError, PolicyRefusedError."""
        try:
            old = all(place.entry.is_old(journal.observe(self._fs, place)) for place in self._places())
            return old and self._helped().are_old()
        finally:
            self._close_parents()

    def commit(self) -> None:
        """Rename all files into place, one immediately after the other, durably.

        Raises DiskError, PolicyRefusedError, after restoring as much as the disk allows; `recover` does the rest.
        """
        if self._journal is None:
            return
        try:
            places = self._places()
            self._journal.arm()
            journal.put_new(self._fs, places)
            self._helped().put_new()
            self._sync_names(places)
        except BaseException:
            self._abandon()
            raise

    def undo(self) -> None:
        """Restore the old files durably and end; files that others changed since are kept. Idempotent.

        Raises DiskError if some cannot be restored; the journal then stays for `recover`.
        """
        places, faults = self._reachable()
        faults += self._helped().restore_old()
        faults += journal.restore_old(self._fs, places[::-1])
        try:
            if places and not faults:
                self._sync_names(places)
        except DiskError as error:
            faults.append(error)
        if faults:
            self._release()
            raise faults[0]
        self.close()

    def close(self) -> None:
        """Remove the copies of the old files and end; idempotent.

        Raises DiskError if they cannot be removed; the journal then stays for `recover`.
        """
        try:
            places, faults = self._reachable()
            dropped = [journal.drop_leftovers(self._fs, place.entry, place.side) for place in places]
            if any(dropped):
                self._sync_names(places)  # otherwise a key could outlive its journal
            faults += self._helped().drop_leftovers()
            if faults:
                raise faults[0]
            if self._journal is not None:
                self._journal.remove()
                self._journal = None
        finally:
            self._release()

    def _places(self) -> list[Place]:
        return [self._place(entry) for entry in self._entries if not entry.helper]

    def _helped(self) -> Helped:
        return Helped(self._helper, self._entries)

    def _place(self, entry: Entry) -> Place:
        """Return an entry with its directories, open. Raises PolicyRefusedError, DiskError."""
        parent = self._parent(Path(entry.path), entry.owner)
        return Place(entry, parent, self._aside() if entry.in_place else parent)

    def _reachable(self) -> tuple[list[Place], list[DiskError]]:
        """Return the entries whose directories exist, and the errors of those that cannot be opened."""
        found, faults = list[Place](), list[DiskError]()
        for entry in (one for one in self._entries if not one.helper):
            try:
                found.append(self._place(entry))
            except NoDirectoryError:
                if entry.in_place:  # otherwise its files are gone with the directory
                    journal.drop_leftovers(self._fs, entry, self._aside())
            except PolicyRefusedError as error:
                faults.append(DiskError(str(error), path=entry.path, fix=error.fix))
            except DiskError as error:
                faults.append(error)
        return found, faults

    def _sync_names(self, places: Sequence[Place]) -> None:
        """Make the names of all new files and backups durable; they are in the directories of the renames."""
        journal.sync_parents(self._fs, [place.side for place in places])

    def _release(self) -> None:
        if self._journal is not None:
            self._left.add(self._journal.name)
        self._entries, self._journal = [], None
        self._close_parents()

    def _close_parents(self) -> None:
        self._parents = {}
        self._stack.close()

    def _abandon(self) -> None:
        with suppress(DiskError):  # the first error is the one to report
            self.undo()

    # --- staging ------------------------------------------------------------------------------------------

    def _plan_file(self, write: FileWrite) -> _PlannedFile | None:
        """Return the file to stage for one destination; None if it already is as requested."""
        parent = self._parent(write.path, write.uid)
        found = facts_at(self._fs, parent, write.path, in_place=write.in_place)
        if found.refusal is not None:
            raise PolicyRefusedError(found.refusal, fix=f"correct {write.path}, or use another path")
        old = FileState.of(found) if found.kind is FileKind.FILE else None
        new = FileState(hashlib.sha256(write.data).hexdigest(), write.mode, *self._owner(write, old))
        if old == new:
            return None
        temp, backup = temp_name(self._fs, write.path.name), temp_name(self._fs, write.path.name)
        in_place = write.in_place and old is not None
        entry = Entry(
            path=str(write.path), temp=temp, backup=backup, old=old, new=new, owner=write.uid, in_place=in_place
        )
        return _PlannedFile(self._place(entry), write.data, found)

    def _plan_helped(self, write: FileWrite) -> Entry | None:
        assert self._helper is not None and write.uid is not None and write.gid is not None
        return planned(self._fs, self._helper, write.path, write.data, write.mode, write.uid, write.gid)

    def _parent(self, path: Path, owner: int | None) -> Handle:
        """Return the open directory of a destination. Raises PolicyRefusedError, DiskError."""
        if path.parent not in self._parents:
            self._keep(path.parent, open_parent(self._fs, path, owner=owner))
        return self._parents[path.parent]

    def _aside(self) -> Handle:
        """Return the directory of copies that are not next to their destination."""
        directory = self._layout.journal
        if directory not in self._parents:
            self._keep(directory, self._fs.open_dir(directory))
        return self._parents[directory]

    def _keep(self, directory: Path, handle: Handle) -> None:
        self._parents[directory] = self._stack.enter_context(closing(self._fs, handle))

    def _owner(self, write: FileWrite, old: FileState | None) -> tuple[int, int]:
        uid, gid = self._fs.uid(), self._fs.gid()
        if old is not None and (uid == 0 or write.in_place):  # only root can give a new file to another user
            uid, gid = old.uid, old.gid
        return (uid if write.uid is None else write.uid), (gid if write.gid is None else write.gid)

    def _stage_all(self, files: Sequence[_PlannedFile], helped: Sequence[tuple[Entry, FileWrite]]) -> None:
        for file in files:
            self._stage(file)
        self._sync_staged()
        for entry, write in helped:
            assert self._helper is not None
            self._helper.stage(entry.path, entry.temp, entry.backup, write.data)

    def _stage(self, file: _PlannedFile) -> None:
        (entry, _, side), old = file.place, file.found
        if entry.in_place:
            private = FileState("", SECRET_MODE, self._fs.uid(), self._fs.gid())
            self._write(side, entry.backup, old.data, private, None)
            self._write(side, entry.temp, file.data, private, None)
            return
        if entry.old is not None:
            self._write(side, entry.backup, old.data, entry.old, old.attributes)
        kept = old.attributes if entry.old is not None else None
        self._write(side, entry.temp, file.data, entry.new, kept)

    def _write(
        self, parent: Handle, name: str, data: bytes, wanted: FileState, kept: Mapping[str, bytes] | None
    ) -> None:
        write_new(self._fs, parent, name, data, mode=wanted.mode, uid=wanted.uid, gid=wanted.gid, kept=kept)

    def _sync_staged(self) -> None:
        """Make all files and their names durable: one syncfs per file system, or one fsync each."""
        places = self._places()
        files = sum(1 if place.entry.old is None else 2 for place in places)
        if files + len(self._parents) >= MANY and self._sync_whole(places):
            return
        for entry, _, side in places:
            for name in (entry.temp, entry.backup)[: 1 if entry.old is None else 2]:
                with closing(self._fs, self._fs.open_file(name, at=side)) as handle:
                    self._fs.fsync(handle)
        self._sync_names(places)

    def _sync_whole(self, places: Sequence[Place]) -> bool:
        devices = {self._fs.fstat(place.side).dev: place.side for place in places}
        return all(self._fs.syncfs(handle) for handle in devices.values())


def remove_unchanged(fs: Fs, path: str, digest: str, owner: int | None = None) -> str:
    """Remove a file durably if its bytes still have the SHA-256; return why it stays, empty if it is gone.

    A mount point, which cannot be removed, is emptied; an empty file counts as gone.
    Refuses symbolic links on the way and in place of the file. Raises DiskError if the file cannot be read,
    PolicyRefusedError for a directory on the way that others can change.
    """
    try:
        parent = open_parent(fs, Path(path), owner=owner)
    except NoDirectoryError:
        return ""
    with closing(fs, parent):
        name = path.rpartition("/")[2]
        found = fs.lstat(name, at=parent)
        if found is None or (found.kind is FileKind.FILE and not found.size):
            return ""
        readable = found.kind is FileKind.FILE and found.size <= SIZE_LIMIT  # the agent writes no larger ones
        if not readable or hashlib.sha256(read_at(fs, parent, name)).hexdigest() != digest:
            return CHANGED
        if found.nlink != 1:
            return f"it has {found.nlink} hard links"
        try:
            fs.unlink(name, at=parent)
        except DiskError as error:
            if error.errno != errno.EBUSY:
                raise
            empty(fs, parent, facts_at(fs, parent, Path(path), in_place=True))  # a bind-mounted file
            return ""
        fs.fsync(parent)
    return ""
