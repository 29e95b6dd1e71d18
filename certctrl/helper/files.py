"""The steps of a deployment to one file that the policy names. Each is durable and leaves no half-written file.

Every directory on the way must be root's and writable by no one else, and is opened without following links. The new
file and a copy of the old one are next to the destination, as `certctrl.store.deployments` does it for files that the
agent can write itself. The contents of files are never returned.
"""

from __future__ import annotations

import errno
import hashlib
from contextlib import suppress
from pathlib import Path

from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.helper.messages import Facts
from certctrl.store.deployments.file_set import remove_unchanged
from certctrl.store.disk.acl import ACCESS
from certctrl.store.disk.atomic import is_temp, is_temp_of, write_new
from certctrl.store.disk.fs import FileKind, Fs, Handle, Stat, closing
from certctrl.store.disk.helper import FileRule
from certctrl.store.disk.safe_path import DestinationFact, NoDirectoryError, facts_at, open_parent, read_at

MOST_TEMPS = 16
"""New files and copies of old ones next to one destination; a deployment needs two."""
MOST_FILES = 5000
"""Entries of a directory in which a pattern makes new files."""


class Files:
    """Writes files by the rules of one user. All methods raise DiskError and PolicyRefusedError."""

    def __init__(self, fs: Fs) -> None:
        self._fs = fs

    def inspect(self, path: str, temp: str = "") -> Facts:
        """Return the state of a destination and the hash of its new file; behind an unsafe directory, it is not known."""
        try:
            with closing(self._fs, self._parent(path, *filter(None, (temp,)))) as parent:
                found = facts_at(self._fs, parent, Path(path))
                staged = self._hash_of(parent, temp) if temp else ""
        except NoDirectoryError as refused:
            return Facts(kind=FileKind.MISSING, refusal=str(refused))
        except PolicyRefusedError as refused:
            return Facts(kind=FileKind.OTHER, refusal=str(refused))
        return _facts(found, staged)

    def stage(self, rule: FileRule, path: str, temp: str, backup: str, data: bytes) -> None:
        """Write the new file and a copy of the old one next to the destination, with the rights of the rule.

        The copy is closed to others if the old file is.
        """
        ids = _ids(rule)
        with closing(self._fs, self._parent(path, temp, backup)) as parent:
            old = self._checked(parent, path)
            self._check_room(parent, path, rule, is_new=old is None)
            try:
                kept = None if old is None else _kept(old, rule)
                if old is not None:
                    mode = _restored_mode(rule, old.mode or 0)
                    write_new(self._fs, parent, backup, old.data, mode=mode, kept=kept, sync=True, **ids)
                write_new(self._fs, parent, temp, data, mode=rule.mode, kept=kept, sync=True, **ids)
                self._fs.fsync(parent)
            except BaseException:
                with suppress(DiskError):
                    self._drop(parent, (temp, backup))
                raise

    def put(self, rule: FileRule, path: str, temp: str) -> None:
        """Rename the new file into place, unless its rights are no longer those of the rule."""
        with closing(self._fs, self._parent(path, temp)) as parent:
            self._checked(parent, path)
            new = self._fs.lstat(temp, at=parent)
            if new is None or new.kind is not FileKind.FILE or new.nlink != 1:
                raise DiskError(f"the new file of {path} is not there", path=path, errno=errno.ENOENT, fix="try again")
            if (new.mode, new.uid, new.gid) != (rule.mode, rule.uid, rule.gid):
                raise PolicyRefusedError(f"the new file of {path} has other rights than its rule", fix="try again")
            self._fs.rename(temp, Path(path).name, at=parent)
            self._fs.fsync(parent)

    def restore(self, rule: FileRule, path: str, backup: str, sha256: str) -> None:
        """Restore the old file if the destination still has these bytes; remove it if there was none.

        It gets the rights that its rule gives now: what was staged under a former rule may have more.
        """
        with closing(self._fs, self._parent(path, *filter(None, (backup,)))) as parent:
            name, found = Path(path).name, facts_at(self._fs, parent, Path(path))
            if found.sha256 != sha256:
                self._fs.fsync(parent)  # a killed helper may have restored it
                return
            if not backup:
                self._fs.unlink(name, at=parent)
            elif (old := self._fs.lstat(backup, at=parent)) is not None and old.kind is FileKind.FILE:
                self._fs.rename(self._as_ruled(parent, rule, backup, old), name, at=parent)
                self._drop(parent, (backup,))
            self._fs.fsync(parent)

    def _as_ruled(self, parent: Handle, rule: FileRule, backup: str, found: Stat) -> str:
        """Return the name of a copy of the old file with the rights that its rule gives now.

        If those of the backup differ, it is copied again: its owner may have an open descriptor or a link of it.
        """
        ids = _ids(rule)
        rights = (ids["uid"], ids["gid"], _restored_mode(rule, found.mode))
        if (found.uid, found.gid, found.mode) == rights and found.nlink == 1:
            return backup
        again = _again(backup)
        self._drop(parent, (again,))  # a killed helper may have left it
        old = facts_at(self._fs, parent, Path(parent.path) / backup)
        mode = _restored_mode(rule, old.mode or 0)
        write_new(self._fs, parent, again, old.data, mode=mode, kept=_kept(old, rule), sync=True, **ids)
        return again

    def drop(self, path: str, temp: str, backup: str) -> None:
        """Remove the new file and the copy of the old one; idempotent, even without their directory."""
        try:
            with closing(self._fs, self._parent(path, temp, backup)) as parent:
                self._drop(parent, (temp, backup, _again(backup)))
                self._fs.fsync(parent)  # even if nothing was there: a killed helper may have removed them
        except NoDirectoryError:
            return

    def remove(self, path: str, sha256: str) -> str:
        """Remove a file if its bytes have this hash; return why it stays, empty if it is gone."""
        with suppress(NoDirectoryError, DiskError), closing(self._fs, self._parent(path)) as parent:
            self._checked(parent, path)  # a mount point would be emptied
        return remove_unchanged(self._fs, path, sha256)

    def _parent(self, path: str, *temps: str) -> Handle:
        name = Path(path).name
        if strange := [temp for temp in temps if not is_temp_of(temp, name)]:
            raise PolicyRefusedError(f"{ascii(strange[0])[:80]} is not the name of a temporary file of {name}")
        return open_parent(self._fs, Path(path))

    def _checked(self, parent: Handle, path: str) -> DestinationFact | None:
        """Return the file at a destination; None if there is none."""
        found = facts_at(self._fs, parent, Path(path))
        if found.refusal is not None:
            raise PolicyRefusedError(found.refusal, fix=f"check {path}")
        return found if found.kind is FileKind.FILE else None

    def _check_room(self, parent: Handle, path: str, rule: FileRule, *, is_new: bool) -> None:
        names, own = self._fs.listdir(parent), Path(path).name
        if sum(is_temp(name) and is_temp_of(name, own) for name in names) > MOST_TEMPS - 2:
            raise PolicyRefusedError(f"there are too many temporary files of {path}", fix=f"ls -la {parent.path}")
        if is_new and "*" in rule.path and len(names) >= MOST_FILES:
            raise PolicyRefusedError(f"there are more than {MOST_FILES} files in {parent.path}", fix="remove some")

    def _hash_of(self, parent: Handle, name: str) -> str:
        found = self._fs.lstat(name, at=parent)
        if found is None or found.kind is not FileKind.FILE:
            return ""
        return hashlib.sha256(read_at(self._fs, parent, name)).hexdigest()

    def _drop(self, parent: Handle, names: tuple[str, ...]) -> None:
        for name in names:
            if self._fs.lstat(name, at=parent) is not None:
                self._fs.unlink(name, at=parent)


def _ids(rule: FileRule) -> dict[str, int]:
    """Return owner and group of a rule, as arguments. Raises PolicyRefusedError."""
    if rule.uid is None or rule.gid is None:
        raise PolicyRefusedError(f"this host has no {rule.owner}:{rule.group}", fix=f"correct the rule of {rule.path}")
    return {"uid": rule.uid, "gid": rule.gid}


def _restored_mode(rule: FileRule, old: int) -> int:
    """Return the mode of a rule, without the rights of others if they could not access the old file."""
    return rule.mode & (old | 0o770)


def _again(backup: str) -> str:
    """Return the name of a further copy of an old file, which no request can name."""
    return f"{backup}.again"


def _kept(old: DestinationFact, rule: FileRule) -> dict[str, bytes]:
    """Return what a file keeps of the old one: its access control list only if root or the same owner has set it."""
    return {name: raw for name, raw in old.attributes.items() if name != ACCESS or old.uid in (0, rule.uid)}


def _facts(found: DestinationFact, staged: str) -> Facts:
    return Facts(
        kind=found.kind,
        sha256=found.sha256,
        mode=found.mode,
        uid=found.uid,
        gid=found.gid,
        refusal=found.refusal,
        staged=staged,
    )
