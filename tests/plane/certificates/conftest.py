"""Fixture: a plane with keys made at devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from device_key_site import Site

from certctrl.plane.storage.database import Database


@pytest.fixture
def site(open_database: Callable[[], Database]) -> Site:
    """A plane on each engine."""
    return Site(open_database())
