"""RealFs: the only module that changes the disk.

Its methods are close to the system calls, so that a test double can replace the kernel and stop, fail or crash at each
of them. Errors of the operating system become DiskError with ``path``, ``errno`` and a fix. EINTR and short writes are
handled here and nowhere else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path

from certctrl.errors import DiskError
from certctrl.store.disk.acl import is_kept
from certctrl.store.disk.interface import FileKind, Fs, Handle, Stat

__all__ = ["FileKind", "Fs", "Handle", "RealFs", "Stat", "closing", "disk_error"]

_CHUNK = 1 << 20
_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIR, stat.S_IFLNK: FileKind.LINK}


class RealFs:
    """The kernel's file system."""

    def open_dir(self, path: str | Path, at: Handle | None = None) -> Handle:
        return self._open("open", path, at, os.O_RDONLY | os.O_DIRECTORY)

    def open_file(self, path: str | Path, at: Handle | None = None) -> Handle:
        return self._open("read", path, at, os.O_RDONLY | os.O_NONBLOCK)

    def open_append(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        return self._open("write", path, at, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)

    def open_lock(self, path: str | Path, mode: int) -> Handle:
        return self._open("lock", path, None, os.O_RDWR | os.O_CREAT, mode)

    def open_in_place(self, path: str | Path, at: Handle | None = None) -> Handle:
        return self._open("write", path, at, os.O_WRONLY | os.O_NONBLOCK)

    def create(self, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        handle = self._open("create", path, at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        self.chmod(handle, mode)  # the umask may have removed bits
        return handle

    def read(self, handle: Handle, limit: int) -> bytes:
        parts: list[bytes] = []
        try:
            while limit > 0 and (part := os.read(handle.fd, min(limit, _CHUNK))):
                parts.append(part)
                limit -= len(part)
        except _FAULTS as error:
            raise _fault("read", handle.path, error) from error
        return b"".join(parts)

    def write(self, handle: Handle, data: bytes) -> None:
        try:
            count = os.write(handle.fd, data)
            while count < len(data):  # rare: the rest of a short write
                data = data[count:]
                if not (count := os.write(handle.fd, data)):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        except _FAULTS as error:
            raise _fault("write", handle.path, error) from error

    def truncate(self, handle: Handle, size: int) -> None:
        try:
            os.ftruncate(handle.fd, size)
        except _FAULTS as error:
            raise _fault("truncate", handle.path, error) from error

    def allocate(self, handle: Handle, size: int) -> None:
        try:
            os.posix_fallocate(handle.fd, 0, size)
        except _FAULTS as error:
            raise _fault("reserve space for", handle.path, error) from error

    def chmod(self, handle: Handle, mode: int) -> None:
        try:
            os.fchmod(handle.fd, mode)
        except _FAULTS as error:
            raise _fault("set the mode of", handle.path, error) from error

    def chown(self, handle: Handle, uid: int, gid: int) -> None:
        try:
            os.fchown(handle.fd, uid, gid)
        except _FAULTS as error:
            raise _fault("set the owner of", handle.path, error) from error

    def attributes(self, handle: Handle) -> dict[str, bytes]:
        try:
            names = os.listxattr(handle.fd)
            return {name: os.getxattr(handle.fd, name) for name in names if is_kept(name)}
        except _FAULTS as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOTSUP, errno.ENOSYS):
                return {}
            raise _fault("read the attributes of", handle.path, error) from error

    def set_attribute(self, handle: Handle, name: str, value: bytes | None) -> None:
        try:
            if value is None:
                os.removexattr(handle.fd, name)
            else:
                os.setxattr(handle.fd, name, value)
        except _FAULTS as error:
            raise _fault(f"set {name} of", handle.path, error) from error

    def fsync(self, handle: Handle) -> None:
        try:
            os.fsync(handle.fd)
        except _FAULTS as error:
            raise _fault("sync", handle.path, error) from error

    def syncfs(self, handle: Handle) -> bool:
        call = _syncfs_call()
        if call is None:
            return False
        while code := call(handle.fd):
            if code != errno.EINTR:
                error = OSError(code, os.strerror(code))
                raise _fault("sync the file system of", handle.path, error) from error
        return True

    def try_lock(self, handle: Handle) -> bool:
        try:
            fcntl.flock(handle.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except _FAULTS as error:
            raise _fault("lock", handle.path, error) from error
        return True

    def close(self, handle: Handle) -> None:
        fd, handle.fd = handle.fd, -1
        if fd < 0:
            return
        try:
            os.close(fd)
        except InterruptedError:  # Linux closes it nevertheless
            return
        except _FAULTS as error:
            raise _fault("close", handle.path, error) from error

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        try:
            os.rename(old, new, src_dir_fd=_fd(at), dst_dir_fd=_fd(at))
        except _FAULTS as error:
            raise _fault("replace", _where(new, at), error) from error

    def symlink(self, text: str, path: str | Path, at: Handle | None = None) -> None:
        try:
            os.symlink(text, path, dir_fd=_fd(at))
        except _FAULTS as error:
            raise _fault("link", _where(path, at), error) from error

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        try:
            os.unlink(path, dir_fd=_fd(at))
        except _FAULTS as error:
            raise _fault("remove", _where(path, at), error) from error

    def mkdir(self, path: str | Path, mode: int, at: Handle | None = None) -> None:
        try:
            os.mkdir(path, mode, dir_fd=_fd(at))
        except _FAULTS as error:
            raise _fault("create", _where(path, at), error) from error

    def rmdir(self, path: str | Path, at: Handle | None = None) -> None:
        try:
            os.rmdir(path, dir_fd=_fd(at))
        except _FAULTS as error:
            raise _fault("remove", _where(path, at), error) from error

    def listdir(self, handle: Handle) -> list[str]:
        try:
            return os.listdir(handle.fd)
        except _FAULTS as error:
            raise _fault("list", handle.path, error) from error

    def lstat(self, path: str | Path, at: Handle | None = None) -> Stat | None:
        try:
            return _stat(os.stat(path, dir_fd=_fd(at), follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _FAULTS as error:
            raise _fault("inspect", _where(path, at), error) from error

    def fstat(self, handle: Handle) -> Stat:
        try:
            return _stat(os.fstat(handle.fd))
        except _FAULTS as error:
            raise _fault("inspect", handle.path, error) from error

    def mount(self, handle: Handle) -> int:
        try:
            with open(f"/proc/self/fdinfo/{handle.fd}", "rb") as lines:
                return next((int(line[7:]) for line in lines if line.startswith(b"mnt_id:")), 0)
        except (OSError, ValueError):
            return 0

    def readlink(self, path: str | Path, at: Handle | None = None) -> str:
        try:
            return os.readlink(path, dir_fd=_fd(at))
        except _FAULTS as error:
            raise _fault("read the link", _where(path, at), error) from error

    def uid(self) -> int:
        return os.geteuid()

    def gid(self) -> int:
        return os.getegid()

    def token(self) -> str:
        return os.urandom(8).hex()

    def _open(self, verb: str, path: str | Path, at: Handle | None, flags: int, mode: int = 0) -> Handle:
        where = _where(path, at)
        try:
            return Handle(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=_fd(at)), where)
        except _FAULTS as error:
            raise _fault(verb, where, error) from error


class closing:
    """Close a handle at the end of a block."""

    __slots__ = ("_fs", "_handle")

    def __init__(self, fs: Fs, handle: Handle) -> None:
        self._fs = fs
        self._handle = handle

    def __enter__(self) -> Handle:
        return self._handle

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._fs.close(self._handle)


def disk_error(verb: str, path: str, cause: OSError) -> DiskError:
    """Return the DiskError for a system error: the operation, the path and a fix."""
    code = cause.errno or 0
    what = os.strerror(code) if code else str(cause)
    return DiskError(f"cannot {verb} {path}: {what}", path=path, errno=code, fix=_fix(code, path))


def _fix(code: int, path: str) -> str:
    parent = os.path.dirname(path) or "."
    match code:
        case errno.ENOSPC:
            return f"free space (or inodes) on the file system of {parent}; see df -h and df -i"
        case errno.EDQUOT:
            return f"raise the disk quota or free space in {parent}"
        case errno.EROFS:
            return f"mount the file system of {parent} read-write, or list it in ReadWritePaths= of the unit"
        case errno.EACCES | errno.EPERM:
            return f"run as the owner of {parent}, or as root; see ls -ld {parent} and lsattr -d {path}"
        case errno.EIO:
            return "check the disk; see dmesg"
        case errno.EMFILE | errno.ENFILE:
            return "raise LimitNOFILE= of the unit"
        case errno.ENOENT:
            return f"create {parent}; cert-ctrl -c DIR init creates a whole config directory"
        case errno.ELOOP | errno.ENOTDIR:
            return f"replace {path} by a real directory or file, not a link"
        case errno.EEXIST | errno.EISDIR | errno.ENOTEMPTY:
            return f"move {path} away"
        case errno.EFBIG:
            return "raise LimitFSIZE= of the unit"
        case _:
            return f"check {path} and its file system"


_FAULTS = (OSError, ValueError)
"""What system calls raise; ValueError for a NUL, or for characters that the locale cannot encode."""


def _fault(verb: str, path: str, error: OSError | ValueError) -> DiskError:
    """Return the DiskError of a system call."""
    if isinstance(error, OSError):
        return disk_error(verb, path, error)
    where = ascii(path)
    return DiskError(f"cannot {verb} {where}: {_unusable(error)}", path=where, errno=errno.EILSEQ, fix=_LOCALE)


_LOCALE = "use another name, or a UTF-8 locale: LANG=C.UTF-8 in the unit"


def _unusable(error: ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"this locale ({error.encoding}) cannot encode its name"
    return "no file can have this name"


def _where(path: str | Path, at: Handle | None) -> str:
    return str(path) if at is None else f"{at.path.rstrip('/')}/{path}"


def _fd(at: Handle | None) -> int | None:
    return None if at is None else at.fd


def _stat(raw: os.stat_result) -> Stat:
    kind = _KINDS.get(stat.S_IFMT(raw.st_mode), FileKind.OTHER)
    return Stat(
        kind,
        stat.S_IMODE(raw.st_mode),
        raw.st_uid,
        raw.st_gid,
        raw.st_size,
        raw.st_nlink,
        raw.st_ino,
        raw.st_dev,
        raw.st_mtime_ns,
    )


@cache
def _syncfs_call() -> Callable[[int], int] | None:
    """Return the C library's syncfs as a function that returns errno or 0; None before Linux 5.8 (hides write errors)."""
    release = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in os.uname().release.split(".")[:2])
    if release < (5, 8):
        return None
    import ctypes  # here: few commands sync

    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        return None
    call.argtypes, call.restype = (ctypes.c_int,), ctypes.c_int
    return lambda fd: ctypes.get_errno() if call(fd) else 0
