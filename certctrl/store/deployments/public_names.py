"""Public names: the names of certificates in ``certs/``, if they differ from those of their directories.

    certs/.live/+www -> www+5                        renaming over this link passes the name on
    certs/www.crt    -> .live/+www/fullchain.pem     key and certificate change in that one instant

A certificate usually has the public name of its directory (``certs/www.crt -> .live/www/fullchain.pem``). If several
are for one domain, the name may belong to another one than the directory: then it leads through an alias.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock

from certctrl.errors import DiskError
from certctrl.store.deployments.generation_files import FILE_LIMIT, sync_all
from certctrl.store.disk.atomic import link_text, read_bytes, swap_link_at
from certctrl.store.disk.fs import FileKind, Fs, Handle, closing
from certctrl.store.layout import ALIAS, ConfigDir


class PublicNames:
    """The aliases of one agent. Methods block on the disk and raise DiskError."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self._layout = layout
        self._fs = fs
        self._lock = Lock()  # groups switch in several threads

    def publish(self, wanted: Mapping[str, str], *, always: bool = False) -> None:
        """Point public names at directories of certificates, each atomically and durably; idempotent.

        ``always``: even those that are the names of their directories, which were made with the directories.
        """
        with self._lock, ExitStack() as stack:
            paths = (self._layout.live, self._layout.certs, self._layout.chains)
            places = {path: stack.enter_context(closing(self._fs, self._fs.open_dir(path))) for path in paths}
            aliases = self._aliases(places[self._layout.live])
            for public, directory in wanted.items():
                if public != directory or public in aliases:
                    self._lead(public, directory, aliases.get(public, ""), places)
                elif always:
                    self._link(self._layout.public_links(public), places)

    def broken(self, public: str, directory: str) -> list[str]:
        """Return the paths of a public name that do not lead to a directory of a certificate."""
        plain, aliased = (self._layout.public_links(public, alias=alias) for alias in (False, True))
        found = {link: link_text(self._fs, link) for link in plain}
        alias = self._layout.live / f"{ALIAS}{public}"
        leads = link_text(self._fs, alias) if any(found[link] == aliased[link] for link in plain) else None
        return [
            str(link)
            for link, text in found.items()
            if not (text == plain[link] and public == directory) and not (text == aliased[link] and leads == directory)
        ]

    def _link(self, links: Mapping[Path, str], places: Mapping[Path, Handle]) -> None:
        changed = {
            link.parent for link, text in links.items() if swap_link_at(self._fs, places[link.parent], link.name, text)
        }
        if changed:
            sync_all(self._fs, [places[path] for path in sorted(changed)])

    def _aliases(self, live: Handle) -> dict[str, str]:
        names = [name for name in self._fs.listdir(live) if name.startswith(ALIAS)]
        return {name.removeprefix(ALIAS): self._fs.readlink(name, at=live) for name in names}

    def _lead(self, public: str, directory: str, before: str, places: Mapping[Path, Handle]) -> None:
        live, name = places[self._layout.live], f"{ALIAS}{public}"
        if not before:  # first lead through the alias, but still to the current certificate
            before = public if self._fs.lstat(public, at=live) is not None else directory
            swap_link_at(self._fs, live, name, before)
            self._fs.fsync(live)
        self._link(self._layout.public_links(public, alias=True), places)
        if before != directory:
            swap_link_at(self._fs, live, name, directory)
            self._fs.fsync(live)

    def remove(
        self, directory: str, places: Mapping[Path, Handle], copies: Callable[[str], Collection[str]] = lambda _: ()
    ) -> None:
        """Remove the public names that lead to a directory; ``places``: open directories, synced by the caller.

        ``copies``: returns the hashes of a virtual file. A regular file at a public name, as a backup that followed the
        links restores it, is removed if it has one of them, and is the operator's otherwise.
        """
        with self._lock:
            live = places[self._layout.live]
            aliases = self._aliases(live)
            mine = [public for public, leads_to in aliases.items() if leads_to == directory]
            for public in sorted({*mine} | ({directory} - aliases.keys())):
                for link, text in self._layout.public_links(public).items():
                    self._remove_copy(link, places, partial(copies, Path(text).name))
            through = set(self._layout.public_links(directory, alias=True).values())
            for link in self._layout.public_links(directory):
                if directory in mine or self._text(link, places) not in through:
                    self._unlink(link, places)
            for public in mine:
                for link, text in self._layout.public_links(public, alias=True).items():
                    if self._text(link, places) == text:
                        self._unlink(link, places)
                self._fs.unlink(f"{ALIAS}{public}", at=live)

    def _text(self, link: Path, places: Mapping[Path, Handle]) -> str:
        """Return where a link leads; empty if it is not a link."""
        found = self._fs.lstat(link.name, at=places[link.parent])
        if found is None or found.kind is not FileKind.LINK:
            return ""
        return self._fs.readlink(link.name, at=places[link.parent])

    def _unlink(self, link: Path, places: Mapping[Path, Handle]) -> None:
        if self._text(link, places):
            self._fs.unlink(link.name, at=places[link.parent])

    def _remove_copy(self, link: Path, places: Mapping[Path, Handle], hashes: Callable[[], Collection[str]]) -> None:
        """Remove a regular file at a public name if it has one of the hashes; one that cannot be read stays."""
        place = places[link.parent]
        found = self._fs.lstat(link.name, at=place)
        if found is None or found.kind is not FileKind.FILE:
            return
        try:
            data = read_bytes(self._fs, link.name, FILE_LIMIT, at=place) or b""
        except DiskError:
            return
        if hashlib.sha256(data).hexdigest() in hashes():
            self._fs.unlink(link.name, at=place)
