"""StateFiles: read and replace the small files of the state directory, each whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from certctrl.errors import BadAnswerError, StateCorruptError
from certctrl.store import decode
from certctrl.store.disk.atomic import read_bytes, sweep_temps, write_atomic
from certctrl.store.disk.fs import Fs, closing
from certctrl.store.layout import ConfigDir


def sweep_leftovers(layout: ConfigDir, fs: Fs) -> int:
    """Remove the temporary files of crashed writers and return how many; call it under the daemon lock."""
    places = (layout.root, layout.state, layout.keys, layout.passwords)
    return sum(sweep_temps(fs, place) for place in places if fs.lstat(place) is not None)


class StateFiles:
    """Files by path. What this process wrote and nobody touched since is not written again."""

    def __init__(self, fs: Fs) -> None:
        self._fs = fs
        self._written: dict[Path, tuple[tuple[object, ...], bool]] = {}
        """What is there (hash and place), and whether the name leads to it for good."""

    def load_bytes(self, path: Path, limit: int, fix: str) -> bytes | None:
        """Return a file's bytes; None when it was never written. Raises DiskError, StateCorruptError."""
        found, parent = self._fs.lstat(path), self._fs.lstat(path.parent)
        if found is None or parent is None:
            return None
        me = self._fs.uid()
        if found.kind != "file":
            raise decode.corrupt(str(path), "it is no regular file", f"move {path} away; {fix}")
        if found.uid != me and (me != 0 or found.uid != parent.uid):
            raise StateCorruptError(
                f"{path} belongs to user {found.uid}, but this runs as user {me}",
                path=str(path),
                fix=f"chown {parent.uid} {path} if you trust what is in it",
            )
        if found.size > limit:
            raise decode.corrupt(str(path), f"it holds {found.size} bytes, expected at most {limit}", fix)
        return read_bytes(self._fs, path, limit)

    def load_text(self, path: Path, fix: str) -> str | None:
        """Return the line of a text file; None when it was never written."""
        data = self.load_bytes(path, decode.TEXT_LIMIT, fix)
        return None if data is None else decode.text_of(data, str(path), fix)

    def load_json(self, path: Path, fix: str) -> dict[str, Any] | None:
        """Return the object of a JSON file; None when it was never written."""
        data = self.load_bytes(path, decode.JSON_LIMIT, fix)
        return None if data is None else decode.object_of(data, str(path), fix)

    def load_part(self, path: Path, key: str, kind: Any, empty: Any, fix: str) -> Any:
        """Return one key of a JSON file as ``kind``, or ``empty`` when the file was never written."""
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
        """Replace a file durably, unless it is what this process wrote last and still is there.

        ``sync_parent=False`` makes the bytes durable, but not that the name leads to them.
        """
        digest, lasting = hashlib.sha256(data).digest(), sync_parent
        written, synced = self._written.pop(path, ((), False))
        if written != (digest, *self.place(path)):
            write_atomic(self._fs, path, data, sync_parent=sync_parent)
            written = (digest, *self.place(path))
        elif sync_parent and not synced:
            with closing(self._fs, self._fs.open_dir(path.parent)) as parent:
                self._fs.fsync(parent)
        else:
            lasting = synced
        self._written[path] = (written, lasting)

    def save_text(self, path: Path, text: str, what: str, *, sync_parent: bool = True) -> None:
        """Replace a text file. Raises BadAnswerError, naming ``what``, for text that no file of ours may hold."""
        if not decode.fits_text(text):
            raise BadAnswerError(f"the {what} is empty, too long, or holds control characters", fix="check the plane")
        self.save(path, text.encode(), sync_parent=sync_parent)

    def save_json(self, path: Path, body: dict[str, Any], *, sync_parent: bool = True) -> None:
        """Replace a JSON file."""
        self.save(path, decode.to_json(body), sync_parent=sync_parent)

    def note_cursor(self, path: Path, data: bytes) -> None:
        """Take ``data`` for what is at ``path``, though perhaps not durably: good for a file that may fall back."""
        self._written[path] = ((hashlib.sha256(data).digest(), *self.place(path)), False)

    def place(self, path: Path) -> tuple[int, int, int]:
        """Return what tells one state of a file from another; zeros for none."""
        found = self._fs.lstat(path)
        return (0, 0, 0) if found is None else (found.ino, found.mtime_ns, found.size)
