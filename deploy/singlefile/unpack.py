"""Unpack the program of this file into a new directory: whole or not at all, even if the power fails."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

STAGED = ".new-"
NEEDED = 160 * 1024 * 1024
"""Bytes that the unpacked program fits into."""


def unpack(
    this: str, base: str, name: str, digest: str, trusted: Callable[[str], str], stop: Callable[..., NoReturn]
) -> None:
    """Make ``base``/``name`` from the archive in this file, unless another process makes it meanwhile.

    Raises OSError, with ``base`` as before.
    """
    before = os.umask(0o022)
    try:
        os.makedirs(base, 0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)
        base = trusted(base)
        _check_host(base, stop)
        lock = os.open(
            os.path.join(base, ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )  # not for others to hold
        with open(lock, "wb") as locked:
            fcntl.flock(locked, fcntl.LOCK_EX)
            if not os.path.isdir(os.path.join(base, name)):
                _place(Path(base), name, _archive(this, digest, stop))
    finally:
        os.umask(before)


def _place(base: Path, name: str, archive: bytes) -> None:
    """Extract the archive and give it its name, as the only process that does; remove what a killed one left."""
    for left in base.glob(f"{STAGED}*"):
        shutil.rmtree(left, ignore_errors=True)
    staged = Path(tempfile.mkdtemp(prefix=STAGED, dir=base))
    try:
        _extract(archive, staged)
        staged.chmod(0o755)
        _make_durable(staged)  # before it has its name: a program that is there is whole
        staged.rename(base / name)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _archive(this: str, digest: str, stop: Callable[..., NoReturn]) -> bytes:
    """Return the archive in this file, if it is whole."""
    archive = b""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(this) as file:
        archive = file.read("program.tar.xz")
    if hashlib.sha256(archive).hexdigest() != digest:
        stop(f"{this} is damaged", "copy it again")
    return archive


def _extract(archive: bytes, into: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:xz") as tar:
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(into, numeric_owner=True, **safely)


def _make_durable(folder: Path) -> None:
    """Write the file system of a directory to the disk: thousands of files, for which fsync would take long."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(opened):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(opened)


def _check_host(base: str, stop: Callable[..., NoReturn]) -> None:
    """Stop if the libraries would not load from a directory of this host."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        libc = ""
    found = libc.partition(" ")[2].split(".")
    if not libc.startswith("glibc ") or tuple(int(one) for one in found[:2] if one.isdigit()) < (2, 28):
        stop(f"the libraries need glibc 2.28, and this host has {libc or 'another C library'}", "use a checkout")
    room = os.statvfs(base)
    if room.f_flag & os.ST_NOEXEC:
        fix = "set XDG_CACHE_HOME to another one" if os.geteuid() else "mount it without noexec, or use a checkout"
        stop(f"{base} is on a file system that is mounted with noexec", fix)
    if room.f_bavail * room.f_frsize < NEEDED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), base)
