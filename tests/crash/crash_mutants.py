"""Mutants: the product with one step removed or moved. The trials must catch each of them.

``apply`` changes the process it is called in; only forked children call it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from certctrl.agent.inbox import Inbox
from certctrl.errors import DiskError
from certctrl.install.deploy import atomic
from certctrl.store.deployments import file_set, generations, journal
from certctrl.store.disk.fs import Fs, Handle, RealFs
from certctrl.store.state import files, reservation, session

RENEW, RENEW_COPIES = "renew, generations and reload", "renew, explicit destinations"
TOGETHER = "renew together"
INSTALL, REFRESH, REGISTER = "install, generations", "refresh with rotation", "register"


@attrs.frozen
class Mutant:
    """``story`` is where the mutant runs, ``kind`` the trial that must catch it."""

    apply: Callable[[], None]
    story: str
    kind: str


MUTANTS: dict[str, Mutant] = {}


def mutant(story: str, kind: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def keep(apply: Callable[[], None]) -> Callable[[], None]:
        MUTANTS[apply.__name__] = Mutant(apply, story, kind)
        return apply

    return keep


def patch(owner: Any, name: str, value: Any) -> Any:
    """Replace an attribute and return its old value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def is_dir(handle: Handle) -> bool:
    return stat.S_ISDIR(os.fstat(handle.fd).st_mode)


# --- not mutants: short writes of the kernel, which the product has to finish ------------------------------------


def short_writes(size: int) -> Callable[[], None]:
    def apply() -> None:
        real = patch(os, "write", lambda fd, data: real(fd, bytes(data[:size])))

    return apply


SHORT = {f"write_{size}": short_writes(size) for size in (1, 7, 100)}

# --- found only by power cuts -------------------------------------------------------------------------------


@mutant(RENEW, "power")
def no_sync_at_all() -> None:
    patch(RealFs, "fsync", lambda self, handle: None)
    patch(RealFs, "syncfs", lambda self, handle: True)


@mutant(RENEW_COPIES, "power")
def no_file_fsync() -> None:
    real = RealFs.fsync
    patch(RealFs, "fsync", lambda self, handle: real(self, handle) if is_dir(handle) else None)
    patch(RealFs, "syncfs", lambda self, handle: False)


@mutant(RENEW, "power")
def switch_not_synced() -> None:
    """Report the link that makes a generation live before it is durable, and sync nothing after it."""
    patch(generations, "sync_all", lambda fs, handles: None)
    patch(session, "write_atomic", not_durable(session.write_atomic))
    patch(files, "write_atomic", not_durable(files.write_atomic))


def not_durable(real: Callable[..., None]) -> Callable[..., None]:
    return lambda *args, **options: real(*args, **options | {"durable": False})


# --- found by kills ---------------------------------------------------------------------------------------------


@mutant(RENEW, "kill")
def cursor_first() -> None:
    """Commit the cursor before the signals are saved."""
    postponed: list[Any] = []
    save_inbox = patch(session.SessionState, "save_inbox", lambda self, entries: postponed.append(entries))

    def save_cursor(self: Any, cursor: str) -> None:
        real_cursor(self, cursor)
        while postponed:
            save_inbox(self, postponed.pop(0))
        session.SessionState.save_inbox = save_inbox  # type: ignore[method-assign]

    real_cursor = patch(session.SessionState, "save_cursor", save_cursor)


@mutant(INSTALL, "kill")
def inbox_in_memory_only() -> None:
    async def secure(self: Any) -> None:
        self._unsafe.clear()

    patch(Inbox, "secure", secure)


@mutant(INSTALL, "kill")
def mode_set_late() -> None:
    def create(self: Any, path: str | Path, mode: int, at: Handle | None = None) -> Handle:
        handle: Handle = self._open("create", path, at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        late[handle.fd] = mode
        return handle

    def close(self: Any, handle: Handle) -> None:
        if handle.fd in late:
            os.fchmod(handle.fd, late.pop(handle.fd))
        real_close(self, handle)

    late: dict[int, int] = {}
    patch(RealFs, "create", create)
    real_close = patch(RealFs, "close", close)


@mutant(REFRESH, "kill")
def old_file_removed_first() -> None:
    def rename(self: Any, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        if (found := self.lstat(new, at)) is not None and found.kind != "dir":
            self.unlink(new, at)
        real(self, old, new, at)

    real = patch(RealFs, "rename", rename)


@mutant(REFRESH, "kill")
def written_in_place() -> None:
    def rename(self: Any, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        if self.lstat(old, at).kind != "file" or self.lstat(new, at) is None:
            real(self, old, new, at)
            return
        where = None if at is None else at.fd
        source, target = os.open(old, os.O_RDONLY, dir_fd=where), os.open(new, os.O_WRONLY | os.O_TRUNC, dir_fd=where)
        os.write(target, os.read(source, 1 << 20))
        self.unlink(old, at)

    real = patch(RealFs, "rename", rename)


@mutant(REFRESH, "kill")
def access_token_first() -> None:
    def commit(self: Any, tokens: Any) -> None:
        self._temps.reverse()
        for text in (tokens.access_token, tokens.refresh_token):
            self._fill(text.encode())
        self.release()

    patch(reservation.Reservation, "commit", commit)


@mutant(RENEW, "kill")
def link_moved_away_first() -> None:
    def replace(fs: Any, parent: Handle, name: str, text: str) -> None:
        if fs.lstat(name, at=parent) is not None:
            fs.unlink(name, at=parent)
        fs.symlink(text, name, at=parent)

    patch(generations, "replace_link_at", replace)


@mutant(RENEW, "kill")
def old_generation_pruned_before_the_switch() -> None:
    def switch(self: Any, to: dict[str, str | None]) -> Any:
        for name in to:
            if (now := self.live_id(name)) is not None and now != to[name]:
                self._remove(name, [now])
        return real(self, to)

    real = patch(generations.GenerationStore, "switch", switch)


@mutant(RENEW_COPIES, "kill")
def journal_after_the_renames() -> None:
    real_arm, real_sync = journal.Journal.arm, journal.sync_parents
    postponed: list[journal.Journal] = []
    patch(journal.Journal, "arm", lambda self: postponed.append(self))

    def sync(fs: Fs, parents: Any) -> None:
        real_sync(fs, parents)
        while postponed:
            real_arm(postponed.pop())

    patch(journal, "sync_parents", sync)


@mutant(RENEW_COPIES, "kill")
def no_journal() -> None:
    """Rename a pair without a journal."""
    for name in ("plan", "arm", "remove"):
        patch(journal.Journal, name, lambda self, *args: None)


@mutant(RENEW_COPIES, "kill")
def backups_beside_forgotten() -> None:
    """Remove the journal before the files that it lists."""

    def close(self: Any) -> None:
        if self._journal is not None:
            self._journal.remove()
        real(self)

    real = patch(file_set.FileSet, "close", close)


@mutant(TOGETHER, "kill")
def batch_left_in_parts() -> None:
    """Start without finishing the switch of a batch."""
    patch(atomic, "finish_switches", lambda context: None)


@mutant(TOGETHER, "kill")
def batch_not_recorded_before_its_switch() -> None:
    patch(atomic, "note_switches", lambda context, switched: False)


@mutant(REGISTER, "kill")
def leftovers_never_swept() -> None:
    patch(files, "sweep_temps", lambda fs, directory: 0)


# --- found by disk faults ----------------------------------------------------------------------------------------


@mutant(REFRESH, "errno")
def spent_before_reserved() -> None:
    class Late:
        def __init__(self, store: session.SessionState, args: tuple[Any, ...]) -> None:
            self._make = lambda: real(store, *args)

        def commit(self, tokens: Any) -> None:
            self._make().commit(tokens)

        def release(self) -> None:
            pass

    real = patch(session.SessionState, "reserve_tokens", lambda self, *args: Late(self, args))


@mutant(RENEW, "errno")
def failed_write_ignored() -> None:

    def write(self: Any, handle: Handle, data: bytes) -> None:
        try:
            real(self, handle, data)
        except DiskError:
            return

    real = patch(RealFs, "write", write)
