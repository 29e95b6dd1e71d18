"""Check that only root and the agent's user can have changed an executable."""

from __future__ import annotations

import hashlib
import os
import stat

from certctrl.errors import CommandError
from certctrl.store.disk.acl import lists_of, other_writers

MOST_LINKS = 40


def vet_executable(path: str, sha256: str | None = None) -> None:
    """Require an executable that others cannot change, by mode or ACL: root-owned or the agent's, like its parents.

    Symlinks in the path (``/bin`` → ``usr/bin``) are followed and checked step by step. A world-writable directory
    is accepted only with the sticky bit; the next step then must belong to a trusted user. ``sha256``: a pin of its
    bytes (lower-case hex). Blocks on the disk. Raises CommandError.
    """
    real = _walk(path)
    found = os.stat(real)
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
        raise CommandError(f"{path} is not an executable file", fix=f"ls -l {path}")
    if sha256 is not None and (actual := sha256_of(real)) != sha256.lower():
        raise CommandError(
            f"{path} has changed: its SHA-256 is {actual}, the policy pins {sha256.lower()}",
            fix="check what changed it; then put the new sha256 into policy.json, "
            "or, if it was pinned on first use: cert-ctrl -c DIR trust reset --scripts",
        )


def sha256_of(path: str) -> str:
    """Return the SHA-256 of a file's bytes in lower-case hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def file_of(path: str) -> tuple[str, tuple[int, int] | None]:
    """Return the path that an executable leads to, all links followed, and that file's device and inode.

    The latter is None if there is no file.
    """
    real = path
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
    except (OSError, ValueError):
        return real, None
    return real, (found.st_dev, found.st_ino)


def is_script(path: str) -> bool:
    """Return whether an executable is a script (``#!``), which `trust_on_first_use` pins."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!"
    except (OSError, ValueError):
        return False


def _walk(path: str) -> str:
    """Resolve a path from the root, checking every step; return the final path."""
    done, todo, links = "/", path.split("/"), 0
    _judge(os.lstat("/"), "/", path)
    while todo:
        step = todo.pop(0)
        if step in ("", "."):
            continue
        if step == "..":
            done = os.path.dirname(done)
            continue
        here = os.path.join(done, step)
        try:
            found = os.lstat(here)
        except OSError as error:
            raise CommandError(f"cannot run {path}: {here}: {error.strerror}", fix=f"ls -l {here}") from None
        except ValueError:  # a NUL, or characters that no file name can contain
            raise CommandError(f"cannot run {path!r}: no file can have this name") from None
        _judge(found, here, path)
        if not stat.S_ISLNK(found.st_mode):
            done = here
            continue
        links += 1
        if links > MOST_LINKS:
            raise CommandError(f"cannot run {path}: too many symbolic links")
        target = os.readlink(here)
        todo = target.split("/") + todo
        if target.startswith("/"):
            done = "/"
    return done


def _judge(found: os.stat_result, here: str, path: str) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise CommandError(
            f"will not run {path}: {here} belongs to uid {found.st_uid}, who could change it",
            fix=f"chown root {here}",
        )
    if stat.S_ISLNK(found.st_mode):
        return  # a link has no mode; its directory decides who may replace it
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return
    try:
        lists = lists_of(here)
    except OSError as error:
        raise CommandError(f"cannot run {path}: {here}: {error.strerror}", fix=f"getfacl {here}") from None
    if who := other_writers(found.st_mode, found.st_gid, lists, (0, os.geteuid()), ()):
        raise CommandError(f"will not run {path}: {who} may write to {here}", fix=f"chmod go-w {here}")
