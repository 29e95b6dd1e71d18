"""Fixtures: planes in memory, on each engine, and served; databases of each engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from issuer_scene import Scene
from nacl.public import PrivateKey
from plane_commands import Cli, PlaneSite, Result, served_plane
from plane_socket import FAST
from plane_world import WALL, Client, Clock, World
from postgres_server import PostgresServer, postgres_server
from proving import registration
from scripted_issuer import scripted
from units import Units

from certctrl.cli.main import run_command
from certctrl.cli.plane.connection import DATA_VARIABLE
from certctrl.plane.core import Plane
from certctrl.plane.http.app import make_app
from certctrl.plane.http.faults import Faults
from certctrl.plane.pace import Pace
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.sqlite import SqliteDatabase


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
        plane.polls.pace = Pace(lambda: 1.0)  # polls are held for all of their wait
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


@pytest.fixture(params=["sqlite", "postgresql"])
def open_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """``open_database()`` opens one and the same database of the engine, each time as another process would."""
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            make: Callable[[], Database] = lambda: SqliteDatabase(tmp_path / "plane.db", trio.to_thread.run_sync)  # noqa: E731
        else:
            from certctrl.plane.storage.postgres import PostgresDatabase

            url = stack.enter_context(request.getfixturevalue("postgres").lent_database())
            make = lambda: PostgresDatabase(url)  # noqa: E731

        def open_one() -> Database:
            opened = make()
            stack.callback(opened.close)
            return opened

        yield open_one


@pytest.fixture
def database(open_database: Callable[[], Database]) -> Database:
    """A database of each engine."""
    return open_database()


@pytest.fixture
async def scene(open_database: Callable[[], Database]) -> AsyncIterator[Scene]:
    """A plane with a scripted issuer ``le``, on each engine."""
    with scripted() as kind:
        made = Scene(open_database, kind)
        await made.add()
        yield made


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return ``cli("plane", …)``, which runs a command in this process; its tables are wide."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr("certctrl.cli.output.TABLE_WIDTH", 300)

    def call(*argv: str) -> Result:
        capsys.readouterr()
        status = run_command(list(argv))
        done = capsys.readouterr()
        return Result(status, done.out, done.err)

    return call


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A plane in a process of its own, for all tests of a module: its data directory and its URL."""
    data = tmp_path_factory.mktemp("plane") / "data"
    with served_plane(data) as url:
        yield data, url


@pytest.fixture
def site(running: tuple[Path, str], cli: Cli) -> PlaneSite:
    """The running plane, with the commands that operate it."""
    return PlaneSite(*running, cli)


@pytest.fixture
def device(site: PlaneSite, request: pytest.FixtureRequest) -> str:
    """A device of the running plane, named after the test, with a token that a command printed."""
    token = site("enrolment-token", "--uses", "0", "--label", "tests").output.strip()
    name: str = request.node.name.replace("_", "-")[:60]
    site.register(registration(f"id-{name}", PrivateKey.generate(), name) | {"enrolment_token": token})
    return name
