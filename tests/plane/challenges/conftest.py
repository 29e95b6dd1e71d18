"""Fixtures: a plane's database of each engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from certctrl.plane.storage.database import Database
from certctrl.plane.storage.sqlite import SqliteDatabase


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    made: Database
    if request.param == "sqlite":
        made = SqliteDatabase(tmp_path / "plane.db", trio.to_thread.run_sync)
    else:
        url = request.getfixturevalue("postgres").database()
        from certctrl.plane.storage.postgres import PostgresDatabase

        made = PostgresDatabase(url)
    yield made
    made.close()
