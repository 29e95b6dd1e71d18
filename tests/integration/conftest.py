"""What the tests with real processes share: one fleet per test or per file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, Plane


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Give a fleet of this test alone; whatever it started is gone afterwards."""
    with Fleet(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Give the fleet of this file: for what its tests can share, a plane that none of them harms."""
    with Fleet(tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture(scope="module")
def plane(shared_fleet: Fleet) -> Plane:
    """Give the plane of this file: the real `cert-ctrl plane serve`, with room for impatient agents."""
    return shared_fleet.plane(poll_rate=1000.0, poll_burst=1000)
