"""Refuse a config directory that a later release has used in a way that this one cannot read.

Checked before anything in it is changed: the first unreadable file could otherwise be found in the middle of the work,
after recovery has renamed files, or count as damage that the agent repairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from certctrl.errors import DiskError
from certctrl.store import decode
from certctrl.store.disk.fs import FileKind, Fs, closing
from certctrl.store.layout import ConfigDir

_HEAD = re.compile(rb'\{"%b":(\d{1,9})[,}]' % decode.VERSION_KEY.encode())
_HEAD_BYTES = 64
_SUFFIXES = (".json", ".jsonl")


def refuse_later_state(layout: ConfigDir, fs: Fs) -> None:
    """Raise LaterStateError if a state file or journal has a later version; unreadable files are left to their readers."""
    for path in _files(layout, fs):
        found = None
        with suppress(DiskError), closing(fs, fs.open_file(path)) as handle:
            if fs.fstat(handle).kind is FileKind.FILE:
                found = _HEAD.match(fs.read(handle, _HEAD_BYTES))
        if found and int(found[1]) > decode.VERSION:
            raise decode.of_later_release(str(path), int(found[1]))


def _files(layout: ConfigDir, fs: Fs) -> Iterator[Path]:
    for folder in (layout.state, layout.journal):
        names: list[str] = []
        with suppress(DiskError), closing(fs, fs.open_dir(folder)) as handle:
            names = fs.listdir(handle)
        yield from (folder / name for name in sorted(names) if name.endswith(_SUFFIXES))
