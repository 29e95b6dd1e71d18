"""Undo and end of a deployment: the files they restore, keep and report, and in which order."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from copy_site import FS
from model_site import KEY, LAYOUT, NEW, OLD, PEM, begun, bytes_at, model_site
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.fs import closing
from certctrl.store.layout import ConfigDir


@pytest.fixture
def fs() -> ModelFs:
    return model_site(syncfs=False)


def renamed(fs: ModelFs) -> list[str]:
    return [line for line in fs.trace if line.startswith(("rename", "unlink")) and not line.endswith(".tmp")]


def set_mode(fs: ModelFs, path: Path, mode: int) -> None:
    with closing(fs, fs.open_file(path) if path == PEM else fs.open_dir(path)) as handle:
        fs.chmod(handle, mode)


def leftovers(fs: ModelFs) -> list[str]:
    return [path for path in fs.tree() if path.endswith((".tmp", ".jsonl"))]


def test_files_are_restored_in_reverse_order(fs: ModelFs) -> None:
    """A crash in between leaves a state that a crash of the commit could leave."""
    copies = begun(fs)
    fs.trace.clear()
    copies.commit()
    assert renamed(fs) == [f"rename {PEM}", f"rename {KEY}"]
    fs.trace.clear()
    copies.undo()
    assert renamed(fs)[:2] == [f"unlink {KEY}", f"rename {PEM}"]


@pytest.mark.parametrize("in_place", [False, True])
def test_undo_is_durable_before_the_journal_is_removed(fs: ModelFs, in_place: bool) -> None:
    copies, seen = begun(fs, in_place=in_place), list[bool]()
    copies.commit()

    def observe(disk: ModelFs, call: str) -> None:
        if call.startswith("unlink") and call.endswith(".jsonl"):
            seen.append(not disk.pending)

    fs.observer = observe
    copies.undo()
    assert seen == [True]


def test_the_first_error_of_an_undo_is_reported_and_the_copies_are_kept(fs: ModelFs) -> None:
    copies = begun(fs, in_place=True)
    copies.commit()
    copies._close_parents()
    set_mode(fs, KEY.parent, 0o777)
    kept = leftovers(fs)
    fs.fault = lambda verb, path: errno.EIO if verb == "write" else None
    with pytest.raises(DiskError, match="can be written by others"):
        copies.undo()
    fs.fault = None
    assert (bytes_at(fs), leftovers(fs), fs.open_files()) == (NEW, kept, [])
    set_mode(fs, KEY.parent, 0o755)
    assert recover(LAYOUT, fs, []).completed == (str(PEM), str(KEY))
    assert leftovers(fs) == []


def test_a_close_that_cannot_reach_a_directory_keeps_the_journal(fs: ModelFs) -> None:
    copies = begun(fs)
    copies.commit()
    copies._close_parents()
    set_mode(fs, PEM.parent, 0o777)
    with pytest.raises(DiskError, match=f"{PEM.parent} can be written by others"):
        copies.close()
    assert len(leftovers(fs)) == 2, "the journal, and the backup that it names"
    set_mode(fs, PEM.parent, 0o755)
    assert recover(LAYOUT, fs, []).completed == (str(PEM), str(KEY))
    assert (bytes_at(fs), leftovers(fs)) == (NEW, [])


def test_the_directory_of_another_user_is_written_and_undone() -> None:
    fs = model_site(uid=0)
    for path in (PEM.parent, KEY.parent):
        with closing(fs, fs.open_dir(path)) as handle:
            fs.chown(handle, 33, 33)
    copies = begun(fs, uid=33, gid=33)
    copies.commit()
    assert (bytes_at(fs), fs.tree()[str(KEY)].uid) == (NEW, 33)
    copies.undo()
    assert (bytes_at(fs), fs.tree()[str(PEM)].uid) == (OLD, 0)


# --- whose file it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "chmod", "after"),
    [
        (b"old leaf", None, (b"old leaf", 0o644)),
        (b"old leaf", 0o640, (b"old leaf", 0o640)),
        (b"new leaf", None, (b"old leaf", 0o644)),
        (b"new leaf", 0o640, (b"old leaf", 0o644)),
    ],
    ids=["mode alone", "mode alone, changed since", "bytes", "bytes, mode changed since"],
)
def test_the_mode_decides_only_if_old_and_new_bytes_are_equal(
    fs: ModelFs, data: bytes, chmod: int | None, after: tuple[bytes, int]
) -> None:
    copies = FileSet(LAYOUT, fs)
    copies.begin([FileWrite(path=PEM, data=data, mode=0o600)])
    assert copies.is_current()
    copies.commit()
    if chmod is not None:
        set_mode(fs, PEM, chmod)
    copies.undo()
    found = fs.tree()[str(PEM)]
    assert ((found.data, found.mode), leftovers(fs)) == (after, [])


def test_a_file_without_any_rights_gets_none_back(fs: ModelFs) -> None:
    set_mode(fs, PEM, 0o000)
    copies = begun(fs)
    copies.commit()
    copies.undo()
    assert (bytes_at(fs), fs.tree()[str(PEM)].mode) == (OLD, 0o000)


def test_an_undo_that_has_nothing_to_write_over_needs_no_safe_file(layout: ConfigDir, site: Path) -> None:
    path = site / "ssl" / "site.pem"
    copies = FileSet(layout, FS)
    copies.begin([FileWrite(path=path, data=b"new", mode=0o640, in_place=True)])
    os.link(path, site / "ssl" / "second")
    copies.undo()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"old leaf", 0o640)
    assert not list(layout.journal.iterdir())


# --- cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "is_whole"),
    [([KEY], False), ([PEM], True), ([KEY, KEY.with_name("x")], True)],
    ids=["one new file", "a new file and a backup", "two new files"],
)
def test_many_files_are_made_durable_by_one_call(paths: list[Path], is_whole: bool) -> None:
    fs = model_site()
    copies = FileSet(LAYOUT, fs)
    copies.begin([FileWrite(path=path, data=b"new", mode=0o600) for path in paths])
    assert fs.pending == []
    assert bool([line for line in fs.trace if line.startswith("syncfs")]) is is_whole
    copies.close()


def test_the_end_of_a_deployment_without_backups_needs_no_sync(fs: ModelFs) -> None:
    copies = FileSet(LAYOUT, fs)
    copies.begin([FileWrite(path=KEY, data=b"new", mode=0o600)])
    copies.commit()
    fs.trace.clear()
    copies.close()
    (done,) = fs.trace
    assert done.startswith(f"unlink {LAYOUT.journal}/")
