"""What the tests of the agent share: the world of a keeper of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from token_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "agent")
