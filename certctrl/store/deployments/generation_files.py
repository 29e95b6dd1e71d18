"""The files of generations: write one directory, read and verify it, find what is there."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import attrs
from cattrs import Converter

from certctrl.errors import DiskError, StateCorruptError
from certctrl.store import decode
from certctrl.store.disk.atomic import adopt_owner, read_bytes, swap_link_at
from certctrl.store.disk.fs import Fs, Handle, closing
from certctrl.store.layout import DIR_MODE, PUBLIC_MODE, SECRET_MODE, ConfigDir
from certctrl.store.structure import Mismatch, structure, tolerant_converter

TEMP = ".tmp-"
MANIFEST = "manifest.json"
FILE_LIMIT = 4 * 1024 * 1024
MANY = 3
"""From so many files or directories on, one syncfs costs less than an fsync each."""
_PUBLIC = frozenset({"certificate.pem", "chain.pem", "fullchain.pem", "certificate.der", "ca.pem", "ca.der"})
_MEND = "remove its directory; the agent then fetches the certificate again"

Manifest = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class _Written:
    """A manifest as it is on disk."""

    number: int
    name: str
    files: Mapping[str, str]
    """File name -> SHA-256."""
    facts: Mapping[str, Any]


@cache
def _converter() -> Converter:
    return tolerant_converter()


def identify(files: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """Return the id of a generation: a hash of its files' hashes and its facts."""
    text = json.dumps({"files": dict(files), "facts": dict(facts)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sync_all(fs: Fs, handles: Sequence[Handle]) -> None:
    """Make several files or directories of one file system durable, in as few system calls as can be relied on."""
    if len(handles) >= MANY and fs.syncfs(handles[0]):
        return
    for handle in handles:
        fs.fsync(handle)


def remove_tree(fs: Fs, parent: Handle, name: str) -> None:
    """Remove a directory with all that is in it, private keys first; links are removed, not followed."""
    if (found := fs.lstat(name, at=parent)) is not None and found.kind != "dir":
        fs.unlink(name, at=parent)
        return
    with closing(fs, fs.open_dir(name, at=parent)) as directory:
        for entry in sorted(fs.listdir(directory), key=lambda entry: (entry in _PUBLIC or entry == MANIFEST, entry)):
            try:
                fs.unlink(entry, at=directory)
            except DiskError as error:  # nearly never a directory: asking first would cost a call for each file
                if error.errno not in (errno.EISDIR, errno.EPERM):
                    raise
                remove_tree(fs, directory, entry)
    fs.rmdir(name, at=parent)


class GenerationFiles:
    """Below ``certs/``: paths, bytes, manifests. Knows nothing of order and durability but how to sync."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self._layout = layout
        self._fs = fs
        self._fresh: dict[tuple[str, str], bytes] = {}
        """Manifests of what was written and not switched to, as bytes: unpacked, one takes three times the room."""
        self._known: dict[str, list[tuple[int, str]]] = {}
        """What `numbered` found, kept up to date: listing a directory costs more than all else about its number."""

    # --- what is there ------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the directories below ``.generations``, leftovers included."""
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            return [
                name
                for name in sorted(self._fs.listdir(top))
                if (found := self._fs.lstat(name, at=top)) is not None and found.kind == "dir"
            ]

    def known(self, name: str) -> list[tuple[int, str]]:
        """Return (number, id) of every generation as it was seen last: nobody else writes here."""
        if name not in self._known:
            self._known[name] = self.numbered(name)
        return self._known[name]

    def numbered(self, name: str) -> list[tuple[int, str]]:
        """Return (number, id) of every generation with a good manifest."""
        home = self._layout.generations / name
        if self._fs.lstat(home) is None:
            return []
        with closing(self._fs, self._fs.open_dir(home)) as handle:
            entries = [entry for entry in self._fs.listdir(handle) if not entry.startswith(TEMP)]
        found = []
        for entry in entries:
            try:
                found.append((int(self.manifest(name, entry)["number"]), entry))
            except StateCorruptError:
                continue
        return found

    def live_id(self, name: str) -> str | None:
        """Return the id in the live link; None when there is no link."""
        link = self._layout.live_link(name)
        found = self._fs.lstat(link)
        if found is None:
            return None
        if found.kind == "link":
            up, home, owner, generation, *more = [*self._fs.readlink(link).split("/"), "", "", "", ""]
            if (up, home, owner) == ("..", self._layout.generations.name, name) and generation and not any(more):
                return generation
        raise StateCorruptError(
            f"{link} does not lead to a generation of {name}",
            path=str(link),
            fix=f"remove {link}; the agent then fetches the certificate again",
        )

    def manifest(self, name: str, generation: str) -> Manifest:
        """Return a manifest that fits its id, from memory until it is switched to."""
        path = self._layout.generation(name, generation) / MANIFEST
        if (fresh := self._fresh.get((name, generation))) is not None:
            return decode.object_of(fresh, str(path), _MEND) | {"id": generation}
        data = read_bytes(self._fs, path, FILE_LIMIT)
        if data is None:
            raise StateCorruptError(f"{path} is missing", path=str(path), fix=_MEND)
        return self._checked(decode.object_of(data, str(path), _MEND), generation, str(path))

    def _checked(self, raw: dict[str, Any], generation: str, path: str) -> Manifest:
        try:
            found: _Written = structure(_Written, raw, converter=_converter())
        except Mismatch as mismatch:
            raise decode.corrupt(path, str(mismatch), _MEND) from None
        hashed = identify(found.files, found.facts)
        if hashed != generation.partition(".")[0] or any("/" in file for file in found.files):
            raise decode.corrupt(path, "it does not fit its directory", _MEND)
        return attrs.asdict(found, recurse=False) | {"id": generation}

    def settled(self, name: str, number: int, generation: str) -> None:
        """Remember a generation that is under its id now."""
        if name in self._known:
            self._known[name] = [*self._known[name], (number, generation)]

    def forget(self, name: str, generation: str) -> None:
        """Drop what is remembered of a generation that is gone."""
        self.switched(name, generation)
        if name in self._known:
            self._known[name] = [one for one in self._known[name] if one[1] != generation]

    def forget_all(self, name: str) -> None:
        """Drop what is remembered of a name."""
        self._known.pop(name, None)
        for key in [key for key in list(self._fresh) if key[0] == name]:
            self.switched(*key)

    def switched(self, name: str, generation: str) -> None:
        """Drop a manifest that hardly anybody will ask for again."""
        self._fresh.pop((name, generation), None)

    def read(self, directory: Path, manifest: Manifest, file: str) -> bytes:
        """Return one file of a generation; StateCorruptError when it is not what the manifest says."""
        path = directory / file
        try:
            data = read_bytes(self._fs, path, FILE_LIMIT) if file in manifest["files"] else None
        except DiskError as error:
            if error.errno not in (0, errno.EFBIG, errno.ELOOP):
                raise
            raise StateCorruptError(str(error), path=str(path), fix=_MEND) from None
        if data is None:
            raise StateCorruptError(f"{path} is missing", path=str(path), fix=_MEND)
        if hashlib.sha256(data).hexdigest() != manifest["files"][file]:
            raise StateCorruptError(f"{path} is not the file that was written there", path=str(path), fix=_MEND)
        return data

    def verify(self, directory: Path, manifest: Manifest) -> None:
        """Read every file of a generation, by whatever path; StateCorruptError when one is not as written."""
        for file in manifest["files"]:
            self.read(directory, manifest, file)

    def whole(self, name: str, generation: str) -> Manifest | None:
        """Return the manifest of a generation whose files are all as written, else None."""
        self.switched(name, generation)  # what the disk says counts
        try:
            manifest = self.manifest(name, generation)
            self.verify(self._layout.generation(name, generation), manifest)
        except StateCorruptError:
            return None
        return manifest

    def is_complete(self, name: str, generation: str) -> bool:
        """Return whether all files of a generation are there, without reading them."""
        try:
            files = self.manifest(name, generation)["files"]
        except StateCorruptError:
            return False
        directory = self._layout.generation(name, generation)
        return all((found := self._fs.lstat(directory / file)) is not None and found.kind == "file" for file in files)

    # --- writing ------------------------------------------------------------------------------------------

    def make_home(self, name: str) -> None:
        """Make the directory that holds a name's generations."""
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise ValueError(f"no name for a certificate's directory: {name!r}")
        if self._fs.lstat(self._layout.generations / name) is not None:
            return
        self.forget_all(name)
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            self._fs.mkdir(name, DIR_MODE, at=top)
            with closing(self._fs, self._fs.open_dir(name, at=top)) as home:
                adopt_owner(self._fs, home, top)

    def write(self, name: str, files: Mapping[str, bytes], manifest: Manifest) -> Path:
        """Write a private temporary directory, the manifest last; return it. Nothing stays when this fails."""
        temp, text = f"{TEMP}{self._fs.token()}", decode.to_json(dict(manifest))
        with closing(self._fs, self._fs.open_dir(self._layout.generations / name)) as home:
            self._fs.mkdir(temp, DIR_MODE, at=home)
            try:
                with closing(self._fs, self._fs.open_dir(temp, at=home)) as directory:
                    adopt_owner(self._fs, directory, home)
                    for file, data in files.items():
                        self._write_file(directory, file, data)
                    self._write_file(directory, MANIFEST, text)
            except BaseException:
                self._drop(home, temp)
                raise
        self._fresh[name, manifest["id"]] = text
        return self._layout.generations / name / temp

    def _drop(self, home: Handle, temp: str) -> None:
        with suppress(DiskError):  # else it is swept at the next start; the first error is the one to see
            remove_tree(self._fs, home, temp)

    def _write_file(self, directory: Handle, file: str, data: bytes) -> None:
        mode = PUBLIC_MODE if file in _PUBLIC else SECRET_MODE
        with closing(self._fs, self._fs.create(file, mode, at=directory)) as handle:
            adopt_owner(self._fs, handle, directory)
            self._fs.write(handle, data)

    def sync_contents(self, directories: Sequence[Path]) -> None:
        """Make temporary directories durable with everything in them."""
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            if self._fs.syncfs(top):
                return
            for path in directories:
                with closing(self._fs, self._fs.open_dir(path)) as directory:
                    for file in self._fs.listdir(directory):
                        with closing(self._fs, self._fs.open_file(file, at=directory)) as handle:
                            self._fs.fsync(handle)
                    self._fs.fsync(directory)
            self._fs.fsync(top)  # the directories of new names

    def link_public(self, name: str, places: Mapping[Path, Handle]) -> set[Path]:
        """Make the spec's names lead through the live link; return the directories that changed."""
        links = self._layout.public_links(name).items()
        return {link.parent for link, text in links if swap_link_at(self._fs, places[link.parent], link.name, text)}

    def sync_inherited(self) -> None:
        """Make durable whatever an earlier process left renamed and not synced."""
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            if self._fs.syncfs(top):
                return
            self._fs.fsync(top)
            for path in (self._layout.live, self._layout.certs, self._layout.chains, self._layout.state):
                with closing(self._fs, self._fs.open_dir(path)) as handle:
                    self._fs.fsync(handle)
            for name in self.names():
                with closing(self._fs, self._fs.open_dir(name, at=top)) as home:
                    self._fs.fsync(home)
