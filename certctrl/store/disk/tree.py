"""Create the config directory's tree and keep it private (spec, "File Permissions").

Everything is below one directory of mode 0700, so a wrong mode further down exposes nothing yet; it is repaired anyway,
because directories are copied and moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from certctrl.errors import ConfigError, DiskError
from certctrl.store.disk.interface import FileKind, Fs, Stat
from certctrl.store.layout import DIR_MODE, ConfigDir

_OTHERS = 0o077
_WRITABLE_BY_OTHERS = 0o022


class ModeFinding(NamedTuple):
    """One entry of the tree that is accessible to too many users or has a foreign owner."""

    path: Path
    what: str
    """The problem, for the operator."""
    fix: str
    """The command that fixes it."""
    repaired: bool
    was: int
    """Permission bits found."""
    now: int
    """Permission bits it should have; the actual ones if ``repaired``."""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}{'; repaired' if self.repaired else ''}"


def make_tree(fs: Fs, layout: ConfigDir) -> None:
    """Create every missing directory of the tree, 0700, durably; existing ones are unchanged.

    Raises DiskError; ConfigError if something else than a directory is in the way.
    """
    missing = [parent for parent in reversed(layout.root.parents) if fs.lstat(parent) is None]
    for path in missing:
        _make_dir(fs, path, 0o755)
    for path in layout.directories():
        found = fs.lstat(path)
        if found is None:
            _make_dir(fs, path, DIR_MODE)
        elif found.kind is not FileKind.DIR:
            raise ConfigError("expected a directory", file=str(path), fix=f"move {path} away")


def _make_dir(fs: Fs, path: Path, mode: int) -> None:
    fs.mkdir(path, mode)
    parent = fs.open_dir(path.parent)
    try:
        made = fs.open_dir(path.name, at=parent)
        try:
            if fs.fstat(made).mode != mode:  # the umask removed bits
                fs.chmod(made, mode)
        finally:
            fs.close(made)
        fs.fsync(parent)
    finally:
        fs.close(parent)


def check_modes(fs: Fs, layout: ConfigDir, *, repair: bool = True) -> list[ModeFinding]:
    """Return entries that are too accessible, after removing the excess permissions if ``repair``.

    Raises ConfigError if the config directory is missing and, with ``repair``, if an entry cannot be repaired: a
    foreign owner, a link in place of a directory, a mode that may not be changed.
    """
    root = fs.lstat(layout.root)
    if root is None:
        fix = f"cert-ctrl -c {layout.root} init --server URL"
        raise ConfigError("no such config directory", file=str(layout.root), fix=fix)
    if repair:
        _refuse_open_policy(fs, layout, root)
    findings = [finding for path, closed in _watched(fs, layout) if (finding := _check_entry(fs, path, closed, repair))]
    refused = next((finding for finding in findings if not finding.repaired), None)
    if repair and refused is not None:
        raise ConfigError(refused.what, file=str(refused.path), fix=refused.fix)
    return findings


def _refuse_open_policy(fs: Fs, layout: ConfigDir, root: Stat) -> None:
    """Refuse a policy or local items that others could write: they cannot be trusted, even after a chmod."""
    for path in (layout.policy, layout.local_installs):
        found = fs.lstat(path)
        if found is not None and found.mode & _WRITABLE_BY_OTHERS and root.mode & 0o011:
            fix = f"review it, then chmod go-w {path} and chmod 0700 {layout.root}"
            raise ConfigError("others can write it, and it decides which commands may run", file=str(path), fix=fix)


def _watched(fs: Fs, layout: ConfigDir) -> Iterator[tuple[Path, int]]:
    """Yield each entry to check and the permission bits it must not have."""
    private = (
        layout.state, layout.journal, layout.passwords, layout.keys, layout.account_keys, layout.generations,
    )  # fmt: skip
    yield layout.root, _OTHERS
    for path in layout.directories()[1:]:
        yield path, _OTHERS if path in private else _WRITABLE_BY_OTHERS
    files = (layout.application, layout.httpclient, layout.ioc, layout.log_config)
    for path in (*files, layout.policy, layout.local_installs):
        yield path, _WRITABLE_BY_OTHERS
    for directory in private[:-1]:  # generations are private as a whole
        found = fs.lstat(directory)
        if found is not None and found.kind is FileKind.DIR:
            yield from ((directory / name, _OTHERS) for name in _names(fs, directory))


def _names(fs: Fs, directory: Path) -> list[str]:
    try:
        handle = fs.open_dir(directory)
    except DiskError:
        return []  # the directory itself becomes a finding
    try:
        return sorted(fs.listdir(handle))
    finally:
        fs.close(handle)


def _check_entry(fs: Fs, path: Path, closed: int, repair: bool) -> ModeFinding | None:
    found = fs.lstat(path)
    if found is None or found.kind is FileKind.OTHER:  # a socket is protected by its directory
        return None
    if found.kind is FileKind.LINK:
        what = "a link instead of a real file or directory"
        return ModeFinding(path, what, f"replace {path} by the real file or directory", False, found.mode, found.mode)
    me = fs.uid()
    owned_by_root = (
        found.uid == 0 and found.kind is FileKind.FILE and closed == _WRITABLE_BY_OTHERS
    )  # config and policy
    if found.uid != me and not owned_by_root:
        what = f"belongs to user {found.uid}, but this runs as user {me}"
        return ModeFinding(path, what, f"chown {me} {path}, or run as user {found.uid}", False, found.mode, found.mode)
    if not found.mode & closed:
        return None
    wanted = found.mode & ~closed
    what = f"mode {found.mode:04o} gives other users access, expected {wanted:04o} or less"
    done = repair and _close_mode(fs, path, found, wanted)
    return ModeFinding(path, what, f"chmod {wanted:04o} {path}", done, found.mode, wanted)


def _close_mode(fs: Fs, path: Path, found: Stat, wanted: int) -> bool:
    try:
        handle = fs.open_dir(path) if found.kind is FileKind.DIR else fs.open_file(path)
    except DiskError:
        return False
    try:
        if fs.fstat(handle).ino != found.ino:
            return False  # replaced meanwhile
        fs.chmod(handle, wanted)
    except DiskError:
        return False
    finally:
        fs.close(handle)
    return True
