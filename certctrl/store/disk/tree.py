"""The directory tree of one agent: make it, and keep it closed to others (spec, "File Permissions").

Everything an agent keeps lies below one directory of mode 0700, so one wrong mode deeper down exposes nothing
by itself; it is repaired all the same, because directories get copied and moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from certctrl.errors import ConfigError, DiskError
from certctrl.store.disk.interface import Fs, Handle, Stat
from certctrl.store.layout import DIR_MODE, ConfigDir

_OTHERS = 0o077
_WRITE_OF_OTHERS = 0o022


class ModeFinding(NamedTuple):
    """One entry of the tree that is open to more users than it may be, or belongs to a stranger."""

    path: Path
    what: str
    """For a person: what was found."""
    fix: str
    """The command that mends it."""
    repaired: bool
    was: int
    """Permission bits found."""
    now: int
    """Permission bits it should have, and has when repaired."""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}{'; repaired' if self.repaired else ''}"


def adopt_owner(fs: Fs, handle: Handle, parent: Handle) -> None:
    """Hand what root made to the owner of the directory it lies in; without root there is nothing to do."""
    if fs.uid() == 0 and (owner := fs.fstat(parent)).uid != 0:
        fs.chown(handle, owner.uid, owner.gid)


def make_tree(fs: Fs, layout: ConfigDir) -> None:
    """Make every missing directory of the tree, 0700, durably; existing ones are left as they are.

    Raises DiskError; ConfigError when something that is no directory lies in the way.
    """
    missing = [parent for parent in reversed(layout.root.parents) if fs.lstat(parent) is None]
    for path in missing:
        _make_dir(fs, path, 0o755)
    for path in layout.directories():
        found = fs.lstat(path)
        if found is None:
            _make_dir(fs, path, DIR_MODE)
        elif found.kind != "dir":
            raise ConfigError("expected a directory", file=str(path), fix=f"move {path} away")


def _make_dir(fs: Fs, path: Path, mode: int) -> None:
    fs.mkdir(path, mode)
    parent = fs.open_dir(path.parent)
    try:
        made = fs.open_dir(path.name, at=parent)
        try:
            if fs.fstat(made).mode != mode:  # an odd umask took bits away
                fs.chmod(made, mode)
            adopt_owner(fs, made, parent)
        finally:
            fs.close(made)
        fs.fsync(parent)
    finally:
        fs.close(parent)


def check_modes(fs: Fs, layout: ConfigDir, *, repair: bool = True) -> list[ModeFinding]:
    """Close what is too open and is ours, and return it; with ``repair=False`` only look.

    Raises ConfigError when the directory is missing, and with ``repair`` for what cannot be repaired: a
    foreign owner, a link in place of a directory, a mode that we may not change.
    """
    root = fs.lstat(layout.root)
    if root is None:
        fix = f"cert-ctrl -c {layout.root} init --server URL"
        raise ConfigError("no such config directory", file=str(layout.root), fix=fix)
    if repair:
        _refuse_open_policy(fs, layout, root)
    findings = [finding for path, closed in _watched(fs, layout) if (finding := _look(fs, path, closed, root, repair))]
    refused = next((finding for finding in findings if not finding.repaired), None)
    if repair and refused is not None:
        raise ConfigError(refused.what, file=str(refused.path), fix=refused.fix)
    return findings


def _refuse_open_policy(fs: Fs, layout: ConfigDir, root: Stat) -> None:
    """Refuse a policy that others could reach and write: closing it now would not tell what they wrote."""
    found = fs.lstat(layout.policy)
    if found is not None and found.mode & _WRITE_OF_OTHERS and root.mode & 0o011:
        fix = f"see that it says what you want, then chmod go-w {layout.policy} and chmod 0700 {layout.root}"
        raise ConfigError("others may write it, and what it allows is run", file=str(layout.policy), fix=fix)


def _watched(fs: Fs, layout: ConfigDir) -> Iterator[tuple[Path, int]]:
    """Yield each entry to look at and the permission bits it must not have."""
    private = (
        layout.state, layout.journal, layout.passwords, layout.keys, layout.account_keys, layout.generations,
    )  # fmt: skip
    yield layout.root, _OTHERS
    for path in layout.directories()[1:]:
        yield path, _OTHERS if path in private else _WRITE_OF_OTHERS
    for path in (layout.application, layout.httpclient, layout.ioc, layout.log_config, layout.policy):
        yield path, _WRITE_OF_OTHERS
    for directory in private[:-1]:  # generations are private as a whole
        found = fs.lstat(directory)
        if found is not None and found.kind == "dir":
            yield from ((directory / name, _OTHERS) for name in _names(fs, directory))


def _names(fs: Fs, directory: Path) -> list[str]:
    try:
        handle = fs.open_dir(directory)
    except DiskError:
        return []  # the directory itself is a finding then
    try:
        return sorted(fs.listdir(handle))
    finally:
        fs.close(handle)


def _look(fs: Fs, path: Path, closed: int, root: Stat, repair: bool) -> ModeFinding | None:
    found = fs.lstat(path)
    if found is None or found.kind == "other":  # a socket's protection is its directory
        return None
    if found.kind == "link":
        what = "a link where a real file or directory belongs"
        return ModeFinding(path, what, f"name or put the real thing, not {path}", False, found.mode, found.mode)
    me = fs.uid()
    roots_by_design = found.uid == 0 and found.kind == "file" and closed == _WRITE_OF_OTHERS  # config and policy
    if found.uid not in ({me, root.uid} if me == 0 else {me}) and not roots_by_design:
        what = f"belongs to user {found.uid}, but this runs as user {me}"
        return ModeFinding(path, what, f"chown {me} {path}, or run as user {found.uid}", False, found.mode, found.mode)
    if not found.mode & closed:
        return None
    wanted = found.mode & ~closed
    what = f"mode {found.mode:04o} lets other users in, expected {wanted:04o} or less"
    done = repair and _close_mode(fs, path, found, wanted)
    return ModeFinding(path, what, f"chmod {wanted:04o} {path}", done, found.mode, wanted)


def _close_mode(fs: Fs, path: Path, found: Stat, wanted: int) -> bool:
    try:
        handle = fs.open_dir(path) if found.kind == "dir" else fs.open_file(path)
    except DiskError:
        return False
    try:
        if fs.fstat(handle).ino != found.ino:
            return False  # replaced while we looked
        fs.chmod(handle, wanted)
    except DiskError:
        return False
    finally:
        fs.close(handle)
    return True
