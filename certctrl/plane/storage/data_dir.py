"""The plane's data directory: mode 0700, secrets created with mode 0600, one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from certctrl import lean
from certctrl.errors import BusyError, ConfigError, DiskError

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of writes to read-only files and directories."""

log = logging.getLogger("certctrl.Plane")


@lean.frozen
class GivenKey:
    """A key from outside the data directory."""

    text: str = attrs.field(repr=False)
    path: Path
    """The file that it was read from."""


@lean.frozen(kw_only=True)
class GivenKeys:
    """The keys of a plane from outside its data directory."""

    storage: GivenKey | None = None
    operator: GivenKey | None = None


class DataDir:
    """The paths below ``plane serve --data``."""

    def __init__(self, root: Path, given: GivenKeys | None = None) -> None:
        """``given`` keys replace those in the directory."""
        self.root = root
        self.given = given or GivenKeys()
        self.database = root / "plane.db"
        self.lock = root / "plane.lock"
        self.storage_key = self.given.storage.path if self.given.storage else root / "storage.key"
        self.operator_key = self.given.operator.path if self.given.operator else root / "operator.key"
        self.ca = root / "ca.pem"
        """The CA of the plane's own certificate, for agents and operators."""
        self.issuing_ca = root / "issuing-ca.pem"
        """The CA of the certificates that the plane issues, for clients of the services that use them."""
        self.denied_keys = root / "denied-keys"
        """Directory with lists of keys that no certificate may have, from the operator."""
        self.tls_certificate = root / "tls.pem"
        self.tls_key = root / "tls.key"
        self.address = root / "address"
        """URL of the current or last server, as agents use it."""
        self.local_address = root / "local_address"
        """URL of that server on this machine, for the operator commands."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn OSError into DiskError about a path."""
    try:
        yield
    except OSError as error:
        what = f"{path}: {error.strerror or error}"
        raise DiskError(what, path=str(path), errno=error.errno or 0) from None


def make_data_dir(root: Path, given: GivenKeys | None = None) -> DataDir:
    """Create the directory with mode 0700, or restrict an existing one to it.

    Raises ConfigError if it is not a directory or belongs to another user.
    """
    with disk_errors(root):
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=0o700, parents=True)
        found = root.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError("is not a directory", file=str(root), fix="pass a directory to --data")
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"belongs to user {found.st_uid}, not to the one running the plane",
                file=str(root),
                fix=f"run the plane as that user, or: chown -R {os.geteuid()} {root}",
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            log.warning("%s was accessible to other users; set its mode to 0700", root)
            root.chmod(0o700)
    return DataDir(root, given)


@contextlib.contextmanager
def locked(data: DataDir) -> Iterator[None]:
    """Hold the directory's lock; raises BusyError with the process that has it. A killed process releases it.

    In a directory that cannot be written, an existing lock file is locked, and a missing one is not needed.
    """
    try:
        with disk_errors(data.lock):
            fd = os.open(data.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except DiskError as error:
        if error.errno not in UNWRITABLE or not data.database.exists():
            raise
        with _locked_read_only(data):
            yield
        return
    try:
        _lock(data, fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked_read_only(data: DataDir) -> Iterator[None]:
    try:
        fd = os.open(data.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise DiskError(f"{data.lock}: {error.strerror}", path=str(data.lock), errno=error.errno or 0) from None
    try:
        _lock(data, fd)
        yield
    finally:
        os.close(fd)


def _lock(data: DataDir, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise BusyError(
            f"{data.root} is served by another plane (process {holder})", fix="stop it, or use another --data"
        ) from None


def write_file(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file atomically and durably; its mode is set before it gets its name."""
    temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with disk_errors(path):
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, mode)
                file.write(data)
                file.flush()
                os.fsync(fd)
            temp.rename(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def keep_file(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file unless it has these contents; in a read-only directory, log that it is not written."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    try:
        write_file(path, data, mode=mode)
    except DiskError as error:
        if error.errno not in UNWRITABLE:
            raise
        log.warning("not written: %s", error)


def sync_directory(path: Path) -> None:
    """Sync the entries of a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def secret_file(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return the secret in a file, or create it with mode 0600; a mode that is too open is restricted."""
    with disk_errors(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            secret = make()
            write_file(path, secret, mode=0o600)
            return secret
        with os.fdopen(fd, "rb") as file:
            if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
                log.warning("%s was readable by other users; set its mode to 0600; consider a new key", path)
                os.fchmod(fd, 0o600)
            return file.read(4096)


def make_private(path: Path) -> None:
    """Create an empty file of mode 0600 if there is none; SQLite keeps the mode, also for its journal files."""
    with disk_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
                os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
