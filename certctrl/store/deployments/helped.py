"""The files of a deployment that the root helper writes; the same steps as in `journal`, by request.

The helper keeps no state: the names of the new file and of the copy of the old one are in the agent's journal before
the helper makes them, so recovery finishes or undoes these files like all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from certctrl.errors import CertctrlError, DiskError, PolicyRefusedError
from certctrl.model.paths import is_below
from certctrl.store.deployments.journal import Entry, FileState
from certctrl.store.disk.atomic import temp_name
from certctrl.store.disk.fs import FileKind, Fs
from certctrl.store.disk.helper import FileHelper


class Helped:
    """Entries of one deployment, and the helper that writes them."""

    def __init__(self, helper: FileHelper | None, entries: Sequence[Entry]) -> None:
        self._helper, self.entries = helper, [entry for entry in entries if entry.helper]

    def are_old(self) -> bool:
        """Return whether all destinations have the old file. Raises DiskError, PolicyRefusedError."""
        return all(entry.is_old(self._with(entry).observe(entry.path)[0]) for entry in self.entries)

    def are_new(self) -> list[bool]:
        """Return for each entry whether its destination has the new file. Raises DiskError, PolicyRefusedError."""
        return [entry.is_new(self._with(entry).observe(entry.path)[0]) for entry in self.entries]

    def can_be_new(self, roots: Sequence[str | Path]) -> bool:
        """Return whether all destinations have the new file or can get it. Raises DiskError, PolicyRefusedError."""
        return all(self._can_be_new(entry, roots) for entry in self.entries)

    def put_new(self) -> None:
        """Give the destinations their new files, unless they have them. Raises DiskError, PolicyRefusedError."""
        for entry in self.entries:
            found, _ = self._with(entry).observe(entry.path)
            if not entry.is_new(found):
                self._with(entry).put(entry.path, entry.temp)

    def restore_old(self) -> list[DiskError]:
        """Replace the new files by the old ones, keep any other files, and return the errors."""
        return self._each(self._restore)

    def drop_leftovers(self) -> list[DiskError]:
        """Remove new files that are not in place and copies of the old ones, and return the errors."""
        return self._each(lambda entry: self._with(entry).drop(entry.path, entry.temp, entry.backup))

    def _each(self, act: Callable[[Entry], None]) -> list[DiskError]:
        faults = list[DiskError]()
        for entry in self.entries:
            try:
                act(entry)
            except DiskError as error:
                faults.append(error)
            except CertctrlError as error:
                faults.append(DiskError(str(error), path=entry.path, fix=error.fix))
        return faults

    def _restore(self, entry: Entry) -> None:
        helper = self._with(entry)
        if entry.is_new(helper.observe(entry.path)[0]):
            helper.restore(entry.path, entry.backup if entry.old is not None else "", entry.new.sha256)

    def _can_be_new(self, entry: Entry, roots: Sequence[str | Path]) -> bool:
        found, staged = self._with(entry).observe(entry.path, entry.temp)
        if entry.is_new(found):
            return True
        allowed = any(is_below(entry.path, str(root)) for root in roots)
        return allowed and entry.is_old(found) and staged == entry.new.sha256

    def _with(self, entry: Entry) -> FileHelper:
        if self._helper is None:
            what = f"{entry.path} is written by the root helper, which this agent does not use"
            raise DiskError(what, path=entry.path, fix="set helper_socket in application.json, and run it unprivileged")
        return self._helper


def planned(fs: Fs, helper: FileHelper, path: Path, data: bytes, mode: int, uid: int, gid: int) -> Entry | None:
    """Return the entry of a file that the helper is to write; None if it already is as requested.

    Raises PolicyRefusedError for an unsafe destination, DiskError.
    """
    found, _ = helper.observe(str(path))
    if found.refusal is not None:
        raise PolicyRefusedError(f"the root helper: {found.refusal}", fix=f"correct {path}, or use another path")
    old = FileState.of(found) if found.kind is FileKind.FILE else None
    new = FileState(hashlib.sha256(data).hexdigest(), mode, uid, gid)
    if old == new:
        return None
    temp, backup = temp_name(fs, path.name), temp_name(fs, path.name)
    return Entry(path=str(path), temp=temp, backup=backup, old=old, new=new, owner=uid, helper=True)
