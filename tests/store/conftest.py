"""What the tests of the store share: the state of a fresh directory on the real disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from certctrl.store.atomic import make_tree
from certctrl.store.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state import StateStore


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    layout = ConfigDir(tmp_path / "agent")
    make_tree(RealFs(), layout)
    return StateStore(layout, RealFs())
