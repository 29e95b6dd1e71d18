"""Staged keys, as several threads and crashes see them."""

from __future__ import annotations

import errno
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.staged_keys import StagedKey, StagedKeys

ROOT = Path("/etc/agent")
KEY = StagedKey(1, 7, "a.example")


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_side_by_side_forget_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten key would be made twice, and the plane refuses the second one of an order."""
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    monkeypatch.setattr("certctrl.store.state.staged_keys.write_atomic", lambda *_: None)  # the disk is no part of it
    monkeypatch.setattr("certctrl.store.state.staged_keys.remove_file", lambda *_: None)
    keys = StagedKeys(layout, RealFs())
    gone = {keys.save(cert_id, 1, "a.example", b"") for cert_id in range(1, 201)}

    def stage_and_forget(cert_id: int) -> StagedKey:
        keys.remove(StagedKey(cert_id, 1, "a.example"))
        return keys.save(cert_id, 2, "a.example", b"")

    with ThreadPoolExecutor(8) as threads:
        staged = {*threads.map(stage_and_forget, range(1, 201))}
    assert {*keys.all()} == staged
    assert not gone.intersection(keys.all())


def disk() -> tuple[ModelFs, ConfigDir]:
    fs, layout = ModelFs(), ConfigDir(ROOT)
    fs.put_dir(ROOT.parent)
    make_tree(fs, layout)
    fs = fs.settled()
    return fs, layout


def test_a_key_that_a_crash_left_is_durable_before_its_request_is_sent() -> None:
    """A killed run may have renamed the file, but not synced its directory."""
    fs, layout = disk()
    fs.fault = lambda verb, path: errno.EIO if verb == "fsync" and path.endswith("staged") else None
    with pytest.raises(DiskError):
        StagedKeys(layout, fs).save(1, 7, "a.example", b"the key")
    fs.fault = None
    again = StagedKeys(layout, fs)
    assert again.find(1, 7) == KEY
    assert not all(StagedKeys(layout, image).find(1, 7) for image in fs.crash_states(100, random.Random(1)))
    again.secure(KEY)
    for image in fs.crash_states(100, random.Random(1)):
        assert StagedKeys(layout, image).load(KEY) == b"the key"


def test_a_file_that_a_failing_disk_left_is_known() -> None:
    """It would stay on the disk until the next start, after its order has ended."""
    fs, layout = disk()
    fs.fault = lambda verb, path: errno.EIO if verb == "fsync" and path.endswith("staged") else None
    keys = StagedKeys(layout, fs)
    assert keys.all() == ()
    with pytest.raises(DiskError):
        keys.save(1, 7, "a.example", b"the key")
    fs.fault = None
    assert keys.all() == (KEY,)
    keys.remove(KEY)
    assert (keys.all(), StagedKeys(layout, fs).all()) == ((), ())
