"""The database that a release left behind is migrated with its rows, to the same ones with each engine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer
from upgrade.old_host import facts, plane_image

from certctrl.plane.storage.database import Database
from certctrl.plane.storage.moving import TABLES
from certctrl.plane.storage.schema import SCHEMA
from certctrl.plane.storage.sqlite import SqliteDatabase


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The database file that 0.1.0 left."""
    path = tmp_path / "plane.db"
    path.write_bytes(plane_image(Path("/etc/cert-ctrl")))
    return path


def left_rows(file: Path) -> Iterator[tuple[str, list[str], tuple[Any, ...]]]:
    """Yield table, columns and values of each row of a file."""
    with closing(sqlite3.connect(file)) as connection:
        names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        for (table,) in connection.execute(names).fetchall():
            found = connection.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in found.description]
            for row in found:
                yield table, columns, row


def rows(database: Database) -> dict[str, list[list[Any]]]:
    """Return the rows of all tables, in any order that is the same with each engine."""
    found = {}
    with database.transaction():
        for table in TABLES:
            present = [{key: row[key] for key in sorted(row.keys())} for row in database.all(f"SELECT * FROM {table}")]
            found[table] = sorted(([*row.values()] for row in present), key=repr)
    return found


def test_nothing_is_lost(file: Path) -> None:
    before = list(left_rows(file))
    with closing(SqliteDatabase(file)) as database:
        assert database.schema_version() == len(SCHEMA) > facts()["schema"]
        for table, columns, values in before:
            wanted = " AND ".join(f"{column} IS ?" for column in columns)
            assert database.one(f"SELECT 1 FROM {table} WHERE {wanted}", *values) is not None, (table, values)
    assert {"devices", "certificates", "signals", "streams", "outcomes"} <= {table for table, *_ in before}


def test_both_engines_have_the_same_rows(file: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase

    url = postgres.database()
    with monkeypatch.context() as earlier:
        earlier.setattr("certctrl.plane.storage.schema.SCHEMA", SCHEMA[: facts()["schema"]])
        with closing(PostgresDatabase(url)) as database, database.transaction():
            for table, columns, values in sorted(left_rows(file), key=lambda one: TABLES.index(one[0])):
                database.run(
                    f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", *values
                )
    with closing(SqliteDatabase(file)) as migrated, closing(PostgresDatabase(url)) as other:
        assert rows(other) == rows(migrated)
        with other.transaction():
            assert other.schema_version() == len(SCHEMA)
