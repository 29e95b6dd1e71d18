"""Fixtures of the agent's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from token_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "agent")
