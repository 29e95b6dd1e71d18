"""The rotated log file: mode 0600 from its first byte; bounded in size, number and age.

``agent.log`` → ``agent.log.1`` → … The file is rotated when the next line would exceed ``max_bytes``, or when its
first line is older than ``max_age_days``; rotated files older than that are removed. All files together stay below
``(keep_files + 1) · max_bytes``. A failing disk never stops the agent: the handler drops lines that it cannot write,
retries every minute, and logs how many lines are missing.
"""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from certctrl.errors import ConfigError, DiskError
from certctrl.logs.stderr import missing_lines
from certctrl.store.disk.fs import Handle, closing
from certctrl.store.layout import SECRET_MODE

if TYPE_CHECKING:
    from certctrl.model.config import LogConfig
    from certctrl.store.disk.fs import Fs

RETRY_SECONDS = 60.0
DAY = 86_400.0
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)")


class LogFile(logging.Handler):
    """A handler that appends to a file and rotates it; time is the creation time of the records."""

    def __init__(self, path: Path, fs: Fs, *, max_bytes: int, max_age_days: float, keep_files: int) -> None:
        super().__init__()
        self._path = path
        self._fs = fs
        self._max_bytes = max_bytes
        self._max_age = max_age_days * DAY
        self._keep = keep_files
        self._handle: Handle | None = None
        self._size = 0
        self._started = 0.0
        self._lost = 0
        self._retry_at = 0.0

    @classmethod
    def in_directory(cls, logs: Path, config: LogConfig, fs: Fs) -> LogFile:
        """Return the handler for ``log_config.json``. Raises ConfigError for a file outside ``logs/``."""
        name = PurePosixPath(config.file)
        if name.is_absolute() or ".." in name.parts or len(name.parts) != 1:
            what = f"expected a plain file name inside {logs}, got {config.file!r}"
            raise ConfigError(what, file="log_config.json", path="file", fix='"file": "agent.log"')
        return cls(
            logs / name,
            fs,
            max_bytes=config.max_bytes,
            max_age_days=config.max_age_days,
            keep_files=config.keep_files,
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record; rotate first if due."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:
            self.handleError(record)
            return
        if record.created < self._retry_at:
            self._lost += 1
            return
        try:
            self._append(line, record.created)
        except DiskError:
            self._lost += 1
            self._retry_at = record.created + RETRY_SECONDS
            self._close_file()

    def close(self) -> None:
        """Close the file."""
        self._close_file()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the line as lost; logging must not break the agent."""
        self._lost += 1

    def _append(self, line: bytes, now: float) -> None:
        handle = self._handle or self._open(now)
        if self._due(len(line), now):
            self._close_file()
            self._rotate(now)
            handle = self._open(now)
        if self._lost:
            line = missing_lines(self._lost, now) + line
        self._fs.write(handle, line)
        self._size += len(line)
        self._lost = 0

    def _due(self, more: int, now: float) -> bool:
        if self._size == 0:
            return False
        return self._size + more > self._max_bytes or now - self._started > self._max_age

    def _open(self, now: float) -> Handle:
        handle = self._fs.open_append(self._path, SECRET_MODE)
        found = self._fs.fstat(handle)
        if found.mode != SECRET_MODE:  # created by the operator or another program
            self._fs.chmod(handle, SECRET_MODE)
        self._handle, self._size = handle, found.size
        self._started = self._first_line_at(now) if found.size else now
        return handle

    def _first_line_at(self, now: float) -> float:
        """Return the time stamp of the first line; ``now`` without a valid one."""
        with closing(self._fs, self._fs.open_file(self._path)) as handle:
            stamp = _STAMP.search(self._fs.read(handle, 200))
        if stamp is None:
            return now
        try:
            return datetime.fromisoformat(f"{stamp[1].decode()}T{stamp[2].decode()}+00:00").timestamp()
        except ValueError:
            return now

    def _rotate(self, now: float) -> None:
        if self._keep == 0:
            self._fs.unlink(self._path)
            return
        for number in range(self._keep, 0, -1):
            older, newer = self._numbered(number), self._numbered(number - 1)
            if self._fs.lstat(newer) is not None:
                self._fs.rename(newer, older)
        self._remove_old(now)

    def _remove_old(self, now: float) -> None:
        """Remove rotated files above ``keep_files`` (after a larger setting) or older than ``max_age_days``."""
        with closing(self._fs, self._fs.open_dir(self._path.parent)) as folder:
            for name in self._fs.listdir(folder):
                stem, _, number = name.rpartition(".")
                if stem != self._path.name or not number.isdecimal():
                    continue
                facts = self._fs.lstat(name, at=folder)
                old = facts is not None and now - facts.mtime_ns / 1e9 > self._max_age
                if int(number) > self._keep or old:
                    self._fs.unlink(name, at=folder)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _close_file(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            try:
                self._fs.close(handle)
            except DiskError:
                self._lost += 1  # a failed close lost at least the last line
