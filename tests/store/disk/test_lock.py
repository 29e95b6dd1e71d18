"""Locks end with their holder and name it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from certctrl.errors import BusyError, ConfigError, ExitStatus
from certctrl.store.disk.lock import lock_daemon, token_lock
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
        assert "status" in str(caught.value.fix)
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
    with pytest.raises(ConfigError, match="no such config directory"), lock_daemon(ConfigDir(tmp_path / "x")):
        pass


def test_lock_files_are_private_and_not_removed(layout: ConfigDir) -> None:
    with lock_daemon(layout):
        pass
    assert layout.daemon_lock.stat().st_mode & 0o777 == 0o600
