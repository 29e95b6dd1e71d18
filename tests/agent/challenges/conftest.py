"""Fixtures: a directory for answers, and an agent that may write to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from challenge_scene import allow
from handler_world import World


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    (tmp_path / "tokens").mkdir(mode=0o755)
    return tmp_path / "tokens"


@pytest.fixture
def scene(tmp_path: Path, tokens: Path) -> World:
    scene = World(tmp_path / "agent")
    allow(scene, http01_directory=str(tokens))
    return scene
