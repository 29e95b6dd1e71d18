"""Root's policy for the root helper: the files and units of each user, and how often.

The file, and every directory on the way to it, must belong to root and be writable by no one else. It is read for each
request, so that a change is effective immediately.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.paths import is_below, path_fault
from certctrl.store.config.files import structured
from certctrl.store.disk.acl import other_writers
from certctrl.store.disk.atomic import read_bytes
from certctrl.store.disk.fs import Fs, Handle, Stat, closing
from certctrl.store.disk.helper import FileRule
from certctrl.store.disk.safe_path import open_parent
from certctrl.text import one_line

SIZE_LIMIT = 64 * 1024
WIDEST_MODE = 0o644
VERBS = ("reload", "restart")
_MODE = re.compile(r"0[0-7]{3}", re.ASCII)
_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:.@\\-]{0,200}\.service", re.ASCII)
_UNITS = ("/run/systemd", "/etc/systemd", "/usr/lib/systemd", "/usr/local/lib/systemd", "/lib/systemd")
_FORBIDDEN = ("/proc", "/sys", "/dev", *_UNITS)


@lean.frozen(kw_only=True)
class FileEntry:
    """Files that a user may write."""

    path: str
    """Absolute path of a file; its name may contain ``*``."""
    owner: str
    group: str
    mode: str
    """Octal text, at most ``0644``."""


def _rate(default: int) -> Any:
    return attrs.field(default=default, metadata={"ge": 1, "le": 100_000})


@lean.frozen(kw_only=True)
class UserEntry:
    """The files and units of one user."""

    files: tuple[FileEntry, ...] = ()
    units: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """Name of a unit -> ``reload``, ``restart`` or both."""
    requests_per_minute: int = _rate(3000)
    """Requests of all kinds. One file takes four to six per deployment."""
    reloads_per_minute: int = _rate(30)
    """Reloads and restarts of one unit."""


def load_policy(fs: Fs, path: Path) -> dict[str, UserEntry]:
    """Return user name -> what this user may request. Raises ConfigError, DiskError, PolicyRefusedError."""
    with closing(fs, open_parent(fs, path)) as parent:
        data = read_bytes(fs, path.name, SIZE_LIMIT, at=parent, judge=partial(_judge, fs))
    if data is None:
        raise ConfigError("there is no policy of the root helper", file=str(path), fix=f"create {path} as root")
    entries: dict[str, UserEntry] = structured(Mapping[str, UserEntry], data, path)
    for user, entry in entries.items():
        if fault := _fault_of(entry, path):
            raise ConfigError(fault, file=str(path), path=one_line(user))
    return entries


def _judge(fs: Fs, handle: Handle, found: Stat) -> None:
    """Refuse a policy that users other than root can write. Raises ConfigError."""
    file = handle.path
    if found.uid not in (0, fs.uid()):
        raise ConfigError("does not belong to root", file=file, fix=f"review it, then chown root {file}")
    if who := other_writers(found.mode, found.gid, fs.attributes(handle), (0,), (0,)):
        raise ConfigError(
            f"can be written by {who}", file=file, fix=f"review it, then chmod go-w {file}; see getfacl {file}"
        )


def _fault_of(entry: UserEntry, own: Path) -> str:
    """Return the first mistake in the entry of a user; empty: none."""
    for number, file in enumerate(entry.files):
        if fault := _path_fault(file.path, own):
            return f"files[{number}].path: {fault}"
        if not _MODE.fullmatch(file.mode) or int(file.mode, 8) & ~WIDEST_MODE:
            return f"files[{number}].mode: expected four octal digits, at most {WIDEST_MODE:04o}"
    for unit, verbs in entry.units.items():
        if not _UNIT.fullmatch(unit):
            return f"units: {one_line(unit, 80)} is not the whole name of one unit, such as nginx.service"
        if not verbs or set(verbs) - set(VERBS):
            return f"units: {unit}: expected reload, restart or both"
    return ""


def _path_fault(path: str, own: Path) -> str:
    directory, _, name = path.rpartition("/")
    if fault := path_fault(path):
        return fault
    if "*" in directory:
        return "only the name of a file may contain '*'"
    if any(is_below(path, root) for root in _FORBIDDEN):
        return f"nothing is written below {', '.join(_FORBIDDEN)}"
    if directory == "" or (directory.count("/") < 2 and "*" in name):
        return "it is too near the root; use a subdirectory"
    if path == str(own):
        return "it is this policy"
    return ""


def rules_of(entry: UserEntry) -> tuple[FileRule, ...]:
    """Return the rules of a user with the ids of their accounts, as this host has them now."""
    return tuple(
        FileRule(
            path=file.path,
            owner=file.owner,
            group=file.group,
            mode=int(file.mode, 8),
            uid=_id_of(file.owner, lambda name: pwd.getpwnam(name).pw_uid),
            gid=_id_of(file.group, lambda name: grp.getgrnam(name).gr_gid),
        )
        for file in entry.files
    )


def _id_of(name: str, find: Any) -> int | None:
    try:
        return int(name) if name.isdecimal() else int(find(name))
    except (KeyError, ValueError):
        return None
