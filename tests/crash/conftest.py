"""The stage of the crash trials; the modules of this folder are imported by name."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from crash_plane import PlaneThread
from crash_stage import Forks, Stage
from crash_trials import in_memory, scratch


@pytest.fixture(scope="module")
def stage(need: Callable[[str], str]) -> Iterator[Stage]:
    """One stage per module; each trial restores it. The plane is outside of what a crash of the host affects."""
    need("strace")
    root = Path(tempfile.mkdtemp(prefix="certctrl-crash-", dir=in_memory()))
    try:
        world, aside = scratch(root)
        with PlaneThread(aside / "s").running() as plane, Forks(aside / "log").running() as forks:
            yield Stage(world, aside, plane, forks)
    finally:
        shutil.rmtree(root)
