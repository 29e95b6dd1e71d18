"""Locks: one daemon per config directory, one spender of tokens (safety.md §4.3).

flock on files that are never removed: the kernel frees it with the process, also after kill -9, so there is no
pid to distrust and no age to guess. The descriptors are close-on-exec: a command that outlives its parent must
not keep the lock. The pid in the file is for messages only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from certctrl.errors import BusyError, ConfigError, DiskError
from certctrl.store.disk.fs import Fs, Handle, RealFs, closing
from certctrl.store.disk.tree import adopt_owner
from certctrl.store.layout import SECRET_MODE, ConfigDir


class FileLock:
    """An exclusive lock on a file; two of them exclude each other also inside one process. Never waits."""

    def __init__(self, path: Path, fs: Fs | None = None) -> None:
        self.path = path
        self._fs = fs or RealFs()
        self._handle: Handle | None = None

    @property
    def held(self) -> bool:
        """Return whether this object has the lock."""
        return self._handle is not None

    def try_acquire(self) -> bool:
        """Take the lock; False while somebody else has it. Raises DiskError; ConfigError without a directory."""
        if self._handle is not None:
            return False
        if self._fs.lstat(self.path.parent) is None:
            fix = f"cert-ctrl -c {self.path.parent.parent} init --server URL"
            raise ConfigError("no such config directory", file=str(self.path.parent.parent), fix=fix)
        handle = self._fs.open_lock(self.path, SECRET_MODE)
        try:
            if not self._fs.try_lock(handle) or not self._is_current(handle):
                self._fs.close(handle)
                return False
            self._sign(handle)
        except BaseException:
            self._fs.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock back; doing it twice is nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._fs.close(handle)

    def holder(self) -> int | None:
        """Return the pid that took the lock last; None when the file does not say."""
        try:
            with closing(self._fs, self._fs.open_file(self.path)) as handle:
                return int(self._fs.read(handle, 32))
        except (DiskError, ValueError):
            return None

    def _is_current(self, handle: Handle) -> bool:
        """Return whether the name still leads to what we locked; somebody may have put another file there."""
        found = self._fs.lstat(self.path)
        return found is not None and found.ino == self._fs.fstat(handle).ino

    def _sign(self, handle: Handle) -> None:
        with suppress(DiskError):  # on a full disk the lock still is one
            with closing(self._fs, self._fs.open_dir(self.path.parent)) as parent:
                adopt_owner(self._fs, handle, parent)
            self._fs.truncate(handle, 0)
            self._fs.write(handle, b"%d\n" % os.getpid())


@contextmanager
def lock_daemon(layout: ConfigDir, fs: Fs | None = None) -> Iterator[FileLock]:
    """Be the one process that writes in this config directory; BusyError names the other one."""
    lock = FileLock(layout.daemon_lock, fs)
    if not lock.try_acquire():
        holder = lock.holder()
        who = f"another cert-ctrl (pid {holder})" if holder else "another cert-ctrl"
        fix = f"ask it: cert-ctrl -c {layout.root} status --daemon" + (f"; or stop it: kill {holder}" if holder else "")
        raise BusyError(f"{who} is at work in {layout.root}", fix=fix)
    try:
        yield lock
    finally:
        lock.release()


def token_lock(layout: ConfigDir, fs: Fs | None = None) -> FileLock:
    """Return the lock of whoever spends or stores tokens; not taken yet. Hold it 35 s at most."""
    return FileLock(layout.token_lock, fs)
