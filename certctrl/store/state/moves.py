"""The mark of a move to another control plane that has begun and is not finished."""

from __future__ import annotations

from certctrl.errors import ConfigError
from certctrl.store.disk.atomic import read_bytes, remove_file, write_atomic
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir

_MAX_BYTES = 8192


def begun_move(layout: ConfigDir, fs: Fs) -> str | None:
    """Return the directory from which a move was begun and not finished; None if there is none. Raises DiskError."""
    found = read_bytes(fs, layout.move, _MAX_BYTES)
    return None if found is None else found.decode("utf-8", "replace").strip()


def begin_move(layout: ConfigDir, fs: Fs, source: ConfigDir) -> None:
    """Mark that a move from a directory has begun, durably."""
    write_atomic(fs, layout.move, f"{source.root}\n".encode())


def end_move(layout: ConfigDir, fs: Fs) -> None:
    """Remove the mark."""
    remove_file(fs, layout.move)


def refuse_unfinished_move(layout: ConfigDir, fs: Fs) -> None:
    """Raise ConfigError if a move was interrupted: configuration and session may be of different planes."""
    if fs.lstat(layout.move) is not None:
        fix = f"finish it: cert-ctrl -c {layout.root} move {begun_move(layout, fs)}"
        raise ConfigError("a move to another control plane was interrupted", file=str(layout.move), fix=fix)
