"""Files that a deployment could not remove from a failing disk are removed while the process runs."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from model_site import LAYOUT, NEW, OLD, bytes_at, model_site, writes
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.deployments.file_set import FileSet
from certctrl.store.deployments.recovery import clear_up, recover

Work = Callable[[FileSet], None]


def leftovers(fs: ModelFs) -> list[str]:
    return [path for path in fs.tree() if path.endswith((".jsonl", ".tmp"))]


def deploy(copies: FileSet) -> None:
    copies.commit()
    copies.close()


def roll_back(copies: FileSet) -> None:
    copies.commit()
    copies.undo()


def drop(copies: FileSet) -> None:
    copies.close()


def run_on_failing_disk(fs: ModelFs, work: Work, after: int, *, in_place: bool) -> tuple[set[str], int]:
    """Run a deployment on a disk of which every operation fails after some; return what is left and the operations."""
    count, left = 0, set[str]()

    def fault(verb: str, path: str) -> int | None:
        nonlocal count
        count += 1
        return errno.EIO if count > after else None

    fs.fault = fault
    copies = FileSet(LAYOUT, fs, left=left)
    with suppress(DiskError):
        copies.begin(writes(in_place=in_place))
        work(copies)
    with suppress(DiskError):  # as its owner does, whatever has happened
        copies.close()
    fs.fault = None
    return left, count


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("work", [deploy, roll_back, drop])
def test_a_disk_that_fails_at_any_operation_leaves_nothing_for_long(work: Work, in_place: bool) -> None:
    _left, operations = run_on_failing_disk(model_site(), work, 1_000_000, in_place=in_place)
    assert operations > 15
    cleared = waiting = 0
    for after in range(operations):
        fs = model_site()
        left, _count = run_on_failing_disk(fs, work, after, in_place=in_place)
        before = bytes_at(fs)
        assert left or not leftovers(fs), f"{after}: nobody knows of {leftovers(fs)}"
        gone = clear_up(LAYOUT, fs, tuple(left))
        assert bytes_at(fs) == before, "no destination changes"
        assert fs.open_files() == []
        if gone == left:
            cleared += 1
            assert leftovers(fs) == [], after
            assert leftovers(fs.settled()) == [], "durably"
            crashed = fs.crash_states(20, random.Random(after))
            assert [one for one in map(bytes_at, crashed) if one != before] == [], "what has no copy is durable"
        else:
            waiting += 1
            assert before not in (OLD, NEW) or in_place, "only what is half done waits for the next start"
            recover(LAYOUT, fs, ["/srv"])
            assert leftovers(fs) == []
            assert bytes_at(fs) in (OLD, NEW)
    assert cleared > waiting


def test_a_disk_that_still_fails_is_tried_again() -> None:
    fs = model_site()
    left, _count = run_on_failing_disk(fs, deploy, 8, in_place=False)
    assert left
    fs.fault = lambda verb, path: errno.EIO if verb == "unlink" else None
    assert clear_up(LAYOUT, fs, tuple(left)) == set()
    fs.fault = None
    assert clear_up(LAYOUT, fs, tuple(left)) == left
    assert (leftovers(fs), clear_up(LAYOUT, fs, ["gone.jsonl"])) == ([], {"gone.jsonl"})


@pytest.mark.parametrize("in_place", [False, True])
def test_half_a_deployment_waits_for_the_next_start(in_place: bool) -> None:
    """One destination is new, or half-written, and the other old: only `recover` may complete or undo them."""
    verb, number = ("truncate", 1) if in_place else ("rename", 2)
    fs, left, count = model_site(), set[str](), 0

    def fault(done: str, path: str) -> int | None:
        nonlocal count
        count += done == verb and path.startswith("/srv")
        return errno.EIO if count >= number and done in (verb, "write", "rename") and path.startswith("/srv") else None

    copies = FileSet(LAYOUT, fs, left=left)
    copies.begin(writes(in_place=in_place))
    fs.fault = fault
    with pytest.raises(DiskError):
        copies.commit()
    fs.fault = None
    before, files = bytes_at(fs), leftovers(fs)
    assert before not in (OLD, NEW)
    assert clear_up(LAYOUT, fs, tuple(left)) == set()
    assert (bytes_at(fs), leftovers(fs)) == (before, files)
    recover(LAYOUT, fs, ["/srv"])
    assert (bytes_at(fs) in (OLD, NEW), leftovers(fs)) == (True, [])
