"""The audit log of deployments: one JSON object per line, appended, bounded.

Appends are not synced: a power cut may lose or tear the last lines; torn lines are ignored. What must survive a power
cut is in ``certificates.json`` and ``activations.json``.
"""

from __future__ import annotations

import json
import threading
from itertools import islice
from pathlib import Path
from typing import Any

from certctrl.errors import DiskError
from certctrl.store.disk.atomic import adopt_owner, read_bytes, write_atomic
from certctrl.store.disk.fs import Fs, closing
from certctrl.store.layout import SECRET_MODE

SIZE_LIMIT = 256 * 1024 * 1024
_SLACK = 1.25


class History:
    """The audit log of deployments."""

    def __init__(self, path: Path, fs: Fs) -> None:
        self._path = path
        self._fs = fs
        self._lock = threading.Lock()
        self._lines: int | None = None  # None: unknown, or the last line may be incomplete

    def load(self) -> list[dict[str, Any]]:
        """Return the entries, oldest first; lines that are not JSON objects are ignored."""
        return [entry for line in self._read().split(b"\n") if (entry := _entry(line)) is not None]

    def append(self, entries: list[dict[str, Any]], limit: int) -> None:
        """Append entries, oldest first; each leaves the list once it is in the file.

        If the file then has over 25 % more than ``limit`` entries, only the newest ``limit`` are kept.
        """
        with self._lock:
            if self._lines is None:
                self._rewrite(limit)
            if entries:
                self._write(entries)
            if self._lines is not None and self._lines > limit * _SLACK:
                self._rewrite(limit)

    def _read(self) -> bytes:
        try:
            return read_bytes(self._fs, self._path, SIZE_LIMIT) or b""
        except DiskError as error:
            if error.errno:
                raise
            return b""  # not a regular file

    def _write(self, entries: list[dict[str, Any]]) -> None:
        count, self._lines = self._lines or 0, None
        with closing(self._fs, self._fs.open_dir(self._path.parent)) as parent:
            with closing(self._fs, self._fs.open_append(self._path.name, SECRET_MODE, at=parent)) as handle:
                if self._fs.fstat(handle).size == 0:
                    adopt_owner(self._fs, handle, parent)
                while entries:
                    self._fs.write(handle, _line(entries[0]))
                    del entries[0]
                    count += 1
        self._lines = count

    def _rewrite(self, limit: int) -> None:
        """Keep whole lines only, the newest ``limit``; nothing is written if nothing changes."""
        data = self._read()
        good = (line for line in reversed(data.split(b"\n")) if _entry(line) is not None)
        kept = [*islice(good, limit)][::-1]
        lines = b"".join(line + b"\n" for line in kept)
        if data != lines:
            write_atomic(self._fs, self._path, lines)
        self._lines = len(kept)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
