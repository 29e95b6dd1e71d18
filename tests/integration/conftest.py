"""Fixtures of the tests with real processes: one fleet per test or per file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Fleet, Plane
from postgres_server import PostgresServer, postgres_server


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Yield a fleet for one test; its processes end with the test."""
    with Fleet(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Yield a fleet for all tests of a file, which must not harm what they share."""
    with Fleet(tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture(scope="module")
def plane(shared_fleet: Fleet) -> Plane:
    """Return the plane of a file: `cert-ctrl plane serve` with a high rate limit."""
    return shared_fleet.plane(poll_rate=1000.0, poll_burst=1000)


@pytest.fixture
def own_postgres(need: Callable[[str], str], need_module: Callable[[str], None]) -> Iterator[PostgresServer]:
    """Yield a PostgreSQL server for one test, which may stop it."""
    need_module("psycopg")
    with postgres_server(need) as server:
        yield server
