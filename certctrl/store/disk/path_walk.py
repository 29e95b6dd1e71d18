"""Walk to a path by name, to check who could change its contents.

Nothing is opened, so the owner of a directory on the way could replace it afterwards. For destinations, which are
written, `safe_path` walks by handle and follows no links.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator

from certctrl.store.disk.acl import lists_of, other_writers

_MAX_LINKS = 40


def steps_to(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each directory and link on the way to an absolute path, and the path; links are followed one by one.

    The last one is the path with all links followed. Raises OSError with the step as ``filename``; ELOOP after too many
    links. Raises ValueError if no file can have such a name.
    """
    here, last, todo, links = "/", "/", path.split("/"), 0
    yield here, os.lstat(here)
    while todo:
        name = todo.pop(0)
        if name in ("", "."):
            continue
        step = os.path.dirname(here) if name == ".." else os.path.join(here, name)
        found = os.lstat(step)
        last = step
        yield step, found
        if not stat.S_ISLNK(found.st_mode):
            here = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, "too many symbolic links", step)
        target = os.readlink(step)
        todo = target.split("/") + todo
        here = "/" if target.startswith("/") else here
    if last != here:  # a link to "/" or "."
        yield here, os.lstat(here)


def writers_of(step: str, facts: os.stat_result, users: Collection[int], groups: Collection[int]) -> str:
    """Return who else than these users and groups can write to a step, for a message; empty if no one can.

    A link has no rights, and in a sticky directory only its owner and that of an entry can replace the entry. Raises
    OSError if the access control list cannot be read.
    """
    if stat.S_ISLNK(facts.st_mode) or (stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX):
        return ""
    return other_writers(facts.st_mode, facts.st_gid, lists_of(step), users, groups)
