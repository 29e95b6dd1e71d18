"""A config directory as ``init`` makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_dir import FS, URL

from certctrl.store.config.files import init_config_dir
from certctrl.store.layout import ConfigDir


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    made = ConfigDir(tmp_path / "agent")
    init_config_dir(FS, made, server_url=URL, ca_pem=None)
    return made
