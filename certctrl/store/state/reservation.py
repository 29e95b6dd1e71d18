"""Reserve disk space for new tokens before the refresh token is used.

A server that rotates refresh tokens invalidates the old one when the request arrives. If the disk filled up between
request and response, the device would lose its registration. So both temporary files are created and their blocks
allocated first: writing to allocated blocks succeeds even on a full disk, and renaming needs no space.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from certctrl.errors import DiskError
from certctrl.model.records import Tokens
from certctrl.store.disk.atomic import discard, temp_name
from certctrl.store.disk.fs import Fs, Handle, closing
from certctrl.store.layout import SECRET_MODE, ConfigDir


class Reservation:
    """Two allocated temporary files; ended by `commit`, `release` or the end of a ``with`` block."""

    def __init__(
        self, fs: Fs, layout: ConfigDir, size: int, save: Callable[[Tokens], None], also: Callable[[Tokens], None]
    ) -> None:
        """``save`` stores tokens without a reservation, ``also`` the features that came with them."""
        self._fs = fs
        self._save = save
        self._also = also
        self._temps: list[tuple[Path, str, Handle]] = []
        self._parent = fs.open_dir(layout.state)
        try:
            for path in (layout.refresh_token, layout.access_token):
                self._reserve(path, size)
        except BaseException:
            self.release()
            raise

    def _reserve(self, path: Path, size: int) -> None:
        temp = temp_name(self._fs, path.name)
        handle = self._fs.create(temp, SECRET_MODE, at=self._parent)
        self._temps.append((path, temp, handle))
        self._fs.try_lock(handle)
        self._fs.allocate(handle, size)
        self._fs.fsync(handle)

    def commit(self, tokens: Tokens) -> None:
        """Make the tokens durable, the refresh token first. After DiskError, keep them in memory and save them again."""
        try:
            for text in (tokens.refresh_token, tokens.access_token):
                self._fill(text.encode())
        except DiskError:
            self.release()
            self._save(tokens)  # a failed fsync may have lost the bytes: write them again
            return
        self.release()
        self._also(tokens)

    def _fill(self, data: bytes) -> None:
        path, temp, handle = self._temps[0]
        self._fs.write(handle, data)
        self._fs.truncate(handle, len(data))
        self._fs.fsync(handle)
        self._fs.rename(temp, path.name, at=self._parent)
        self._temps.pop(0)
        with closing(self._fs, handle):
            self._fs.fsync(self._parent)

    def release(self) -> None:
        """Free the space; idempotent."""
        while self._temps:
            _, temp, handle = self._temps.pop()
            discard(self._fs, handle, temp, self._parent)
        self._fs.close(self._parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
