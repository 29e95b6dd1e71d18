"""Fixtures of the logging tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Restore the root logger after each test."""
    root, ours = logging.getLogger(), logging.getLogger("certctrl")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    """An initialized config directory."""
    made = ConfigDir(tmp_path / "agent")
    init_config_dir(RealFs(), made, server_url="https://plane.example", ca_pem=None)
    return made
