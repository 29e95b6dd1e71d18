"""An older release on the database of a newer one, with each engine: refused with words, and nothing is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer

from certctrl.cli.main import run_command
from certctrl.errors import ExitStatus
from certctrl.plane.core import Plane
from certctrl.plane.storage.data_dir import DataDir
from certctrl.plane.storage.moving import TABLES, move
from certctrl.plane.storage.schema import SCHEMA

LATER = 100
"""The first schema version of the next major one."""
REFUSED = f"was written by a newer release (schema {LATER}, this one knows {len(SCHEMA)})"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run_command(["plane", *map(str, words)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Plane.open(tmp_path / "plane").close()
    return tmp_path / "plane"


def contents(data: Path) -> dict[str, Any]:
    """Return the files of a data directory, and what its database contains; locks are no data."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in data.iterdir() if path.suffix in (".pem", ".key")}
    with closing(sqlite3.connect(data / "plane.db")) as connection:
        return found | {"plane.db": (*connection.execute("PRAGMA user_version"), *connection.iterdump())}


def make_later(data: Path) -> None:
    with closing(sqlite3.connect(data / "plane.db")) as connection:
        connection.execute("CREATE TABLE of_later (id INTEGER)")
        connection.execute(f"PRAGMA user_version = {LATER}")


@pytest.mark.parametrize(
    "words", [("serve", "--listen", "127.0.0.1:0"), ("backup", "FILE"), ("status",), ("migrate-to", "postgresql:///x")]
)
def test_sqlite(call: Call, data: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    make_later(data)
    before = contents(data)
    words = tuple(str(tmp_path / "backup") if word == "FILE" else word for word in words)
    status, _, err = call(*words, "--data", data)
    assert contents(data) == before
    assert not (tmp_path / "backup").exists()
    assert (status, f"plane.db: {REFUSED}\nfix: run the newer release" in err) == (ExitStatus.CONFIG, True), err


def test_a_backup_of_before_the_upgrade_brings_an_older_release_back(call: Call, data: Path, tmp_path: Path) -> None:
    assert call("backup", tmp_path / "backup", "--data", data)[0] == 0
    make_later(data)
    status, out, _ = call("restore", tmp_path / "backup", "--data", data)
    assert (status, "plane.db.before-restore" in out) == (0, True)
    Plane.open(data).close()


def test_a_later_backup_is_refused(call: Call, data: Path, tmp_path: Path) -> None:
    assert call("backup", tmp_path / "backup", "--data", data)[0] == 0
    with closing(sqlite3.connect(tmp_path / "backup")) as connection:
        connection.execute(f"PRAGMA user_version = {LATER}")
    before = contents(data)
    status, _, err = call("restore", tmp_path / "backup", "--data", data)
    assert (status, REFUSED in err, contents(data)) == (ExitStatus.CONFIG, True, before)


def test_postgresql(call: Call, data: Path, tmp_path: Path, postgres: PostgresServer) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase

    assert call("backup", tmp_path / "backup", "--data", data)[0] == 0
    url = postgres.database()
    name = f"plane{postgres._made}"
    move(DataDir(data), lambda: PostgresDatabase(url))
    postgres.sql(f"UPDATE schema_version SET version = {LATER}", name)
    postgres.sql("CREATE TABLE of_later (id BIGINT)", name)

    def rows() -> dict[str, Any]:
        return {table: postgres.sql(f"SELECT xmin, * FROM {table}", name) for table in (*TABLES, "schema_version")}

    before = rows(), contents(data)
    for words in (
        ("serve", "--listen", "127.0.0.1:0"), ("backup", tmp_path / "other"), ("status",), ("restore", tmp_path / "backup"),
    ):  # fmt: skip
        status, _, err = call(*words, "--data", data, "--database", url)
        assert (status, REFUSED in err, "fix: run the newer release" in err) == (ExitStatus.CONFIG, True, True), err
        assert (rows(), contents(data)) == before
    assert not (tmp_path / "other").exists()
    status, out, err = call("restore", tmp_path / "backup", "--data", data, "--database", postgres.database())
    assert (status, "restored 0 devices" in out) == (0, True), err
