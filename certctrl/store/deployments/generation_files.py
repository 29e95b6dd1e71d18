"""Files of generations: write, read, verify and list the directories."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import attrs
from cattrs import Converter

from certctrl import lean
from certctrl.errors import DiskError, StateCorruptError
from certctrl.store import decode
from certctrl.store.disk.atomic import is_temp, link_text, read_bytes, swap_link_at, temp_name
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.layout import ALIAS, DIR_MODE, PUBLIC_MODE, SECRET_MODE, ConfigDir, is_plain_name
from certctrl.store.structure import Mismatch, structure, tolerant_converter

TEMP = ".tmp-"
MANIFEST = "manifest.json"
FILE_LIMIT = 4 * 1024 * 1024
MANY = 3
"""Number of files or directories from which one syncfs costs less than an fsync each."""
_PUBLIC = frozenset({"certificate.pem", "chain.pem", "fullchain.pem", "certificate.der", "ca.pem", "ca.der"})
_FIX = "remove its directory; the agent then fetches the certificate again"

Manifest = Mapping[str, Any]


@lean.frozen(kw_only=True)
class _Written:
    """A manifest as stored on disk."""

    number: int
    name: str
    files: Mapping[str, str]
    """File name -> SHA-256."""
    facts: Mapping[str, Any]


@cache
def _converter() -> Converter:
    return tolerant_converter()


def identify(files: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """Return the id of a generation, a hash of its files' hashes and its facts; ValueError for facts that JSON lacks."""
    plain = {"files": dict(files), "facts": dict(facts)}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sync_all(fs: Fs, handles: Sequence[Handle]) -> None:
    """Make files or directories of one file system durable, with few system calls."""
    if len(handles) >= MANY and fs.syncfs(handles[0]):
        return
    for handle in handles:
        fs.fsync(handle)


def remove_tree(fs: Fs, parent: Handle, name: str) -> None:
    """Remove a directory tree, private keys first; links are removed, not followed."""
    try:
        opened = fs.open_dir(name, at=parent)
    except DiskError as error:  # rarely a file or a link
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        fs.unlink(name, at=parent)
        return
    with closing(fs, opened) as directory:
        for entry in sorted(fs.listdir(directory), key=lambda entry: (entry in _PUBLIC or entry == MANIFEST, entry)):
            try:
                fs.unlink(entry, at=directory)
            except DiskError as error:  # rarely a directory: checking first would cost a call per file
                if error.errno not in (errno.EISDIR, errno.EPERM):
                    raise
                remove_tree(fs, directory, entry)
    fs.rmdir(name, at=parent)


class GenerationFiles:
    """Paths, bytes and manifests below ``certs/``; the order of writes and syncs is up to `GenerationStore`."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self._layout = layout
        self._fs = fs
        self._not_live: dict[tuple[str, str], bytes] = {}
        """Manifests of generations not yet switched to, as bytes: parsed, each needs three times the memory."""
        self._known: dict[str, list[tuple[int, str]]] = {}
        """Results of `numbered`, kept current, because listing a directory is slow."""
        self.doomed: set[Path] = set()
        """Directories that `clear_up` removes: their removal failed, or they will not be settled."""
        self._doomed_lock = Lock()

    # --- reading ------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the directories below ``.generations``, including leftovers."""
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            return [
                name
                for name in sorted(self._fs.listdir(top))
                if (found := self._fs.lstat(name, at=top)) is not None and found.kind is FileKind.DIR
            ]

    def known(self, name: str) -> list[tuple[int, str]]:
        """Return (number, id) of every generation, cached: no other process writes here."""
        if name not in self._known:
            self._known[name] = self.numbered(name)
        return self._known[name]

    def numbered(self, name: str) -> list[tuple[int, str]]:
        """Return (number, id) of every generation with a valid manifest."""
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
        """Return the id that the live link leads to; None without a link, or with a directory in its place.

        Programs that copy what links lead to, such as some backups, make such directories.
        """
        link = f"{self._layout.live}/{name}"
        found = link_text(self._fs, link)
        if found is None or (not found and self.is_flattened(name)):
            return None
        start = self._live_start(name)
        if found.startswith(start) and is_plain_name(generation := found[len(start) :]):
            return generation
        raise StateCorruptError(
            f"{link} does not lead to a generation of {name}",
            path=link,
            fix=f"remove {link}; the agent then fetches the certificate again",
        )

    def is_flattened(self, name: str) -> bool:
        """Return whether there is a directory in place of a live link."""
        found = self._fs.lstat(self._layout.live / name)
        return found is not None and found.kind is FileKind.DIR

    def move_flattened(self, name: str, live: Handle) -> None:
        """Move a directory out of the place of a live link; `clear_up` or the next sweep removes it, with its key.

        ``live``: the open directory of live links.
        """
        doomed = temp_name(self._fs, name)
        self._fs.rename(name, doomed, at=live)
        self.doomed.add(self._layout.live / doomed)

    def _live_start(self, name: str) -> str:
        return f"../{self._layout.generations.name}/{name}/"

    def live_text(self, name: str, generation: str) -> str:
        """Return the text of the live link to a generation."""
        return self._live_start(name) + generation

    def manifest(self, name: str, generation: str) -> Manifest:
        """Return a manifest that matches its id, from memory until the generation is live."""
        path = f"{self._layout.generations}/{name}/{generation}/{MANIFEST}"
        if (cached := self._not_live.get((name, generation))) is not None:
            return decode.object_of(cached, path, _FIX)
        data = read_bytes(self._fs, path, FILE_LIMIT)
        if data is None:
            raise StateCorruptError(f"{path} is missing", path=path, fix=_FIX)
        return self._checked(decode.object_of(data, path, _FIX), generation, path)

    def _checked(self, raw: dict[str, Any], generation: str, path: str) -> Manifest:
        try:
            found: _Written = structure(_Written, raw, converter=_converter())
        except Mismatch as mismatch:
            raise decode.corrupt(path, str(mismatch), _FIX) from None
        try:
            hashed = identify(found.files, found.facts)
        except ValueError as error:
            raise decode.corrupt(path, str(error), _FIX) from None
        if hashed != generation.partition(".")[0] or not all(map(is_plain_name, found.files)):
            raise decode.corrupt(path, "it does not match its directory", _FIX)
        return attrs.asdict(found, recurse=False) | {"id": generation}

    def note_settled(self, name: str, number: int, generation: str) -> None:
        """Remember a generation that now has its final name."""
        if name in self._known and (number, generation) not in self._known[name]:
            self._known[name] = [*self._known[name], (number, generation)]

    def forget(self, name: str, generation: str) -> None:
        """Forget a generation that was removed."""
        self.drop_manifest(name, generation)
        if name in self._known:
            self._known[name] = [one for one in self._known[name] if one[1] != generation]

    def forget_all(self, name: str) -> None:
        """Forget all generations of a name."""
        self._known.pop(name, None)
        for key in [key for key in list(self._not_live) if key[0] == name]:
            self.drop_manifest(*key)

    def drop_manifest(self, name: str, generation: str) -> None:
        """Drop the cached manifest of a generation."""
        self._not_live.pop((name, generation), None)

    def read(self, directory: Path | str, manifest: Manifest, file: str) -> bytes:
        """Return one file of a generation. Raises StateCorruptError if it differs from the manifest."""
        path = f"{directory}/{file}"
        try:
            data = read_bytes(self._fs, path, FILE_LIMIT) if file in manifest["files"] else None
        except DiskError as error:
            if error.errno not in (0, errno.EFBIG, errno.ELOOP):
                raise
            raise StateCorruptError(str(error), path=path, fix=_FIX) from None
        if data is None:
            raise StateCorruptError(f"{path} is missing", path=path, fix=_FIX)
        if hashlib.sha256(data).hexdigest() != manifest["files"][file]:
            raise StateCorruptError(f"{path} is not the file that was written there", path=path, fix=_FIX)
        return data

    def verify(self, directory: Path | str, manifest: Manifest) -> None:
        """Read every file of a generation below ``directory``. Raises StateCorruptError if one differs from the manifest."""
        for file in manifest["files"]:
            self.read(directory, manifest, file)

    def manifest_if_whole(self, name: str, generation: str) -> Manifest | None:
        """Return the manifest of a generation whose files all match it, otherwise None."""
        self.drop_manifest(name, generation)  # read it from disk
        try:
            manifest = self.manifest(name, generation)
            self.verify(self._layout.generation(name, generation), manifest)
        except StateCorruptError:
            return None
        return manifest

    def number_of(self, name: str, generation: str) -> int:
        """Return the number of a generation; 0 if its manifest is lost, or cannot be read now."""
        try:
            return int(self.manifest(name, generation)["number"])
        except DiskError:
            return 0

    def is_sound(self, name: str, generation: str, proven: int) -> bool:
        """Return whether all files of a generation exist.

        One whose number is above ``proven`` may have been renamed by a process that did not live to sync it: it is made
        durable and read. Raises DiskError.
        """
        try:
            manifest = self.manifest(name, generation)
        except StateCorruptError:
            return False
        if int(manifest["number"]) > proven:
            self.sync([(name, generation)])  # `sync_inherited` cannot sync contents without syncfs
            return self.manifest_if_whole(name, generation) is not None
        directory = self._layout.generation(name, generation)
        return all(
            (found := self._fs.lstat(directory / file)) is not None and found.kind is FileKind.FILE
            for file in manifest["files"]
        )

    # --- writing ------------------------------------------------------------------------------------------

    def open_home(self, name: str) -> Handle:
        """Open the directory of a name's generations, which is created if there is none."""
        if not is_plain_name(name):
            raise ValueError(f"not a name for a certificate's directory: {name!r}")
        try:
            return self._fs.open_dir(f"{self._layout.generations}/{name}")
        except DiskError as error:
            if error.errno != errno.ENOENT:
                raise
        self.forget_all(name)
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            self._fs.mkdir(name, DIR_MODE, at=top)
            return self._fs.open_dir(name, at=top)

    def write(self, name: str, home: Handle, files: Mapping[str, bytes], manifest: Manifest) -> Path:
        """Write a private temporary directory, the manifest last, and return it; after a failure nothing is left.

        ``home``: the open directory of the name's generations.
        """
        temp, text = f"{TEMP}{self._fs.token()}", decode.to_json(dict(manifest))
        path = Path(f"{self._layout.generations}/{name}/{temp}")
        self._fs.mkdir(temp, DIR_MODE, at=home)
        try:
            with closing(self._fs, self._fs.open_dir(temp, at=home)) as directory:
                for file, data in files.items():
                    self._write_file(directory, file, data)
                self._write_file(directory, MANIFEST, text)
        except BaseException:
            with suppress(DiskError):  # the first error is the one to report
                self.remove(path, home)
            raise
        self._not_live[name, manifest["id"]] = text
        return path

    def remove(self, path: Path, parent: Handle) -> None:
        """Remove a directory that is not in use; after a failure `clear_up` tries again."""
        try:
            remove_tree(self._fs, parent, path.name)
        except BaseException:
            self.doomed.add(path)
            raise

    def clear_up(self) -> None:
        """Remove all directories marked for removal. Tries all, then raises the DiskError of one that stays."""
        failed: DiskError | None = None
        for path in list(self.doomed):
            try:
                self._clear_up(path)
            except DiskError as error:
                failed = error
        if failed is not None:
            raise failed

    def _clear_up(self, path: Path) -> None:
        with self._doomed_lock:
            if path not in self.doomed:  # another thread took it, or it is used again
                return
            taken = path
            if not (path.name.startswith(TEMP) or is_temp(path.name)) and self._fs.lstat(path) is not None:
                taken = path.with_name(f"{TEMP}{self._fs.token()}")
                self._fs.rename(str(path), str(taken))  # nothing may find half of it by its id
            self.doomed.remove(path)
        try:
            if self._fs.lstat(taken) is not None:
                with closing(self._fs, self._fs.open_dir(taken.parent)) as parent:
                    remove_tree(self._fs, parent, taken.name)
        except DiskError:
            self.doomed.add(taken)
            raise

    def keep(self, name: str, generation: str) -> None:
        """Do not remove a generation that was to be removed, because it is used again."""
        if self.doomed:
            with self._doomed_lock:
                self.doomed.discard(self._layout.generation(name, generation))

    def _write_file(self, directory: Handle, file: str, data: bytes) -> None:
        mode = PUBLIC_MODE if file in _PUBLIC else SECRET_MODE
        with closing(self._fs, self._fs.create(file, mode, at=directory)) as handle:
            self._fs.write(handle, data)

    def sync(self, generations: Collection[tuple[str, str]]) -> None:
        """Make generations durable under their ids, by name and id: one syncfs for any number."""
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            if self._fs.syncfs(top):
                return
            for name, generation in generations:
                with closing(self._fs, self._fs.open_dir(self._layout.generation(name, generation))) as directory:
                    for file in self._fs.listdir(directory):
                        with closing(self._fs, self._fs.open_file(file, at=directory)) as handle:
                            self._fs.fsync(handle)
                    self._fs.fsync(directory)
            for name in {name: None for name, _ in generations}:
                with closing(self._fs, self._fs.open_dir(name, at=top)) as home:
                    self._fs.fsync(home)
            self._fs.fsync(top)  # the directories of new names

    def link_public(self, name: str, places: Mapping[Path, Handle]) -> set[Path]:
        """Point the spec's links at the live link; return the directories that changed.

        Links that lead through an alias stay: they may belong to another certificate (`public_names`).
        """
        changed, certs, chains = set[Path](), self._layout.certs, self._layout.chains
        for place, link, up, file in (
            (certs, f"{name}.crt", "", "fullchain.pem"),
            (certs, f"{name}.key", "", "private.key"),
            (chains, f"{name}.pem", "../", "chain.pem"),
        ):
            text, aliased = f"{up}.live/{name}/{file}", f"{up}.live/{ALIAS}{name}/{file}"
            if swap_link_at(self._fs, places[place], link, text, keep=aliased):
                changed.add(place)
        return changed

    def sync_inherited(self) -> None:
        """Make renames durable that an earlier process did not sync."""
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
