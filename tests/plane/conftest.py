"""Fixtures: an in-process plane, and a served one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from plane_socket import FAST
from plane_world import WALL, Client, Clock, World
from postgres_server import PostgresServer, postgres_server
from proving import registration
from units import Units

from certctrl.plane.core import Plane
from certctrl.plane.http.app import make_app
from certctrl.plane.http.faults import Faults
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import PlaneSettings


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def build(clock: Clock) -> Iterator[Callable[..., World]]:
    """Return ``build(settings…, virtual=False)``, which makes a World in memory; ``virtual``: on Trio's mock clock."""
    made: list[Plane] = []

    def make(*, virtual: bool = False, **settings: Any) -> World:
        if virtual:
            wall, steady = (lambda: WALL + trio.current_time()), trio.current_time
        else:
            wall, steady = (lambda: clock.wall), (lambda: clock.steady)
        plane = Plane.open(settings=PlaneSettings(**settings), wall_now=wall, monotonic=steady)
        made.append(plane)
        faults = Faults()
        units = Units(plane)
        app = units.around(make_app(plane, faults=faults))
        return World(plane, clock, app, faults, Client(app, plane.operator_key), Client(app), units)

    yield make
    for plane in made:
        plane.close()


@pytest.fixture
def world(build: Callable[..., World]) -> World:
    """Return a World with the spec's settings, except for a higher poll rate."""
    return build(poll_rate=1000.0, poll_burst=1000)


@pytest.fixture
def form() -> Callable[..., dict[str, Any]]:
    """Return `registration`."""
    return registration


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[PlaneAddress]:
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST))
        yield address
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="session")
def postgres(need: Callable[[str], str], need_module: Callable[[str], None]) -> Iterator[PostgresServer]:
    """A running server; it ends the test if PostgreSQL or psycopg is missing."""
    need_module("psycopg")
    with postgres_server(need) as server:
        yield server


@pytest.fixture
def own_postgres(need: Callable[[str], str], need_module: Callable[[str], None]) -> Iterator[PostgresServer]:
    """A server for one test, which may stop it or change its settings."""
    need_module("psycopg")
    with postgres_server(need) as server:
        yield server
