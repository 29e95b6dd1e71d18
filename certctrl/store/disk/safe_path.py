"""Safely open paths that others could tamper with.

Every directory on the way is opened by handle, without following links, and checked through the handle: replacing it
by a link afterwards has no effect. openat2 would do the walk in one call, but systemd refuses it under
``RestrictSUIDSGID=yes``.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.model.paths import is_below, path_fault
from certctrl.store.disk.acl import other_writers, unknown_list
from certctrl.store.disk.fs import FileKind, Fs, Handle, RealFs, Stat, closing

SIZE_LIMIT = 4 * 1024 * 1024
_STICKY = 0o1000
_WRITABLE = 0o022


MOUNTED = "is a mount point, such as a bind-mounted file, and cannot be replaced"
IN_PLACE = 'give the item "write": "in_place"'


class NoDirectoryError(PolicyRefusedError):
    """A directory on the way does not exist; it is not created, because its proper owner is unknown."""


@lean.frozen(kw_only=True)
class DestinationFact:
    """The state of a destination."""

    path: Path
    kind: FileKind = FileKind.MISSING
    sha256: str | None = None
    """Hex digest; None unless it is a regular file."""
    mode: int | None = None
    """Permission bits."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    nlink: int | None = None
    data: bytes = attrs.field(default=b"", repr=False)
    """A file's bytes, of which ``sha256`` is the hash."""
    attributes: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    """A file's ACL and security attributes."""
    identity: tuple[int, int] | None = None
    """Device and inode; None if nothing is there."""
    refusal: str | None = None
    """Why nothing may be written there; None if it may."""


def destination_facts(
    path: str | Path,
    roots: Sequence[str | Path],
    *,
    fs: Fs | None = None,
    owner: int | None = None,
    in_place: bool = False,
) -> DestinationFact:
    """Return the state of ``path``, and whether it may be written: only below ``roots``.

    ``owner``: the intended owner of the file, who may own its directory, too. ``in_place``: an existing file is to be
    written over, not replaced. Raises DiskError if it cannot be read.
    """
    fs, path = fs or RealFs(), Path(path)
    if not any(is_below(str(path), str(root)) for root in roots):
        return DestinationFact(path=path, refusal="it is not below an allowed directory")
    try:
        with closing(fs, open_parent(fs, path, owner=owner)) as parent:
            return facts_at(fs, parent, path, in_place=in_place)
    except PolicyRefusedError as refused:
        return DestinationFact(path=path, refusal=str(refused))


def facts_at(fs: Fs, parent: Handle, path: Path, *, in_place: bool = False) -> DestinationFact:
    """Return the state of ``path``, whose directory is open as ``parent``; ``in_place``: as for `destination_facts`."""
    found = fs.lstat(path.name, at=parent)
    if found is None:
        return DestinationFact(path=path)
    if found.kind is not FileKind.FILE:
        named = {FileKind.DIR: "a directory", FileKind.LINK: "a symbolic link"}.get(
            found.kind, "a device, pipe or socket"
        )
        return _fact(path, found, refusal=f"{path} is {named}, not a regular file")
    with closing(fs, fs.open_file(path.name, at=parent)) as handle:  # all checks and copies use this handle
        data, found = _read(fs, handle)
        attributes = fs.attributes(handle)
        mounted = fs.mount(handle) != fs.mount(parent)
    refusal = f"{path} has {found.nlink} hard links" if found.nlink != 1 else None
    if why := unknown_list(attributes):
        refusal = f"{path}: {why}, so its rights cannot be kept"
    elif in_place and (
        who := other_writers(found.mode, found.gid, attributes, (0, fs.uid(), found.uid), (0, fs.gid()))
    ):
        refusal = f"{path} can be written by {who} (mode {found.mode:04o}), so it is not written in place"
    elif mounted and not in_place:
        refusal = f"{path} {MOUNTED}: {IN_PLACE}"
    digest = hashlib.sha256(data).hexdigest()
    return _fact(path, found, sha256=digest, data=data, attributes=attributes, refusal=refusal)


def _fact(path: Path, found: Stat, **more: Any) -> DestinationFact:
    return DestinationFact(
        path=path,
        kind=found.kind,
        mode=found.mode & 0o777,
        uid=found.uid,
        gid=found.gid,
        size=found.size,
        nlink=found.nlink,
        identity=(found.dev, found.ino),
        **more,
    )


def read_at(fs: Fs, parent: Handle, name: str) -> bytes:
    """Return a regular file's bytes. Raises DiskError."""
    with closing(fs, fs.open_file(name, at=parent)) as handle:
        return _read(fs, handle)[0]


def _read(fs: Fs, handle: Handle) -> tuple[bytes, Stat]:
    found = fs.fstat(handle)
    if found.kind is not FileKind.FILE or found.size > SIZE_LIMIT:
        what = f"{handle.path} is not a regular file of at most {SIZE_LIMIT} bytes"
        raise DiskError(what, path=handle.path, errno=errno.EFBIG, fix=f"move {handle.path} away")
    return fs.read(handle, SIZE_LIMIT), found


def open_parent(fs: Fs, path: Path, *, owner: int | None = None) -> Handle:
    """Open the directory of an absolute path, one component at a time; the caller closes it.

    Raises PolicyRefusedError for a link, or a directory that other users can change, on the way; DiskError if one
    cannot be opened.
    """
    if fault := path_fault(str(path)):
        raise PolicyRefusedError(f"{ascii(str(path))[:200]}: {fault}", fix="use another path in the install plan")
    here = fs.open_dir("/")
    try:
        steps = path.parts[1:-1]
        _check_directory(fs, here, owner, last=not steps)
        for number, step in enumerate(steps, start=1):
            below = _step(fs, here, step)
            fs.close(here)
            here = below
            _check_directory(fs, here, owner, last=number == len(steps))
    except BaseException:
        fs.close(here)
        raise
    return here


def _step(fs: Fs, here: Handle, step: str) -> Handle:
    try:
        return fs.open_dir(step, at=here)
    except DiskError as error:
        where = f"{here.path.rstrip('/')}/{step}"
        if error.errno == errno.ENOENT:
            raise NoDirectoryError(f"there is no directory {where}", fix=f"mkdir {where}") from None
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            fix = f"use the real path in the install plan; see realpath {where}"
            raise PolicyRefusedError(f"{where} is a symbolic link or not a directory", fix=fix) from None
        raise


def _check_directory(fs: Fs, here: Handle, owner: int | None, *, last: bool) -> None:
    """Refuse a directory in which another user could replace entries."""
    found = fs.fstat(here)
    me = fs.uid()
    if found.uid not in (0, me, owner):
        what = f"{here.path} belongs to user {found.uid}, who could change what is in it"
        raise PolicyRefusedError(what, fix=f"chown root {here.path}, or give the file to that user in the plan")
    if found.mode & _STICKY and not last:
        return
    # without write permission in the mode, a POSIX list gives none either
    if found.mode & _WRITABLE or last:
        attributes = fs.attributes(here)
        if who := other_writers(found.mode, found.gid, attributes, (0, me, owner), (0, fs.gid())):
            what = f"{here.path} can be written by {who} (mode {found.mode:04o})"
            raise PolicyRefusedError(what, fix=f"chmod go-w {here.path}; see getfacl {here.path}")
