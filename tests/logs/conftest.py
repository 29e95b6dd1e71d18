"""Fixtures of the logging tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir


@pytest.fixture(autouse=True)
def _restored_logging(own_logging: None) -> None:
    """Apply `own_logging` to every test."""


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    """An initialized config directory."""
    made = ConfigDir(tmp_path / "agent")
    init_config_dir(RealFs(), made, server_url="https://plane.example", ca_pem=None)
    return made
