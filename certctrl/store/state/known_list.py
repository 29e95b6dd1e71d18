"""KnownListFile: the certificate list of the plane as of a revision, so that only changes are fetched.

Not durable: a file that a power cut lost or tore is detected by its hash and read as absent, which costs one whole
fetch. Nothing else depends on it.
"""

from __future__ import annotations

import hashlib

from certctrl import lean
from certctrl.errors import DiskError
from certctrl.protocol.wire.certificate_changes import KnownList
from certctrl.store import decode
from certctrl.store.disk.atomic import remove_file, write_atomic
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.files import StateFiles

LIMIT = 12 * 1024 * 1024
"""Bytes; a longer list is not kept."""
_FIX = "remove it; the next comparison writes it again"


@lean.frozen(kw_only=True)
class _Head:
    """The first line."""

    revision: str
    sha256: str
    whole_at: float = 0.0


class KnownListFile:
    """``state/certificate_list.txt``: a line with the revision and a hash of the rest, then a line per certificate."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self._path = layout.certificate_list
        self._fs = fs

    def load(self) -> KnownList | None:
        """Return the list; None if there is none, or if it is damaged or of a later release."""
        files = StateFiles(self._fs)
        try:
            data = files.load_bytes(self._path, LIMIT, _FIX)
            first, _, rest = (data or b"").partition(b"\n")
            raw = decode.object_of(first, str(self._path), _FIX)
            head: _Head = files.structured(_Head, raw, "", self._path, _FIX)
        except DiskError:
            return None
        if head.sha256 != hashlib.sha256(rest).hexdigest():
            return None
        try:
            pairs = [line.partition(b" ") for line in rest.split(b"\n")[:-1]]
            rows = {int(number): row.decode() for number, _, row in pairs}
        except ValueError:  # written by a later release
            return None
        return KnownList(head.revision, rows, head.whole_at)

    def save(self, known: KnownList) -> None:
        """Replace the list. Raises DiskError."""
        rest = "".join(f"{number} {row}\n" for number, row in known.rows.items()).encode()
        head = _Head(revision=known.revision, sha256=hashlib.sha256(rest).hexdigest(), whole_at=known.whole_at)
        data = decode.to_json(StateFiles(self._fs).unstructured(head)) + rest
        if len(data) > LIMIT:
            self.remove()
        else:
            write_atomic(self._fs, self._path, data, durable=False)

    def remove(self) -> None:
        """Forget the list. Raises DiskError."""
        remove_file(self._fs, self._path)
