"""Generations: immutable directories of one certificate's files, and a link to the live one.

    certs/.generations/<name>/<id>/{private.key, certificate.pem, …, manifest.json}
    certs/.live/<name> -> ../.generations/<name>/<id>          renaming over this link is the commit point
    certs/<name>.crt   -> .live/<name>/fullchain.pem           the spec's names lead through it and never change

Order: private directory with the files, then the manifest → renamed to its id → made durable, in one sync for contents
and name → link renamed, durably → files read again through the link. So the live link leads to a matching key and
certificate after any crash, and both change in one rename. A power cut before the sync may leave an id without its
contents: such a directory is newer than the live one, and the sweep reads those. Rejected: two renames for key and
certificate (torn between them), numbered "current" copies (torn inside), renaming the live directory away.

The id is a hash of contents and facts, so publishing the same files again changes nothing. One process writes, the
holder of ``daemon.lock``; different names may be staged in different threads.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import ref

from certctrl import lean
from certctrl.errors import DiskError, StateCorruptError
from certctrl.store.deployments.generation_files import TEMP, GenerationFiles, Manifest, identify, remove_tree, sync_all
from certctrl.store.deployments.public_names import PublicNames
from certctrl.store.disk.atomic import is_temp, replace_link_at, swap_link_at
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.layout import ALIAS, ConfigDir


@lean.frozen(kw_only=True, weakref_slot=True)
class Staged:
    """A generation that has been written; durable once settled. Its files are removed if the object is garbage before."""

    name: str
    id: str
    path: Path
    """The directory for checks; a temporary one is no longer valid once settled."""
    unchanged: bool
    """Whether this generation already is live."""
    files: tuple[str, ...]
    """File names only: a thousand of these may wait in memory for their switch."""
    number: int = 0
    """Its number among those of its name; 0 if it already was settled."""

    @property
    def is_temporary(self) -> bool:
        """Whether it was not durable under its id when it was staged."""
        return self.path.name.startswith(TEMP)


class GenerationStore:
    """All generations of one agent. Methods block on the disk and raise DiskError."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self._layout = layout
        self._fs = fs
        self._files = GenerationFiles(layout, fs)
        self.public = PublicNames(layout, fs)
        self._durable: set[tuple[str, str]] = set()  # settled or swept by this process
        self._verified: set[tuple[str, str]] = set()  # written or verified by this process, not live yet
        self._pending: dict[
            str, dict[str, tuple[str, ref[Staged]]]
        ] = {}  # directory of those not settled, by name and id
        self._lock = Lock()  # of _pending

    # --- reading ------------------------------------------------------------------------------------------

    def live_id(self, name: str) -> str | None:
        """Return the id of the live generation or None. Raises StateCorruptError for a foreign link."""
        return self._files.live_id(name)

    def ids(self, name: str) -> list[str]:
        """Return the ids of generations with a valid manifest, oldest first."""
        return [generation for _, generation in sorted(self._files.numbered(name))]

    def older(self, name: str, generation: str) -> tuple[str, ...]:
        """Return the ids of generations that were made before one, oldest first; none if they cannot be read."""
        try:
            known = [one for _, one in sorted(self._files.known(name))]
        except DiskError:
            return ()
        return tuple(known[: known.index(generation)]) if generation in known else ()

    def path(self, name: str, generation: str) -> Path:
        """Return a generation's directory."""
        return self._layout.generation(name, generation)

    def manifest(self, name: str, generation: str) -> dict[str, Any]:
        """Return ``files`` (name -> SHA-256), ``facts`` and ``number``. Raises StateCorruptError."""
        return dict(self._files.manifest(name, generation))

    def read(self, name: str, generation: str, file: str) -> bytes:
        """Return one file. Raises StateCorruptError if it differs from what was written."""
        return self._files.read(self.path(name, generation), self._files.manifest(name, generation), file)

    def is_whole(self, name: str, generation: str, *, contents: bool = True) -> bool:
        """Return whether all files of a generation are as they were written; without ``contents``, that key and
        certificates are there and not empty, which costs less."""
        if contents:
            return self._files.manifest_if_whole(name, generation) is not None
        directory = self._layout.generation(name, generation)
        found = [self._fs.lstat(directory / file) for file in ("private.key", "fullchain.pem")]
        return all(one is not None and one.kind is FileKind.FILE and one.size > 0 for one in found)

    # --- staging ------------------------------------------------------------------------------------------

    def stage(self, name: str, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> Staged:
        """Write a generation next to the others; an existing equal one is reused.

        ``files``: file name -> bytes. ``facts``: JSON, part of the identity. Until `settle` is called, the generation
        is removed with the object.
        """
        hashes = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())}
        wanted = identify(hashes, facts)
        pending = self._still_wanted(name, wanted)
        if pending is not None and self._fs.lstat(pending.path) is not None:
            return pending
        with closing(self._fs, self._files.open_home(name)) as home:
            found = self._reuse(name, home, wanted)
            if isinstance(found, Staged):
                return found
            number = 1 + max((number for number, _ in self._files.known(name)), default=0)
            sorted_facts = dict(sorted(facts.items()))
            manifest: Manifest = {"id": found, "number": number, "name": name, "files": hashes, "facts": sorted_facts}
            path = self._files.write(name, home, files, manifest)
        self._verified.add((name, found))
        staged = Staged(name=name, id=found, path=path, unchanged=False, files=tuple(hashes), number=number)
        self._pending.setdefault(name, {})[found] = (path.name, ref(staged))
        return staged

    def _still_wanted(self, name: str, wanted: str) -> Staged | None:
        """Return the staged generation with this id if still referenced; remove unreferenced ones of this name."""
        self._give_up(name)
        with suppress(DiskError):  # tried again by `clear_up`
            self._files.clear_up()
        _, held = self._pending.get(name, {}).get(wanted, (None, None))
        return held() if held is not None else None

    def _give_up(self, name: str | None = None) -> None:
        """Mark unreferenced staged generations for removal, of one name or of all."""
        with self._lock:
            for one in list(self._pending) if name is None else [name]:
                for generation, (directory, held) in list(self._pending.get(one, {}).items()):
                    if held() is None:
                        self._files.doomed.add(self._layout.generations / one / directory)
                        self._forget(one, generation)

    def _forget(self, name: str, generation: str) -> None:
        self._pending.get(name, {}).pop(generation, None)
        self._durable.discard((name, generation))
        self._verified.discard((name, generation))
        self._files.forget(name, generation)

    def _reuse(self, name: str, home: Handle, wanted: str) -> Staged | str:
        """Return an equal generation that is whole, or the id for a new one; ``home``: the open directory.

        A damaged one is removed, unless it is live and so has readers: then its replacement gets an id with a suffix.
        """
        generation, count = wanted, 0
        self._files.keep(name, generation)
        while self._fs.lstat(generation, at=home) is not None:
            live = self.live_id(name)
            if (manifest := self._files.manifest_if_whole(name, generation)) is not None:
                self._verified.add((name, generation))
                self._files.note_settled(name, int(manifest["number"]), generation)
                path = self.path(name, generation)
                return Staged(
                    name=name, id=generation, path=path, unchanged=generation == live, files=(*manifest["files"],)
                )
            if generation != live:
                self._remove(name, [generation])
                break
            count += 1
            generation = f"{wanted}.{count}"
            self._files.keep(name, generation)
        return generation

    def discard(self, staged: Staged) -> None:
        """Remove a generation that was staged but will not be settled."""
        if staged.id in self._pending.get(staged.name, ()):
            with closing(self._fs, self._fs.open_dir(staged.path.parent)) as home:
                self._files.remove(staged.path, home)
            self._forget(staged.name, staged.id)

    @property
    def has_leftovers(self) -> bool:
        """Whether `clear_up` may have work."""
        return any(self._pending.values()) or bool(self._files.doomed)

    def clear_up(self) -> None:
        """Remove unreferenced staged generations, and those that a failing disk could not remove before.

        Raises DiskError if something still has to stay.
        """
        self._give_up()
        self._files.clear_up()

    def settle(self, staged: Sequence[Staged]) -> None:
        """Make generations durable under their ids, so that they survive a crash; one syncfs for any number.

        Raises DiskError; those that were written since are then removed.
        """
        distinct = {(one.name, one.id): one for one in staged}
        fresh = {k: one for k, one in distinct.items() if one.is_temporary and self._directory(one) == one.path.name}
        others = [one for key, one in distinct.items() if key not in fresh and key not in self._durable]
        unsynced = {(one.name, one.id): one for one in others if self._has_its_id(one)}  # others were withdrawn
        generations = str(self._layout.generations)
        for one in fresh.values():
            home = f"{generations}/{one.name}"  # as text: a thousand paths cost more than their renames
            self._fs.rename(f"{home}/{one.path.name}", f"{home}/{one.id}")
            self._files.note_settled(one.name, one.number, one.id)
            self._pending[one.name].pop(one.id)
        if settling := [*fresh, *unsynced]:
            try:
                self._files.sync(settling)
            except DiskError:
                for key in fresh:  # another sync might succeed although the kernel has dropped their contents
                    self._files.doomed.add(self.path(*key))
                    self._forget(*key)
                with suppress(DiskError):  # tried again by `clear_up`
                    self._files.clear_up()
                raise
            self._durable.update(settling)

    def _has_its_id(self, staged: Staged) -> bool:
        """Return whether a generation has its id as its name."""
        return not staged.is_temporary or (staged.number, staged.id) in self._files.known(staged.name)

    def _directory(self, staged: Staged) -> str:
        """Return the name of the directory of a generation that is not settled; empty: there is none."""
        directory, _ = self._pending.get(staged.name, {}).get(staged.id, ("", None))
        return directory

    # --- switching ----------------------------------------------------------------------------------------

    def switch(self, to: Mapping[str, str | None]) -> dict[str, str | None]:
        """Make generations live, durably, all or none; return the previous ones, by name.

        Name -> id; None removes a name's link and keeps its generations. Raises DiskError, StateCorruptError for a
        generation that is not whole; then nothing has changed.
        """
        before = {name: self.live_id(name) for name in to}
        for name, generation in to.items():
            if generation is None:
                continue
            with self._lock:  # it may have been staged in vain, and so be about to be removed
                self._pending.get(name, {}).pop(generation, None)
                self._files.keep(name, generation)
            if (name, generation) not in self._verified:
                self._need_whole(name, generation)
        try:
            self._switch_links(to, before)
            for name, generation in to.items():
                if generation is not None:
                    self._files.verify(f"{self._layout.live}/{name}", self._files.manifest(name, generation))
        except DiskError:
            self._restore_links(before)
            raise
        for name, generation in to.items():  # disks decay: verify again before the next switch
            if generation is not None:
                self._verified.discard((name, generation))
                self._files.drop_manifest(name, generation)
        return before

    def _need_whole(self, name: str, generation: str) -> None:
        self._files.verify(self.path(name, generation), self._files.manifest(name, generation))
        if (name, generation) not in self._durable:
            self._files.sync([(name, generation)])

    def _switch_links(self, to: Mapping[str, str | None], before: Mapping[str, str | None] | None = None) -> None:
        """Point links at generations, durably; ``before``: the live ones, if they have just been read."""
        with ExitStack() as stack:
            places = {
                path: stack.enter_context(closing(self._fs, self._fs.open_dir(path)))
                for path in (self._layout.live, self._layout.certs, self._layout.chains)
            }
            touched = {self._layout.live}
            for name, generation in to.items():
                if generation is not None:
                    touched |= self._files.link_public(name, places)
                    text = self._files.live_text(name, generation)
                    if before is None:
                        swap_link_at(self._fs, places[self._layout.live], name, text)
                    elif before[name] != generation:
                        if before[name] is None and self._files.is_flattened(name):
                            self._files.move_flattened(name, places[self._layout.live])
                        replace_link_at(self._fs, places[self._layout.live], name, text)
                elif self._fs.lstat(name, at=places[self._layout.live]) is not None:
                    self._fs.unlink(name, at=places[self._layout.live])
            sync_all(self._fs, [places[path] for path in sorted(touched)])

    def _restore_links(self, before: Mapping[str, str | None]) -> None:
        for name, generation in before.items():
            try:
                self._switch_links({name: generation})
            except DiskError:
                continue  # try the others; the first error is the one to report

    # --- removing ---------------------------------------------------------------------------------------

    def withdraw(self, name: str) -> None:
        """Withdraw a certificate durably: remove its links, then all its generations and their keys."""
        places = [self._layout.live, self._layout.certs, self._layout.chains]
        with ExitStack() as stack:
            handles = {path: stack.enter_context(closing(self._fs, self._fs.open_dir(path))) for path in places}
            self.public.remove(name, handles, partial(self._hashes, name))
            found = self._fs.lstat(name, at=handles[self._layout.live])
            if found is not None and found.kind is FileKind.DIR:
                self._files.move_flattened(name, handles[self._layout.live])
            elif found is not None and found.kind is FileKind.LINK:
                self._fs.unlink(name, at=handles[self._layout.live])
            sync_all(self._fs, list(handles.values()))
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as home:
            if self._fs.lstat(name, at=home) is not None:
                doomed = self._layout.generations / f"{TEMP}{self._fs.token()}"
                self._fs.rename(name, doomed.name, at=home)  # after a crash, the sweep removes it
                self._files.remove(doomed, home)
            self._files.clear_up()  # left by an earlier try
            self._fs.fsync(home)
        self._files.forget_all(name)
        with self._lock:
            self._pending.pop(name, None)
        self._durable = {item for item in self._durable if item[0] != name}
        self._verified = {item for item in self._verified if item[0] != name}

    def _hashes(self, name: str, file: str) -> set[str]:
        """Return the hashes that a virtual file has in the generations of a certificate."""
        manifests = [self._files.manifest(name, generation) for _, generation in self._files.numbered(name)]
        return {manifest["files"][file] for manifest in manifests if file in manifest["files"]}

    def prune(
        self, name: str, keep: int, *, also_keep: Collection[str] = (), proven: Sequence[str] | None = None
    ) -> int:
        """Remove generations except the live one, ``also_keep`` and the newest ``keep``; return how many.

        ``proven``: those that have served, oldest first. They are kept before those newer than the live one; older ones
        that have not served are removed. One that is staged and may be switched to is no old one.
        """
        live = self.live_id(name)
        needed = {live, *also_keep, *self._pending.get(name, ())}
        known = sorted(self._files.known(name))
        others = [one for _, one in known if one not in needed]
        doomed = list[str]()
        if proven is not None:
            number_of_live = max((number for number, one in known if one == live), default=0)
            newer = {one for number, one in known if number > number_of_live}
            kept = proven[max(0, len(proven) - keep) :]
            doomed = [one for one in others if one not in newer and one not in kept]
            others = [one for one in others if one in newer and one not in kept]
            keep = min(keep, max(1, keep - len(kept)))  # one may be about to be recorded
        doomed += others[: max(0, len(others) - keep)]
        if doomed:
            self._remove(name, doomed)
        return len(doomed)

    def _remove(self, name: str, generations: Sequence[str]) -> None:
        place = f"{self._layout.generations}/{name}"
        with closing(self._fs, self._fs.open_dir(place)) as home:
            for generation in generations:
                doomed = Path(f"{place}/{TEMP}{self._fs.token()}")
                is_here = True
                try:
                    self._fs.rename(generation, doomed.name, at=home)
                except DiskError as error:
                    if error.errno != errno.ENOENT:
                        raise
                    is_here = False  # it was removed by hand
                self._forget(name, generation)
                if is_here:
                    self._files.remove(doomed, home)

    def sweep(self) -> int:
        """Remove leftovers of crashes, never live files, and repair the spec's links; return how many were removed.

        First makes the renames of a killed process durable, because later writes that depend on them must not be more
        durable. Call it at start, under the daemon lock.
        """
        self._files.sync_inherited()
        swept = 0
        for name in self._files.names():
            swept += self._sweep_home(name)
        with ExitStack() as stack:
            places = {
                path: stack.enter_context(closing(self._fs, self._fs.open_dir(path)))
                for path in (self._layout.live, self._layout.certs, self._layout.chains)
            }
            for handle in places.values():
                for leftover in filter(is_temp, self._fs.listdir(handle)):
                    remove_tree(self._fs, handle, leftover)
                    swept += 1
            found = self._fs.listdir(places[self._layout.live])
            live = [name for name in found if not (is_temp(name) or name.startswith(ALIAS))]
            touched = [path for name in live for path in self._files.link_public(name, places)]
            sync_all(self._fs, [places[path] for path in sorted(set(touched))])
        return swept

    def _sweep_home(self, name: str) -> int:
        with closing(self._fs, self._fs.open_dir(self._layout.generations)) as top:
            if name.startswith(TEMP):
                self._files.remove(self._layout.generations / name, top)
                return 1
        try:
            live = self.live_id(name)
        except StateCorruptError:
            return 0  # the live generation is unknown: remove nothing
        swept, proven = 0, self._files.number_of(name, live) if live is not None else 0
        with closing(self._fs, self._fs.open_dir(self._layout.generations / name)) as home:
            for entry in self._fs.listdir(home):
                try:
                    useless = entry.startswith(TEMP) or not (entry == live or self._files.is_sound(name, entry, proven))
                except DiskError:  # synced and read again before it is switched to
                    continue
                if useless:
                    self._files.remove(self._layout.generations / name / entry, home)
                    swept += 1
                else:
                    self._durable.add((name, entry))
        return swept
