"""Locks between processes: one daemon per config directory, one token refresh at a time.

The locks are flocks on files that are never removed. The kernel releases them with the process, even after kill -9, so
no lock can be stale. The descriptors are close-on-exec: a command that outlives its parent does not keep the lock. The
pid in the file is for messages only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from certctrl.errors import BusyError, ConfigError, DiskError
from certctrl.store.disk.fs import Fs, Handle, RealFs, closing
from certctrl.store.layout import SECRET_MODE, ConfigDir


class FileLock:
    """An exclusive lock on a file that never waits; two of them exclude each other even within one process."""

    def __init__(self, path: Path, fs: Fs | None = None) -> None:
        self.path = path
        self._fs = fs or RealFs()
        self._handle: Handle | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._handle is not None

    def try_acquire(self) -> bool:
        """Take the lock; False if another holder has it. Raises DiskError, ConfigError without a config directory."""
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
        """Release the lock; idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._fs.close(handle)

    def holder(self) -> int | None:
        """Return the pid that took the lock last; None if it cannot be read."""
        try:
            with closing(self._fs, self._fs.open_file(self.path)) as handle:
                return int(self._fs.read(handle, 32))
        except (DiskError, ValueError):
            return None

    def _is_current(self, handle: Handle) -> bool:
        """Return whether the path still leads to the locked file: it may have been replaced."""
        found = self._fs.lstat(self.path)
        return found is not None and found.ino == self._fs.fstat(handle).ino

    def _sign(self, handle: Handle) -> None:
        with suppress(DiskError):  # the lock works even on a full disk
            self._fs.truncate(handle, 0)
            self._fs.write(handle, b"%d\n" % os.getpid())


@contextmanager
def lock_daemon(layout: ConfigDir, fs: Fs | None = None) -> Iterator[FileLock]:
    """Hold the lock of the one process that writes in this config directory. Raises BusyError, naming the holder."""
    lock = FileLock(layout.daemon_lock, fs)
    if not lock.try_acquire():
        holder = lock.holder()
        who = f"another cert-ctrl (pid {holder})" if holder else "another cert-ctrl"
        fix = f"see cert-ctrl -c {layout.root} status --daemon" + (f", or stop it: kill {holder}" if holder else "")
        raise BusyError(f"{who} is running in {layout.root}", fix=fix)
    try:
        yield lock
    finally:
        lock.release()


def token_lock(layout: ConfigDir, fs: Fs | None = None) -> FileLock:
    """Return the lock, not yet taken, for refreshing or storing tokens. Hold it for at most 35 s."""
    return FileLock(layout.token_lock, fs)
