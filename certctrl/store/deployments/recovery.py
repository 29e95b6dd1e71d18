"""Complete or roll back deployments that a crash interrupted, at every start; clear up after a failing disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from certctrl import lean
from certctrl.errors import DiskError, PolicyRefusedError, StateCorruptError
from certctrl.model.paths import is_below
from certctrl.store.deployments import journal
from certctrl.store.deployments.helped import Helped
from certctrl.store.deployments.journal import Entry, Journal, Place
from certctrl.store.disk.fs import Fs, closing
from certctrl.store.disk.helper import FileHelper
from certctrl.store.disk.safe_path import NoDirectoryError
from certctrl.store.layout import ConfigDir


@lean.frozen(kw_only=True)
class RecoveryReport:
    """The results of recovery, by paths of destinations."""

    completed: tuple[str, ...] = ()
    """Destinations that have the new files now."""
    rolled_back: tuple[str, ...] = ()
    """Destinations that have the old files again, or files that others wrote."""
    failed: tuple[str, ...] = ()
    """One line per failed deployment; its journal stays for the next start."""


def recover(
    layout: ConfigDir, fs: Fs, roots: Sequence[str | Path], *, helper: FileHelper | None = None
) -> RecoveryReport:
    """Complete every unfinished deployment or roll it back, durably, and remove its leftovers.

    It is completed if every destination has its new file or can get it; otherwise it is rolled back. A destination that
    still has the old file and is no longer below one of ``roots`` cannot get it. Failures are reported and retried at
    the next start. Raises StateCorruptError for a damaged journal.
    """
    completed: list[str] = []
    rolled_back: list[str] = []
    failed: list[str] = []
    for one in journal.journals(fs, layout):
        entries, armed = one.load()
        try:
            if armed:
                one.sync()
            is_completed = _recover_one(layout, fs, Helped(helper, entries), entries, roots, armed=armed)
        except (DiskError, PolicyRefusedError) as error:
            failed.append(f"{entries[0].path} and its set: {error}")
            continue
        one.remove()
        if armed:
            (completed if is_completed else rolled_back).extend(entry.path for entry in entries)
    return RecoveryReport(completed=tuple(completed), rolled_back=tuple(rolled_back), failed=tuple(failed))


def clear_up(layout: ConfigDir, fs: Fs, names: Iterable[str], *, helper: FileHelper | None = None) -> set[str]:
    """Remove leftovers of deployments that ended on a failing disk; return the names of the removed journals.

    For the process that made them: a new file with a private key must not stay until the next start. Changes of
    destinations are left to `recover`. Never raises DiskError.
    """
    return {name for name in names if _is_cleared(layout, fs, name, helper)}


def _is_cleared(layout: ConfigDir, fs: Fs, name: str, helper: FileHelper | None) -> bool:
    try:
        if fs.lstat(layout.journal / name) is None:
            return True
        one = Journal(fs, layout, name)
        entries, armed = one.load()
        helped = Helped(helper, entries)
        with _opened(layout, fs, entries) as here:
            if armed:
                if not _is_settled(fs, here, helped):
                    return False
                journal.sync_in_place(fs, here)
            for place in here:
                journal.drop_leftovers(fs, place.entry, place.side)
            journal.sync_parents(fs, [place.side for place in here])
            if helped.drop_leftovers():
                return False
        one.remove()
    except (DiskError, PolicyRefusedError, StateCorruptError):
        return False
    return True


def _is_settled(fs: Fs, here: Sequence[Place], helped: Helped) -> bool:
    """Return whether all destinations or none have their new file, so that none has to change."""
    found = [(place.entry, journal.observe(fs, place)) for place in here]
    if any(entry.in_place and not (entry.is_new(facts) or entry.is_old(facts)) for entry, facts in found):
        return False  # perhaps half-written
    return len({*(entry.is_new(facts) for entry, facts in found), *helped.are_new()}) <= 1


@contextmanager
def _opened(layout: ConfigDir, fs: Fs, entries: Sequence[Entry]) -> Iterator[list[Place]]:
    """Yield the entries whose directories exist, opened, and remove the leftovers of the others."""
    with ExitStack() as stack:
        here: list[Place] = []
        aside = stack.enter_context(closing(fs, fs.open_dir(layout.journal)))
        for entry in (one for one in entries if not one.helper):
            try:
                parent = stack.enter_context(closing(fs, journal.parent_of(fs, entry)))
            except NoDirectoryError:
                if entry.in_place:  # otherwise its leftovers are gone with it
                    journal.drop_leftovers(fs, entry, aside)
                continue
            here.append(Place(entry, parent, aside if entry.in_place else parent))
        yield here


def _recover_one(
    layout: ConfigDir,
    fs: Fs,
    helped: Helped,
    entries: Sequence[Entry],
    roots: Sequence[str | Path],
    *,
    armed: bool,
) -> bool:
    with _opened(layout, fs, entries) as here:
        complete = armed and all(_can_be_new(fs, place, roots) for place in here) and helped.can_be_new(roots)
        if complete:
            try:
                helped.put_new()
            except PolicyRefusedError:  # root's policy has changed since: back, because the files belong together
                complete = False
            else:
                journal.put_new(fs, [place for place in here if place.entry.in_place or not _is_new(fs, place)])
        if armed and not complete and (faults := helped.restore_old() + journal.restore_old(fs, here)):
            raise faults[0]
        if armed:
            journal.sync_parents(fs, [place.side for place in here])
        for place in here:
            journal.drop_leftovers(fs, place.entry, place.side)
        journal.sync_parents(fs, [place.side for place in here])  # a killed process may have removed them, not durably
        if faults := helped.drop_leftovers():
            raise faults[0]
        return complete


def _is_new(fs: Fs, place: Place) -> bool:
    return place.entry.is_new(journal.observe(fs, place))


def _can_be_new(fs: Fs, place: Place, roots: Sequence[str | Path]) -> bool:
    found = journal.observe(fs, place)
    if place.entry.is_new(found):
        return True
    allowed = any(is_below(place.entry.path, str(root)) for root in roots)
    return allowed and journal.can_be_new(fs, place, found)
