"""Cut the power, kill, or fail the disk before every operation of every protocol, on a model of the disk.

By default a seeded sample; the whole campaign (``-m campaign``) prints how many states it checked. That the
checks have teeth is shown by mutants: each takes one step out of the order, and each must be caught.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_protocols import (
    NAME,
    PROTOCOLS,
    Copies,
    CopiesEach,
    CopiesUndone,
    Protocol,
    Records,
    Refresh,
    Register,
    Renew,
    RenewEach,
    Signals,
    Withdraw,
)
from modeldisk import ModelFs, Tally, explore

from certctrl.errors import CertctrlError
from certctrl.store import copies, decode, files, generation_files, generations, journal, recovery, state
from certctrl.store.fs import Fs, Handle, closing
from certctrl.store.layout import SECRET_MODE

EACH = pytest.mark.parametrize("protocol", [pytest.param(kind(), id=kind.name) for kind in PROTOCOLS])
MUTANT_LIMIT = 8  # states tried at each operation; enough for every mutant here, and quick
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE)


@EACH
def test_no_crash_breaks_a_promise(protocol: Protocol) -> None:
    tally = explore(protocol.world(), protocol.act, protocol.check, limit=protocol.sample)
    assert tally.points >= 5
    assert len(tally.states) >= 4


@pytest.mark.parametrize("protocol", [Renew(), RenewEach(), Copies(), Signals(), Refresh()], ids=lambda one: one.name)
def test_a_power_cut_after_a_kill_breaks_no_promise(protocol: Protocol) -> None:
    """What a killed process renamed and never synced is inherited; nothing durable may be built on it as it is."""
    assert two_faults(protocol, every=10) >= 1


def test_recovery_builds_on_no_journal_that_is_not_durable() -> None:
    """Found by the campaign: killed between writing "armed" and syncing it, then a power cut amid the recovery."""
    protocol, killed = Copies(), list[ModelFs]()
    fs = protocol.world()
    fs.observer = lambda disk, operation: (
        killed.append(disk.copy()) if operation.startswith("fsync") and operation.endswith(".jsonl") else None
    )
    protocol.act(fs)
    assert len(killed) == 2, "planned, and armed"
    for one in killed:
        protocol.check_deep(one)


def two_faults(protocol: Protocol, *, every: int) -> int:
    kills = 0

    def sampled(fs: ModelFs) -> None:
        nonlocal kills
        kills += 1
        if kills % every == 0:
            protocol.check_deep(fs)

    explore(protocol.world(), protocol.act, sampled, limit=0)
    return kills // every


# --- the disk fails ----------------------------------------------------------------------------------------


@EACH
def test_a_failing_disk_breaks_no_promise(protocol: Protocol) -> None:
    length = operations(protocol)
    step = max(1, length // 10)
    for number in range(0, length, step):
        for sticky in (False, True):
            fail(protocol, number, ERRNOS[(number // step + sticky) % len(ERRNOS)], sticky=sticky)


def operations(protocol: Protocol) -> int:
    fs = protocol.world()
    protocol.act(fs)
    return len(fs.trace)


def fail(protocol: Protocol, number: int, code: int, *, sticky: bool) -> None:
    """Fail one operation, or all from one on: old state or new, no open file, and all is well when the disk is."""
    fs = protocol.world()

    def fault(verb: str, path: str) -> int | None:
        at = len(fs.trace) - 1
        return code if at == number or (sticky and at > number) else None

    fs.fault = fault
    try:
        protocol.act(fs)
    except CertctrlError as error:
        assert error.fix, f"no way out is named: {error}"
    fs.fault = None
    assert not fs.open_files(), f"operation {number} ({fs.trace[number]}) failed and left files open"
    for crashed in (fs.copy(), *fs.crash_states(3, random.Random(number))):
        protocol.check_start(crashed)
    protocol.restart(fs)
    protocol.check_start(fs)


# --- mutants: the checks have teeth -------------------------------------------------------------------------

Mutate = Callable[[pytest.MonkeyPatch], None]


def no_file_fsync(patch: pytest.MonkeyPatch) -> None:
    real = ModelFs.fsync
    patch.setattr(ModelFs, "fsync", lambda fs, handle: real(fs, handle) if fs.fstat(handle).kind == "dir" else None)


def no_directory_fsync(patch: pytest.MonkeyPatch) -> None:
    real = ModelFs.fsync
    patch.setattr(ModelFs, "fsync", lambda fs, handle: real(fs, handle) if fs.fstat(handle).kind == "file" else None)


def contents_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation_files.GenerationFiles, "sync_contents", lambda self, paths: None)


def generation_not_durable_before_the_link(patch: pytest.MonkeyPatch) -> None:
    real = generations.sync_all

    def sync_all(fs: Fs, handles: list[Handle]) -> None:
        if not any(handle.path.endswith(NAME) for handle in handles):
            real(fs, handles)

    patch.setattr(generations, "sync_all", sync_all)


def link_moved_away_first(patch: pytest.MonkeyPatch) -> None:
    def swap(fs: Fs, parent: Handle, name: str, text: str) -> bool:
        if fs.lstat(name, at=parent) is not None:
            if fs.readlink(name, at=parent) == text:
                return False
            fs.unlink(name, at=parent)
        fs.symlink(text, name, at=parent)
        return True

    patch.setattr(generations, "swap_link_at", swap)


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
    owed: list[journal.Journal] = []
    patch.setattr(journal.Journal, "arm", lambda self: owed.append(self))

    def sync(fs: Fs, parents: list[Handle]) -> None:
        real_sync(fs, parents)
        for one in [one for one in owed if one._fs is fs]:
            real_arm(one)
            owed.remove(one)

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
    patch.setattr(copies.CopySet, "_sync_staged", lambda self: None)


def journal_forgotten_before_the_leftovers(patch: pytest.MonkeyPatch) -> None:
    real = copies.CopySet.close

    def close(self: Any) -> None:
        if self._journal is not None:
            self._journal.remove()
        real(self)

    patch.setattr(copies.CopySet, "close", close)


def recovery_always_goes_forward(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "_can_be_new", lambda fs, entry, parent, roots: True)
    patch.setattr(recovery.journal, "put_new", _put_new_if_there)


def _put_new_if_there(fs: Fs, entry: journal.Entry, parent: Handle) -> None:
    if fs.lstat(entry.temp, at=parent) is not None:
        fs.rename(entry.temp, Path(entry.path).name, at=parent)


def access_token_first(patch: pytest.MonkeyPatch) -> None:
    def save(self: Any, tokens: Any) -> None:
        self._files.save_text(self.layout.access_token, tokens.access_token, "access token")
        self._files.save_text(self.layout.refresh_token, tokens.refresh_token, "refresh token")

    patch.setattr(state.StateStore, "save_tokens", save)


def public_half_first(patch: pytest.MonkeyPatch) -> None:
    def save(self: Any, keys: Any) -> None:
        state.write_atomic(self._fs, self.layout.device_public_key, keys.public)
        state.write_atomic(self._fs, self.layout.device_secret_key, keys.secret)

    patch.setattr(state.StateStore, "save_device_keys", save)


def cursor_first(patch: pytest.MonkeyPatch) -> None:
    real = state.StateStore.save_inbox

    def save(self: Any, entries: Any) -> None:
        self.save_cursor("2-2")
        real(self, entries)

    patch.setattr(state.StateStore, "save_inbox", save)


def done_before_its_outcome_is_kept(patch: pytest.MonkeyPatch) -> None:
    def save(self: Any, acks: Any, done: Any, entries: Any) -> None:
        self.save_inbox(entries)
        self.save_outcomes(acks, done)

    patch.setattr(state.StateStore, "save_progress", save)


def written_in_place(patch: pytest.MonkeyPatch) -> None:
    def write(fs: Fs, path: Path, data: bytes, **_: Any) -> None:
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
    (contents_not_synced, Renew),
    (generation_not_durable_before_the_link, Renew),
    (link_moved_away_first, Renew),
    (mode_set_late, Renew),
    (old_generation_pruned_before_the_switch, Renew),
    (inherited_not_synced, Renew),
    (withdrawn_without_sync, Withdraw),
    (journal_armed_after_the_renames, Copies),
    (journal_after_the_temporary_files, Copies),
    (renames_not_synced, Copies),
    (staged_copies_not_synced, Copies),
    (journal_forgotten_before_the_leftovers, Copies),
    (recovery_always_goes_forward, CopiesUndone),
    (access_token_first, Register),
    (public_half_first, Register),
    (cursor_first, Signals),
    (done_before_its_outcome_is_kept, Signals),
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
    assert any("before operation" in note for note in getattr(caught.value, "__notes__", ())), "it failed by itself"


# --- the campaign -------------------------------------------------------------------------------------------


CHECKED: dict[str, int] = {}
"""Protocol -> distinct crash states that held."""


@EACH
@pytest.mark.campaign
@pytest.mark.timeout(2 * 3600)
def test_campaign(protocol: Protocol, capsys: pytest.CaptureFixture[str]) -> None:
    tally: Tally = explore(protocol.world(), protocol.act, protocol.check, limit=200)
    two = two_faults(protocol, every=protocol.deep_every)
    length = operations(protocol)
    for number in range(length):
        for code in ERRNOS:
            for sticky in (False, True):
                fail(protocol, number, code, sticky=sticky)
    CHECKED[protocol.name] = len(tally.states)
    with capsys.disabled():
        print(f"\n{protocol.name}: {len(tally.states)} states at {tally.points} points,", end=" ")
        print(f"{two} kills and then power cuts, {length * 2 * len(ERRNOS)} disk failures: all hold", end="")


@pytest.mark.campaign
def test_campaign_in_all(capsys: pytest.CaptureFixture[str]) -> None:
    if len(CHECKED) < len(PROTOCOLS):
        pytest.skip("only for the whole campaign")
    with capsys.disabled():
        print(f"\n{sum(CHECKED.values())} of {sum(CHECKED.values())} crash states hold", end="")
    assert sum(CHECKED.values()) >= 10_000
