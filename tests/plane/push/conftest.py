"""Fixtures of push: a plane under a virtual clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plane_world import World


@pytest.fixture
async def virtual(build: Callable[..., World]) -> World:
    """A plane on the clock of a test with `autojump_clock`."""
    return build(virtual=True, poll_rate=1000.0, poll_burst=1000)
