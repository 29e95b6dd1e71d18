"""FileSet: write several files at explicit destinations as one deployment that can be taken back.

Renames at several places cannot be one instant; what can be had is that they are adjacent, that no crash
leaves a key without its certificate, and that nothing is lost on the way (safety.md §4.1, mode B). New file
and copy of the old one both lie beside the destination before the first rename, so that finishing and taking
back need no space. Rejected: a backup by renaming the old file away (a moment without any file), a backup by
hard link (rename between two names of one file does nothing and leaves both), temporary files elsewhere (another
file system).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import attrs

from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.store.deployments import journal
from certctrl.store.deployments.generation_files import MANY
from certctrl.store.deployments.journal import Entry, Journal, Print
from certctrl.store.disk.atomic import temp_name
from certctrl.store.disk.fs import Fs, Handle, closing
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


@attrs.frozen(kw_only=True)
class FileWrite:
    """One file to be written."""

    path: Path = attrs.field(converter=Path)
    data: bytes = attrs.field(repr=False)
    mode: int
    uid: int | None = None
    """None: the old file's, or else ours."""
    gid: int | None = None


class _Job(NamedTuple):
    entry: Entry
    parent: Handle
    data: bytes
    label: bytes | None


class FileSet:
    """One deployment: `begin`, `commit`, then `close` when it is proven or `undo`. Methods block on the disk."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self._layout = layout
        self._fs = fs
        self._stack = ExitStack()
        self._parents: dict[Path, Handle] = {}
        self._jobs: list[_Job] = []
        self._journal: Journal | None = None

    def begin(self, writes: Sequence[FileWrite]) -> None:
        """Put the new files and copies of the old ones beside the destinations, durably; nothing live changes.

        Destinations that are as wanted already are left out. Raises PolicyRefusedError for a destination that
        is not safe to write, DiskError; then nothing is left behind.
        """
        try:
            jobs = [job for write in writes if (job := self._job(write)) is not None]
            if len({job.entry.path for job in jobs}) != len(jobs):
                raise ValueError("a destination is named twice in one deployment")
            if jobs:
                self._journal = Journal(self._fs, self._layout, f"{self._fs.token()}{journal.SUFFIX}")
                self._journal.plan([job.entry for job in jobs])
                self._jobs = jobs
                for job in jobs:
                    self._stage(job)
                self._sync_staged()
        except BaseException:
            self._abandon()
            raise

    def commit(self) -> None:
        """Rename everything into place, one right after the other, durably.

        Raises DiskError; then everything is as before, or as much of it as the disk allows: `recover` does the rest.
        """
        if self._journal is None:
            return
        try:
            self._journal.arm()
            for job in self._jobs:
                self._fs.rename(job.entry.temp, Path(job.entry.path).name, at=job.parent)
            journal.sync_parents(self._fs, list(self._parents.values()))
        except BaseException:
            self._abandon()
            raise

    def undo(self) -> None:
        """Bring the old files back, durably, and end; what somebody else wrote since stays. Twice is nothing.

        Raises DiskError when some cannot be brought back; the journal then stays, and `recover` goes on.
        """
        faults: list[DiskError] = []
        for job in reversed(self._jobs):
            try:
                journal.put_old(self._fs, job.entry, job.parent)
            except DiskError as error:
                faults.append(error)
        try:
            if self._jobs and not faults:
                journal.sync_parents(self._fs, list(self._parents.values()))
        except DiskError as error:
            faults.append(error)
        if faults:
            self._let_go()
            raise faults[0]
        self.close()

    def close(self) -> None:
        """Give up the copies of the old files and end; doing it twice is nothing.

        Raises DiskError when they cannot be removed; the journal then stays, and `recover` removes them.
        """
        try:
            dropped = [journal.drop_leftovers(self._fs, job.entry, job.parent) for job in self._jobs]
            if any(dropped):
                journal.sync_parents(self._fs, list(self._parents.values()))  # else a key could outlive its journal
            if self._journal is not None:
                self._journal.remove()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._jobs, self._parents, self._journal = [], {}, None
        self._stack.close()

    def _abandon(self) -> None:
        with suppress(DiskError):  # the error to see is the first one
            self.undo()

    # --- staging ------------------------------------------------------------------------------------------

    def _job(self, write: FileWrite) -> _Job | None:
        """Look at one destination; None when it is as wanted."""
        parent = self._parent(write)
        found = facts_at(self._fs, parent, write.path)
        if found.refusal is not None:
            raise PolicyRefusedError(found.refusal, fix=f"put a regular file at {write.path}, or nothing")
        old, label = None, None
        if found.kind == "file":
            old = self._print_of(found)
            with closing(self._fs, self._fs.open_file(write.path.name, at=parent)) as handle:
                label = self._fs.label(handle)
        new = Print(hashlib.sha256(write.data).hexdigest(), write.mode, *self._owner(write, old))
        if old == new:
            return None
        temp, backup = temp_name(self._fs, write.path.name), temp_name(self._fs, write.path.name)
        entry = Entry(path=str(write.path), temp=temp, backup=backup, old=old, new=new, owner=write.uid)
        return _Job(entry, parent, write.data, label)

    def _parent(self, write: FileWrite) -> Handle:
        where = write.path.parent
        if where not in self._parents:
            parent = open_parent(self._fs, write.path, owner=write.uid)
            self._parents[where] = self._stack.enter_context(closing(self._fs, parent))
        return self._parents[where]

    @staticmethod
    def _print_of(found: DestinationFact) -> Print:
        return Print(found.sha256 or "", found.mode or 0, found.uid or 0, found.gid or 0)

    def _owner(self, write: FileWrite, old: Print | None) -> tuple[int, int]:
        uid, gid = self._fs.uid(), self._fs.gid()
        if old is not None and uid == 0:  # only root can keep what somebody else owns
            uid, gid = old.uid, old.gid
        return (uid if write.uid is None else write.uid), (gid if write.gid is None else write.gid)

    def _stage(self, job: _Job) -> None:
        entry = job.entry
        if entry.old is not None:
            data, _ = read_at(self._fs, job.parent, Path(entry.path).name)
            self._write(job.parent, entry.backup, data, entry.old, job.label)
        self._write(job.parent, entry.temp, job.data, entry.new, job.label)

    def _write(self, parent: Handle, name: str, data: bytes, wanted: Print, label: bytes | None) -> None:
        """Write a private file; owner first, then mode, so that it is never open to more than it shall be."""
        with closing(self._fs, self._fs.create(name, SECRET_MODE, at=parent)) as handle:
            self._fs.write(handle, data)
            made = self._fs.fstat(handle)
            if (made.uid, made.gid) != (wanted.uid, wanted.gid):
                self._fs.chown(handle, wanted.uid, wanted.gid)
            if wanted.mode != SECRET_MODE:
                self._fs.chmod(handle, wanted.mode)
            if label is not None and self._fs.label(handle) != label:
                self._fs.relabel(handle, label)

    def _sync_staged(self) -> None:
        """Make all files and their names durable: one syncfs for each file system, or an fsync each."""
        files = sum(1 if job.entry.old is None else 2 for job in self._jobs)
        if files + len(self._parents) >= MANY and self._sync_whole():
            return
        for job in self._jobs:
            for name in (job.entry.temp, job.entry.backup)[: 1 if job.entry.old is None else 2]:
                with closing(self._fs, self._fs.open_file(name, at=job.parent)) as handle:
                    self._fs.fsync(handle)
        journal.sync_parents(self._fs, list(self._parents.values()))

    def _sync_whole(self) -> bool:
        devices = {self._fs.fstat(handle).dev: handle for handle in self._parents.values()}
        return all(self._fs.syncfs(handle) for handle in devices.values())


def remove_unchanged(fs: Fs, path: str, digest: str, owner: int | None = None) -> str:
    """Remove a file durably if its bytes still have the SHA-256; return why it stays, empty if it is gone.

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
        if found is None:
            return ""
        readable = found.kind == "file" and found.size <= SIZE_LIMIT  # the agent writes no larger ones
        if not readable or hashlib.sha256(read_at(fs, parent, name)[0]).hexdigest() != digest:
            return CHANGED
        if found.nlink != 1:
            return f"it has {found.nlink} hard links"
        fs.unlink(name, at=parent)
        fs.fsync(parent)
    return ""
