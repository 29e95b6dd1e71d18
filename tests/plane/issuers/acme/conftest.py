"""Fixture: an ACME issuer in a plane whose wall clock is Trio's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from acme_world import AcmeWorld, make_world
from plane_world import WALL


@pytest.fixture
async def world() -> AsyncIterator[AcmeWorld]:
    made = make_world(lambda: WALL + trio.current_time())
    yield made
    made.plane.close()
