"""Never obey a less privileged user: as root, become the owner of a directory before reading what is in it.

The owner of a directory controls policy, items, state and keys in it. The rule: such files belong to root or to the
user of this process, and that user owns the directory.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

from certctrl.errors import ConfigError, DiskError
from certctrl.store.disk.path_walk import steps_to, writers_of


def become_owner(directory: str | os.PathLike[str]) -> None:
    """As root, become the owner of a directory permanently; does nothing for other users.

    A missing directory counts as owned by the owner of the nearest existing one above. Raises ConfigError if root may
    not become that user, or if another user can replace a directory of root's, DiskError if one cannot be inspected.
    """
    if os.geteuid() != 0:
        return
    path = os.path.abspath(directory)
    above = list(_existing(path))
    here, found = above.pop()
    if found.st_uid != 0:
        _become(path, found)
        return
    for step, facts in above:
        _require_unchangeable(step, facts, path)
    if here != path:
        _require_unchangeable(here, found, path)


def _existing(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the steps to a path, as far as they exist. Raises ConfigError, DiskError."""
    try:
        yield from steps_to(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(
                "too many symbolic links on the way", file=path, fix="give the real path with -c"
            ) from None
        raise _uninspected(error.filename or path, error) from None


def _uninspected(step: str, error: OSError) -> DiskError:
    what = f"cannot inspect {step}: {error.strerror}"
    return DiskError(what, path=step, errno=error.errno or 0, fix=f"ls -ld {step}")


def _require_unchangeable(step: str, facts: os.stat_result, path: str) -> None:
    """Raise ConfigError if a user other than root can replace entries of a directory on the way, or a link."""
    if facts.st_uid != 0:
        what = f"belongs to {name_of(facts.st_uid)}, who can replace {path}"
        raise ConfigError(what, file=step, fix=f"chown root {step}, or use another directory")
    try:
        who = writers_of(step, facts, (0,), (0,))
    except OSError as error:
        raise _uninspected(step, error) from None
    if who:
        raise ConfigError(f"can be changed by {who}, who can replace {path}", file=step, fix=f"chmod go-w {step}")


def _become(path: str, found: os.stat_result) -> None:
    uid, gid, groups = _identity(found)
    before = os.getgroups()
    try:
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
        readable = reads_program()
        os.seteuid(0)
        if readable:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            return
        os.setegid(0)
        os.setgroups(before)
    except OSError as error:
        what = f"belongs to {name_of(uid)}, and root may not become that user here ({error.strerror})"
        raise ConfigError(what, file=path, fix=f"setpriv --reuid={uid} --clear-groups cert-ctrl …") from None
    what = f"belongs to {name_of(uid)}, who cannot read the program in {sys.prefix}, and root does not work for others"
    raise ConfigError(what, file=path, fix="install cert-ctrl where every user can read it, for example in /opt")


def _identity(found: os.stat_result) -> tuple[int, int, list[int]]:
    """Return user, group and further groups of an owner; one without a name has the directory's group only."""
    import pwd

    try:
        entry = pwd.getpwuid(found.st_uid)
    except KeyError:  # a user of another host or container
        return found.st_uid, found.st_gid, []
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)


def reads_program() -> bool:
    """Whether this process may read the program and Python with its current rights: modules are imported late."""
    import certctrl

    files = (sys.executable, os.__file__, certctrl.__file__)
    return all(os.access(file, os.R_OK, effective_ids=True) for file in files)


def name_of(uid: int) -> str:
    """Return ``user NAME``, or ``user id N`` for an unknown one."""
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user id {uid}"
