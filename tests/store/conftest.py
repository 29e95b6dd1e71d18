"""Fixtures: a new config directory on the real disk, its state, and a site with destinations."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return StateStore(layout, RealFs())


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    made = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), made)
    return made


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two directories: one with a file, one for a key."""
    (tmp_path / "site" / "ssl").mkdir(parents=True, mode=0o755)
    (tmp_path / "site" / "private").mkdir(mode=0o700)
    (tmp_path / "site" / "ssl" / "site.pem").write_bytes(b"old leaf")
    (tmp_path / "site" / "ssl" / "site.pem").chmod(0o640)
    return tmp_path / "site"


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where opening a pipe would wait for its other end."""
    real = os.open

    def checked(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = real(path, flags | os.O_NONBLOCK, mode, dir_fd=dir_fd)
        if stat.S_ISFIFO(os.fstat(fd).st_mode) and not flags & os.O_NONBLOCK:
            os.close(fd)
            pytest.fail(f"opening {path} waits")
        return fd

    monkeypatch.setattr(os, "open", checked)
