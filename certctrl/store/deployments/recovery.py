"""Finish or take back the deployments that a crash cut off; before anything else at every start."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.store.deployments import journal
from certctrl.store.deployments.journal import Entry
from certctrl.store.disk.fs import Fs, Handle, closing
from certctrl.store.disk.safe_path import NoDirectoryError, is_below
from certctrl.store.layout import ConfigDir


@attrs.frozen(kw_only=True)
class RecoveryReport:
    """What was found and done; paths of destinations."""

    forward: tuple[str, ...] = ()
    """These hold the new files now."""
    back: tuple[str, ...] = ()
    """These hold the old files again, or what somebody else wrote."""
    failed: tuple[str, ...] = ()
    """One line each for what could not be done; its journal stays for the next start."""


def recover(layout: ConfigDir, fs: Fs, roots: Sequence[str | Path]) -> RecoveryReport:
    """Bring every deployment that did not end to all new or all old, durably, and remove what it left.

    Forward when every destination holds its new file or can get it; back otherwise, and also when a destination
    that is still old lies below none of ``roots`` any more. What cannot be done is reported and tried again at
    the next start. Raises StateCorruptError for a damaged journal.
    """
    forward: list[str] = []
    back: list[str] = []
    failed: list[str] = []
    for one in journal.journals(fs, layout):
        entries, armed = one.load()
        try:
            if armed:
                one.settle()
            went_forward = _recover_one(fs, entries, roots, armed=armed)
        except (DiskError, PolicyRefusedError) as error:
            failed.append(f"{entries[0].path} and what goes with it: {error}")
            continue
        one.remove()
        if armed:
            (forward if went_forward else back).extend(entry.path for entry in entries)
    return RecoveryReport(forward=tuple(forward), back=tuple(back), failed=tuple(failed))


def _recover_one(fs: Fs, entries: Sequence[Entry], roots: Sequence[str | Path], *, armed: bool) -> bool:
    with ExitStack() as stack:
        here: list[tuple[Entry, Handle]] = []
        for entry in entries:
            try:
                parent = stack.enter_context(closing(fs, journal.parent_of(fs, entry)))
            except NoDirectoryError:
                continue  # nothing of ours can be left in a directory that is gone
            here.append((entry, parent))
        goes_forward = armed and all(_can_be_new(fs, entry, parent, roots) for entry, parent in here)
        if armed:
            for entry, parent in here:
                (journal.put_new if goes_forward else journal.put_old)(fs, entry, parent)
            journal.sync_parents(fs, [parent for _, parent in here])
        dropped = [journal.drop_leftovers(fs, entry, parent) for entry, parent in here]
        if any(dropped):
            journal.sync_parents(fs, [parent for _, parent in here])
        return goes_forward


def _can_be_new(fs: Fs, entry: Entry, parent: Handle, roots: Sequence[str | Path]) -> bool:
    found = journal.look(fs, entry, parent)
    if entry.is_new(found):
        return True
    allowed = any(is_below(entry.path, root) for root in roots)
    return allowed and entry.is_old(found) and journal.has(fs, parent, entry.temp, entry.new)
