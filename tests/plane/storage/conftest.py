"""Fixtures: a database of each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from certctrl.plane.storage.database import Database
from certctrl.plane.storage.sqlite import SqliteDatabase


@pytest.fixture(params=["sqlite", "postgresql"])
def open_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """``open_database()`` opens one and the same database of the engine, each time as another process would."""
    opened: list[Database] = []
    if request.param == "sqlite":
        make: Callable[[], Database] = lambda: SqliteDatabase(tmp_path / "plane.db", trio.to_thread.run_sync)  # noqa: E731
    else:
        url = request.getfixturevalue("postgres").database()
        from certctrl.plane.storage.postgres import PostgresDatabase

        make = lambda: PostgresDatabase(url)  # noqa: E731

    def open_one() -> Database:
        opened.append(make())
        return opened[-1]

    yield open_one
    for database in opened:
        database.close()
