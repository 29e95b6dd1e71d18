"""Replace files atomically: readers find the old bytes or the new ones, even after a power cut.

The order matters: private temporary name in the same directory → all bytes → mode and owner by descriptor → fsync of
the file → rename → fsync of the directory. Rejected: writing in place (torn), renaming the old file to a backup (for a
moment there is no file), chmod after the rename (a secret is readable for a moment), a fixed temporary name (two
writers collide).

A temporary file is locked with flock while its writer lives, so `sweep_temps` can distinguish leftovers of a crash from
files that another process is writing, without pids or clocks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from certctrl.errors import DiskError
from certctrl.store.disk.acl import give_attributes
from certctrl.store.disk.fs import FileKind, Fs, Handle, Stat, closing
from certctrl.store.layout import SECRET_MODE

ATTEMPTS = 3
"""Tries per write. After a failed fsync the bytes may be lost: they are written again, not only synced again."""
_RETRIABLE = (errno.EIO, errno.ENOENT)  # ENOENT: a sweep removed the temporary file before it was locked
_SUFFIX = ".tmp"
_LONGEST_TOKEN = 32


def write_atomic(
    fs: Fs,
    path: Path,
    data: bytes,
    *,
    mode: int = SECRET_MODE,
    durable: bool = True,
    sync_parent: bool = True,
    keep_attributes: bool = False,
) -> None:
    """Replace the contents of ``path`` by ``data``; if ``durable``, the new contents survive a power cut.

    ``durable=False`` skips every fsync: for files that a power cut may lose or tear, and that then count as absent.
    ``sync_parent=False`` syncs the bytes but not the name: after a power cut the file is the old or the new one, whole;
    for files whose old version is good enough. ``keep_attributes``: with the ACL and security attributes of the old
    file, for files that others may read. Raises DiskError; the old file is then intact.
    """
    with closing(fs, fs.open_dir(path.parent)) as parent:
        kept = _attributes_of(fs, parent, path.name) if keep_attributes else None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _replace(fs, parent, path.name, data, mode, kept, durable=durable)
                if durable and sync_parent:
                    fs.fsync(parent)
                return
            except DiskError as error:
                if error.errno not in _RETRIABLE or attempt == ATTEMPTS:
                    raise


def _attributes_of(fs: Fs, parent: Handle, name: str) -> dict[str, bytes] | None:
    found = fs.lstat(name, at=parent)
    if found is None or found.kind is not FileKind.FILE:
        return None
    with closing(fs, fs.open_file(name, at=parent)) as handle:
        return fs.attributes(handle)


def _replace(
    fs: Fs, parent: Handle, name: str, data: bytes, mode: int, kept: dict[str, bytes] | None, *, durable: bool
) -> None:
    temp = temp_name(fs, name)
    handle = fs.create(temp, SECRET_MODE, at=parent)
    try:
        fs.try_lock(handle)
        fs.write(handle, data)
        if kept is not None:
            give_attributes(fs, handle, kept, mode)
        elif mode != SECRET_MODE:
            fs.chmod(handle, mode)
        if durable:
            fs.fsync(handle)
        fs.rename(temp, name, at=parent)
    except BaseException:
        discard(fs, handle, temp, parent)
        raise
    fs.close(handle)


def write_new(
    fs: Fs,
    parent: Handle,
    name: str,
    data: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    kept: Mapping[str, bytes] | None,
    sync: bool = False,
) -> None:
    """Write a new file; the owner is set before the mode, so that access is never wider than intended.

    ``kept``: attributes of the file that it replaces; None if there was none. ``sync``: make its bytes durable.
    """
    with closing(fs, fs.create(name, SECRET_MODE, at=parent)) as handle:
        fs.write(handle, data)
        made = fs.fstat(handle)
        if (made.uid, made.gid) != (uid, gid):
            fs.chown(handle, uid, gid)
        if kept is not None:
            give_attributes(fs, handle, kept, mode)
        elif mode != SECRET_MODE:
            fs.chmod(handle, mode)
        if sync:
            fs.fsync(handle)


def temp_name(fs: Fs, name: str) -> str:
    """Return a hidden temporary name with ``name`` and an unguessable part."""
    return f".{name[:180]}.{fs.token()}{_SUFFIX}"


def is_temp(name: str) -> bool:
    """Return whether a name has the form of those from `temp_name`."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def is_temp_of(temp: str, name: str) -> bool:
    """Return whether `temp_name` may have made a name for ``name``."""
    start = f".{name[:180]}."
    token = temp.removeprefix(start).removesuffix(_SUFFIX)
    return temp == f"{start}{token}{_SUFFIX}" and token.isalnum() and token.isascii() and len(token) <= _LONGEST_TOKEN


def discard(fs: Fs, handle: Handle, temp: str, parent: Handle) -> None:
    """Close and remove a temporary file after a failure; further errors are ignored, the first one is reported."""
    with suppress(DiskError):
        fs.close(handle)
    with suppress(DiskError):  # already renamed, or swept at the next start
        fs.unlink(temp, at=parent)


def remove_file(fs: Fs, path: Path, *, durable: bool = True) -> bool:
    """Remove a file; False if there was none. Raises DiskError."""
    if fs.lstat(path) is None:
        return False
    with closing(fs, fs.open_dir(path.parent)) as parent:
        fs.unlink(path.name, at=parent)
        if durable:
            fs.fsync(parent)
    return True


def link_text(fs: Fs, path: str | Path, at: Handle | None = None) -> str | None:
    """Return where a link leads; None if nothing has this name, empty text if it is not a link."""
    try:
        return fs.readlink(path, at=at)
    except DiskError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno == errno.EINVAL:
            return ""
        raise


def swap_link_at(fs: Fs, parent: Handle, name: str, text: str, *, keep: str = "") -> bool:
    """Point the link ``name`` in an open directory at ``text``; False if it leads there, or to ``keep``. No fsync."""
    if (found := link_text(fs, name, parent)) and found in (text, keep):
        return False
    replace_link_at(fs, parent, name, text)
    return True


def replace_link_at(fs: Fs, parent: Handle, name: str, text: str) -> None:
    """Replace the entry ``name`` in an open directory by a link to ``text``. No fsync."""
    temp = temp_name(fs, name)
    fs.symlink(text, temp, at=parent)
    try:
        fs.rename(temp, name, at=parent)
    except BaseException:
        with suppress(DiskError):  # otherwise it is swept at the next start
            fs.unlink(temp, at=parent)
        raise


def read_bytes(
    fs: Fs, path: str | Path, limit: int, at: Handle | None = None, judge: Callable[[Handle, Stat], None] | None = None
) -> bytes | None:
    """Return a regular file's bytes; None if it does not exist. Raises DiskError, EFBIG if larger than ``limit``.

    ``judge``: called with the open file and its metadata before it is read; may raise.
    """
    try:
        opened = fs.open_file(path, at=at)
    except DiskError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    with closing(fs, opened) as handle:
        found = fs.fstat(handle)
        if found.kind is not FileKind.FILE:
            raise DiskError(f"{handle.path} is not a regular file", path=handle.path, fix=f"move {handle.path} away")
        if found.size > limit:
            raise DiskError(
                f"{handle.path} has {found.size} bytes, more than {limit}",
                path=handle.path,
                errno=errno.EFBIG,
                fix=f"find out what wrote {handle.path}, and move it away",
            )
        if judge is not None:
            judge(handle, found)
        return fs.read(handle, found.size or limit)  # not one call more to learn that it ends; some sizes are unknown


def sweep_temps(fs: Fs, directory: Path) -> int:
    """Remove the temporary files of crashed writers from one directory, not those of running ones; return how many."""
    swept = 0
    with closing(fs, fs.open_dir(directory)) as parent:
        for name in fs.listdir(parent):
            if is_temp(name) and _is_leftover(fs, name, parent):
                fs.unlink(name, at=parent)
                swept += 1
    return swept


def _is_leftover(fs: Fs, name: str, parent: Handle) -> bool:
    found = fs.lstat(name, at=parent)
    if found is None or found.kind is FileKind.DIR:
        return False
    if found.kind is not FileKind.FILE:
        return True
    try:
        handle = fs.open_file(name, at=parent)
    except DiskError:
        return False  # removed meanwhile, or not readable
    with closing(fs, handle):
        return fs.try_lock(handle)
