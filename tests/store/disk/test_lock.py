"""Locks end with their holder and name it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modeldisk import ModelFs

from certctrl.errors import BusyError, ConfigError, ExitStatus
from certctrl.store.disk.lock import lock_daemon, token_lock
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir

HOLD = """
import subprocess, sys
from pathlib import Path
from certctrl.store.layout import ConfigDir
from certctrl.store.disk.lock import lock_daemon
layout = ConfigDir(Path(sys.argv[1]))
with lock_daemon(layout):
    child = subprocess.Popen(["sleep", "60"])  # outlives its parent, must not keep the lock
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_a_second_daemon_is_refused_immediately_with_the_holder(layout: ConfigDir) -> None:
    with lock_daemon(layout):
        before = time.monotonic()
        with pytest.raises(BusyError) as caught, lock_daemon(layout):
            pass
        assert time.monotonic() - before < 30
        assert caught.value.exit_status == ExitStatus.BUSY
        assert f"pid {os.getpid()}" in str(caught.value)
        see = f"see cert-ctrl -c {layout.root} status --daemon"
        assert caught.value.fix == f"{see}, or stop it: kill {os.getpid()}"
        layout.daemon_lock.write_text("torn")  # the pid is for messages only
        with pytest.raises(BusyError) as caught, lock_daemon(layout):
            pass
        assert (str(caught.value), caught.value.fix) == (f"another cert-ctrl is running in {layout.root}", see)
    with lock_daemon(layout) as lock:
        assert lock.held
    assert not lock.held


def test_kill_9_releases_the_lock_even_if_a_child_survives(layout: ConfigDir) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(layout.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(BusyError, match=f"pid {holder.pid}"), lock_daemon(layout):
                pass
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # the child is alive and does not have the lock
            with lock_daemon(layout):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_token_lock_can_be_tried_and_released(layout: ConfigDir) -> None:
    first, second = token_lock(layout), token_lock(layout)
    assert first.try_acquire()
    assert not first.try_acquire()
    assert not second.try_acquire()
    assert second.holder() == os.getpid()
    first.release()
    first.release()
    assert second.try_acquire()
    second.release()


def test_a_replaced_lock_file_is_locked_again(layout: ConfigDir) -> None:
    """Removing the locked file must not allow two holders, one of the new file and one of the old."""
    first = token_lock(layout)
    assert first.try_acquire()
    os.unlink(layout.token_lock)
    second = token_lock(layout)
    assert second.try_acquire()
    first.release()
    third = token_lock(layout)
    assert not third.try_acquire()
    second.release()


def test_daemon_and_token_lock_are_independent(layout: ConfigDir) -> None:
    lock = token_lock(layout)
    with lock_daemon(layout):
        assert lock.try_acquire()
        lock.release()


def test_locking_requires_the_config_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config directory") as caught, lock_daemon(ConfigDir(tmp_path / "x")):
        pass
    assert caught.value.file == str(tmp_path / "x")
    assert caught.value.fix == f"cert-ctrl -c {tmp_path}/x init --server URL"


def test_lock_files_are_private_and_not_removed(layout: ConfigDir) -> None:
    with lock_daemon(layout):
        pass
    assert layout.daemon_lock.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def model() -> tuple[ModelFs, ConfigDir]:
    fs, layout = ModelFs(), ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    make_tree(fs, layout)
    return fs, layout


def test_a_lock_works_on_a_full_disk(model: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = model
    fs.fault = lambda verb, path: errno.ENOSPC if verb in ("truncate", "write") else None
    with lock_daemon(layout, fs) as lock:
        assert lock.held
        assert not token_lock(layout, fs).held
        with pytest.raises(BusyError, match="another cert-ctrl is running"), lock_daemon(layout, fs):
            pass
    assert fs.open_files() == []


def test_the_pid_replaces_that_of_an_earlier_holder(model: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = model
    fs.put(layout.token_lock, b"123456789012345\n")
    lock = token_lock(layout, fs)
    assert lock.try_acquire()
    assert fs.tree()[str(layout.token_lock)].data == b"%d\n" % os.getpid()
    assert not token_lock(layout, fs).try_acquire()
    lock.release()
    assert fs.open_files() == []


def test_an_interrupt_while_locking_leaves_no_lock(model: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = model

    def interrupt(_: ModelFs, call: str) -> None:
        if call.startswith("truncate"):
            raise KeyboardInterrupt

    fs.observer = interrupt
    lock = token_lock(layout, fs)
    with pytest.raises(KeyboardInterrupt):
        lock.try_acquire()
    assert (lock.held, fs.open_files()) == (False, [])
    fs.observer = None
    assert lock.try_acquire()
