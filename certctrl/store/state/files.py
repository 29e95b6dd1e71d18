"""Read and atomically replace the small files of the state."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from certctrl.errors import BadAnswerError, StateCorruptError
from certctrl.store import decode
from certctrl.store.disk.atomic import read_bytes, sweep_temps, write_atomic
from certctrl.store.disk.fs import FileKind, Fs, closing
from certctrl.store.layout import ConfigDir


def sweep_leftovers(layout: ConfigDir, fs: Fs) -> int:
    """Remove the temporary files of crashed writers from the config directory; return how many."""
    places = (
        layout.state,
        layout.keys,
        layout.staged_keys,
        layout.passwords,
        layout.root,
    )  # the last may be read-only to the daemon
    return sum(sweep_temps(fs, place) for place in places if fs.lstat(place) is not None)


REBUILD = "restore it from a backup, or remove it; the agent then fetches and reconciles everything once"
"""Fix for a damaged file about the installation."""
RESYNC = "remove it; the agent then reconciles this host with the plane once"
"""Fix for a damaged file of the session."""


class StateFiles:
    """State files by path; a file that already has the new contents is not written again."""

    def __init__(self, fs: Fs) -> None:
        self._fs = fs
        self._written: dict[Path, tuple[tuple[object, ...], bool]] = {}
        """What this process wrote last (hash and version), and whether its name is durable."""

    def load_bytes(self, path: Path, limit: int, fix: str) -> bytes | None:
        """Return a file's bytes; None if it was never written. Raises DiskError, StateCorruptError."""
        found = self._fs.lstat(path)
        if found is None:
            return None
        me = self._fs.uid()
        if found.kind is not FileKind.FILE:
            raise decode.corrupt(str(path), "it is not a regular file", f"move {path} away; {fix}")
        if found.uid != me:
            raise StateCorruptError(
                f"{path} belongs to user {found.uid}, but the current user is {me}",
                path=str(path),
                fix=f"chown {me} {path} if you trust its contents",
            )
        if found.size > limit:
            raise decode.corrupt(str(path), f"it has {found.size} bytes, expected at most {limit}", fix)
        return read_bytes(self._fs, path, limit)

    def load_text(self, path: Path, fix: str) -> str | None:
        """Return the line of a text file; None if it was never written."""
        data = self.load_bytes(path, decode.TEXT_LIMIT, fix)
        return None if data is None else decode.text_of(data, str(path), fix)

    def load_json(self, path: Path, fix: str) -> dict[str, Any] | None:
        """Return the object of a JSON file; None if it was never written."""
        data = self.load_bytes(path, decode.JSON_LIMIT, fix)
        return None if data is None else decode.object_of(data, str(path), fix)

    def load_part(self, path: Path, key: str, kind: Any, empty: Any, fix: str) -> Any:
        """Return one key of a JSON file as ``kind``, or ``empty`` if the file was never written."""
        raw = self.load_json(path, fix)
        return empty if raw is None else self.structured(kind, raw.get(key), key, path, fix)

    def structured(self, kind: Any, raw: Any, where: str, path: Path, fix: str) -> Any:
        """Return parsed JSON as ``kind``; keys of later versions are ignored. Raises StateCorruptError."""
        from certctrl.store.state.converter import state_converter  # here: some commands only read text files
        from certctrl.store.structure import Mismatch, structure

        try:
            return structure(kind, raw, where, converter=state_converter())
        except Mismatch as mismatch:
            raise decode.corrupt(str(path), str(mismatch), fix) from None

    def unstructured(self, value: Any) -> Any:
        """Return a value as JSON that `structured` reads."""
        from certctrl.store.state.converter import state_converter

        return state_converter().unstructure(value)

    def save(self, path: Path, data: bytes, *, sync_parent: bool = True) -> None:
        """Replace a file durably, unless this process wrote the same bytes last and they are still there.

        With ``sync_parent=False`` the bytes become durable, but not the name: a power cut may bring the old file back.
        """
        digest, name_durable = hashlib.sha256(data).digest(), sync_parent
        written, synced = self._written.pop(path, ((), False))
        if written != (digest, *self.version_of(path)):
            write_atomic(self._fs, path, data, sync_parent=sync_parent)
            written = (digest, *self.version_of(path))
        elif sync_parent and not synced:
            with closing(self._fs, self._fs.open_dir(path.parent)) as parent:
                self._fs.fsync(parent)
        else:
            name_durable = synced
        self._written[path] = (written, name_durable)

    def save_text(self, path: Path, text: str, what: str, *, sync_parent: bool = True) -> None:
        """Replace a text file. Raises BadAnswerError, naming ``what``, for text that `load_text` would refuse."""
        if not decode.fits_text(text):
            raise BadAnswerError(
                f"the {what} is empty, too long, or contains control characters", fix="check the plane"
            )
        self.save(path, text.encode(), sync_parent=sync_parent)

    def save_json(self, path: Path, body: dict[str, Any], *, sync_parent: bool = True) -> None:
        """Replace a JSON file."""
        self.save(path, decode.to_json(body), sync_parent=sync_parent)

    def note_read(self, path: Path, data: bytes) -> None:
        """Remember that ``path`` contains ``data``, perhaps not durably, so that the same bytes are not written again."""
        self._written[path] = ((hashlib.sha256(data).digest(), *self.version_of(path)), False)

    def version_of(self, path: Path) -> tuple[int, int, int]:
        """Return inode, mtime and size, which change with every write; zeros for a missing file."""
        found = self._fs.lstat(path)
        return (0, 0, 0) if found is None else (found.ino, found.mtime_ns, found.size)
