"""Mutation tests of the crash checks: each mutant takes one step out of order and must be caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_exploration import explore
from crash_protocols import (
    Copies,
    CopiesEach,
    CopiesHelped,
    CopiesInPlace,
    CopiesInPlaceEach,
    CopiesUndone,
    EarlierFailures,
    FailedSignals,
    Protocol,
    Records,
    Refresh,
    Register,
    Renew,
    RenewEach,
    Signals,
    Withdraw,
)
from modeldisk import ModelFs

from certctrl.agent.inbox import Inbox
from certctrl.errors import CertctrlError
from certctrl.helper import files as helper_files
from certctrl.install.deploy.record_store import RecordStore
from certctrl.store import decode
from certctrl.store.deployments import file_set, generation_files, generations, helped, in_place, journal, recovery
from certctrl.store.disk.fs import Fs, Handle, closing
from certctrl.store.layout import SECRET_MODE
from certctrl.store.state import files, session
from certctrl.store.state.installed import InstalledState

MUTANT_LIMIT = 8  # states per operation: enough for these mutants

Mutate = Callable[[pytest.MonkeyPatch], None]


def no_file_fsync(patch: pytest.MonkeyPatch) -> None:
    real = ModelFs.fsync
    patch.setattr(ModelFs, "fsync", lambda fs, handle: real(fs, handle) if fs.fstat(handle).kind == "dir" else None)


def no_directory_fsync(patch: pytest.MonkeyPatch) -> None:
    real = ModelFs.fsync
    patch.setattr(ModelFs, "fsync", lambda fs, handle: real(fs, handle) if fs.fstat(handle).kind == "file" else None)


def generation_not_durable_before_the_link(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation_files.GenerationFiles, "sync", lambda self, generations: None)


def link_moved_away_first(patch: pytest.MonkeyPatch) -> None:
    def replace(fs: Fs, parent: Handle, name: str, text: str) -> None:
        if fs.lstat(name, at=parent) is not None:
            fs.unlink(name, at=parent)
        fs.symlink(text, name, at=parent)

    patch.setattr(generations, "replace_link_at", replace)


def mode_set_late(patch: pytest.MonkeyPatch) -> None:
    def write(self: Any, directory: Handle, file: str, data: bytes) -> None:
        with closing(self._fs, self._fs.create(file, 0o644, at=directory)) as handle:
            self._fs.write(handle, data)
            self._fs.chmod(handle, SECRET_MODE)

    patch.setattr(generation_files.GenerationFiles, "_write_file", write)


def old_generation_pruned_before_the_switch(patch: pytest.MonkeyPatch) -> None:
    real = generations.GenerationStore.switch

    def switch(self: Any, to: dict[str, str | None]) -> Any:
        for name in to:
            if (live := self.live_id(name)) is not None and live != to[name]:
                self._remove(name, [live])
        return real(self, to)

    patch.setattr(generations.GenerationStore, "switch", switch)


def inherited_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation_files.GenerationFiles, "sync_inherited", lambda self: None)


def withdrawn_without_sync(patch: pytest.MonkeyPatch) -> None:
    real = ModelFs.fsync
    patch.setattr(generations, "sync_all", lambda fs, handles: None)
    patch.setattr(ModelFs, "fsync", lambda fs, h: None if h.path.endswith(".generations") else real(fs, h))


def journal_armed_after_the_renames(patch: pytest.MonkeyPatch) -> None:
    real_arm, real_sync = journal.Journal.arm, journal.sync_parents
    delayed: list[journal.Journal] = []
    patch.setattr(journal.Journal, "arm", lambda self: delayed.append(self))

    def sync(fs: Fs, parents: list[Handle]) -> None:
        real_sync(fs, parents)
        for one in [one for one in delayed if one._fs is fs]:
            real_arm(one)
            delayed.remove(one)

    patch.setattr(journal, "sync_parents", sync)


def journal_after_the_temporary_files(patch: pytest.MonkeyPatch) -> None:
    real_plan, real_arm = journal.Journal.plan, journal.Journal.arm
    plans: dict[str, Any] = {}
    patch.setattr(journal.Journal, "plan", lambda self, entries: plans.update({self.name: entries}))

    def arm(self: journal.Journal) -> None:
        real_plan(self, plans[self.name])
        real_arm(self)

    patch.setattr(journal.Journal, "arm", arm)


def renames_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journal, "sync_parents", lambda fs, parents: None)


def staged_copies_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(file_set.FileSet, "_sync_staged", lambda self: None)


def journal_removed_before_the_leftovers(patch: pytest.MonkeyPatch) -> None:
    real = file_set.FileSet.close

    def close(self: Any) -> None:
        if self._journal is not None:
            self._journal.remove()
        real(self)

    patch.setattr(file_set.FileSet, "close", close)


def recovery_always_completes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "_can_be_new", lambda fs, place, roots: True)
    patch.setattr(recovery.journal, "rename_new", _rename_new_if_there)


def _rename_new_if_there(fs: Fs, place: journal.Place) -> None:
    if fs.lstat(place.entry.temp, at=place.side) is not None:
        fs.rename(place.entry.temp, Path(place.entry.path).name, at=place.parent)


def rights_narrowed_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(in_place, "_narrow", lambda fs, handle, file: None)


def written_over_without_the_journal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journal, "_is_ours", lambda fs, place, found: place.entry.is_new(found) or place.entry.is_old(found))


def helper_drops_without_sync(patch: pytest.MonkeyPatch) -> None:
    def drop(self: Any, path: str, temp: str, backup: str) -> None:
        with closing(self._fs, self._parent(path, temp, backup)) as parent:
            self._drop(parent, (temp, backup))

    patch.setattr(helper_files.Files, "drop", drop)


def helper_puts_before_the_journal_is_armed(patch: pytest.MonkeyPatch) -> None:
    real = journal.Journal.arm

    def put_first(self: Any, places: Any) -> None:
        self._helped().put_new()
        real(self._journal)
        journal.sync_parents(self._fs, [place.side for place in places])

    patch.setattr(file_set.FileSet, "_sync_names", put_first)
    patch.setattr(journal.Journal, "arm", lambda self: None)


def helper_files_not_in_the_journal(patch: pytest.MonkeyPatch) -> None:
    real = journal.Journal.plan
    patch.setattr(journal.Journal, "plan", lambda self, entries: real(self, [one for one in entries if not one.helper]))


def helper_files_not_recovered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(helped.Helped, "put_new", lambda self: None)


def access_token_first(patch: pytest.MonkeyPatch) -> None:
    def save(self: Any, tokens: Any) -> None:
        self._files.save_text(self.layout.access_token, tokens.access_token, "access token")
        self._files.save_text(self.layout.refresh_token, tokens.refresh_token, "refresh token")

    patch.setattr(session.SessionState, "save_tokens", save)


def public_half_first(patch: pytest.MonkeyPatch) -> None:
    def save(self: Any, keys: Any) -> None:
        session.write_atomic(self._fs, self.layout.device_public_key, keys.public)
        session.write_atomic(self._fs, self.layout.device_secret_key, keys.secret)

    patch.setattr(session.SessionState, "save_device_keys", save)


def cursor_first(patch: pytest.MonkeyPatch) -> None:
    real = session.SessionState.save_inbox

    def save(self: Any, entries: Any) -> None:
        self.save_cursor("2-2")
        real(self, entries)

    patch.setattr(session.SessionState, "save_inbox", save)


def done_before_its_outcome_is_kept(patch: pytest.MonkeyPatch) -> None:
    def save(self: Any, acks: Any, done: Any, entries: Any) -> None:
        self.save_inbox(entries)
        self.save_outcomes(acks, done)

    patch.setattr(session.SessionState, "save_progress", save)


def inbox_written_before_the_retries(patch: pytest.MonkeyPatch) -> None:
    real_save, real_secure = Inbox._save, RecordStore.secure_retries

    async def skip(self: RecordStore) -> None:
        """Leave the retries for later."""

    async def save(self: Any) -> None:
        await real_save(self)
        await real_secure(self._secure_retries.__self__)

    patch.setattr(RecordStore, "secure_retries", skip)
    patch.setattr(Inbox, "_save", save)


def retry_removed_before_its_outcome_is_kept(patch: pytest.MonkeyPatch) -> None:
    real = Inbox.finish

    async def finish(self: Any, done: Any, acks: Any) -> None:
        for entry in done:
            self._retries.ended(entry.signal)
        await real(self, done, acks)

    patch.setattr(Inbox, "finish", finish)


def records_rewritten_before_the_retries(patch: pytest.MonkeyPatch) -> None:
    real = RecordStore._write

    def write(self: Any, *args: Any) -> None:
        self._retries_lasting = self._retries_lasting or -1  # as if the table had been written before
        real(self, *args)

    patch.setattr(RecordStore, "_write", write)


def earlier_failures_not_written_at_the_start(patch: pytest.MonkeyPatch) -> None:
    real = InstalledState.load_retries
    patch.setattr(InstalledState, "load_retries", lambda self: (real(self)[0], False))


def written_in_place(patch: pytest.MonkeyPatch) -> None:
    def write(fs: Fs, path: Path, data: bytes, **_: object) -> None:
        with closing(fs, fs.open_lock(path, SECRET_MODE)) as handle:
            fs.truncate(handle, 0)
            fs.write(handle, data)
            fs.fsync(handle)

    patch.setattr(files, "write_atomic", write)


def torn_poll_time_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decode, "poll_time_of", lambda data: float(data or 0) if data.strip(b"\0") else None)


MUTANTS: list[tuple[Mutate, type[Protocol]]] = [
    (no_file_fsync, RenewEach),
    (no_file_fsync, CopiesEach),
    (no_file_fsync, Refresh),
    (no_directory_fsync, Renew),
    (no_directory_fsync, Register),
    (generation_not_durable_before_the_link, Renew),
    (link_moved_away_first, Renew),
    (mode_set_late, Renew),
    (old_generation_pruned_before_the_switch, Renew),
    (inherited_not_synced, Records),
    (withdrawn_without_sync, Withdraw),
    (journal_armed_after_the_renames, Copies),
    (journal_after_the_temporary_files, Copies),
    (renames_not_synced, Copies),
    (staged_copies_not_synced, Copies),
    (journal_removed_before_the_leftovers, Copies),
    (recovery_always_completes, CopiesUndone),
    (staged_copies_not_synced, CopiesInPlace),
    (journal_armed_after_the_renames, CopiesInPlace),
    (no_file_fsync, CopiesInPlaceEach),
    (rights_narrowed_late, CopiesInPlace),
    (written_over_without_the_journal, CopiesInPlace),
    (helper_drops_without_sync, CopiesHelped),
    (helper_puts_before_the_journal_is_armed, CopiesHelped),
    (helper_files_not_in_the_journal, CopiesHelped),
    (helper_files_not_recovered, CopiesHelped),
    (access_token_first, Register),
    (public_half_first, Register),
    (cursor_first, Signals),
    (done_before_its_outcome_is_kept, Signals),
    (inbox_written_before_the_retries, FailedSignals),
    (retry_removed_before_its_outcome_is_kept, FailedSignals),
    (records_rewritten_before_the_retries, EarlierFailures),
    (earlier_failures_not_written_at_the_start, EarlierFailures),
    (written_in_place, Signals),
    (torn_poll_time_believed, Records),
]


@pytest.mark.parametrize(
    ("mutate", "kind"), [pytest.param(*one, id=f"{one[0].__name__}, {one[1].name}") for one in MUTANTS]
)
def test_a_mutant_is_caught(mutate: Mutate, kind: type[Protocol], monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = kind()
    world = protocol.world()
    mutate(monkeypatch)
    with pytest.raises((AssertionError, CertctrlError)) as caught:
        explore(world, protocol.act, protocol.check, limit=MUTANT_LIMIT)
    assert any("before operation" in note for note in getattr(caught.value, "__notes__", ())), (
        "it failed without a crash"
    )
