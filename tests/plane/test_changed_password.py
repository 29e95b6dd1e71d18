"""PostgreSQL only: a new password in ``--database-file`` counts for new connections, without a restart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from postgres_server import PostgresServer

from certctrl.cli.plane.database import connector, database_address
from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.storage.postgres import PostgresDatabase


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    return path


@pytest.fixture
def url(own_postgres: PostgresServer) -> str:
    """A database of a user with a password."""
    url = own_postgres.database()
    own_postgres.sql("CREATE ROLE app LOGIN PASSWORD 'first'")
    own_postgres.sql("ALTER DATABASE plane1 OWNER TO app")
    own_postgres.sql("GRANT ALL ON SCHEMA public TO app", "plane1")
    rules = own_postgres.root / "data" / "pg_hba.conf"
    rules.write_text(f"local all app scram-sha-256\n{rules.read_text()}")
    own_postgres.stop()
    own_postgres.start()
    return url.replace("//plane@", "//app@")


@pytest.fixture(params=["password", "whole URL"])
def contents(request: pytest.FixtureRequest, url: str) -> str:
    """What the file contains, with ``{}`` for the password."""
    return "{}" if request.param == "password" else url.replace("//app@", "//app:{}@")


@pytest.fixture
def database(url: str, file: Path, contents: str) -> Iterator[PostgresDatabase]:
    """The database, opened as ``plane serve`` does."""
    file.write_text(contents.format("first"))
    read = partial(database_address, url if contents == "{}" else "", str(file), {})
    connect = connector(read(), again=read)
    assert connect is not None
    database = connect()
    yield database
    database.close()


def reconnect(database: PostgresDatabase) -> None:
    database.close()
    with database.transaction():
        assert database.schema_version()


def test_a_new_connection_uses_the_password_of_now(
    own_postgres: PostgresServer, database: PostgresDatabase, file: Path, contents: str
) -> None:
    reconnect(database)
    own_postgres.sql("ALTER ROLE app PASSWORD 'second'")
    with pytest.raises(DatabaseAwayError, match="password authentication failed"):
        reconnect(database)
    file.write_text(contents.format("second"))
    reconnect(database)
    database.connections.open_to_listen().close()


def test_a_new_password_may_contain_brackets(
    own_postgres: PostgresServer, database: PostgresDatabase, file: Path, contents: str
) -> None:
    """They have a meaning in URLs, which the parser of libpq does not need to know in a password."""
    own_postgres.sql("ALTER ROLE app PASSWORD 'sec[ond'")
    file.write_text(contents.format("sec[ond"))
    reconnect(database)


def test_a_file_that_cannot_be_read_again_leaves_the_former_password(
    database: PostgresDatabase, file: Path, contents: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.unlink()
    for _ in range(2):
        reconnect(database)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    file.touch(mode=0o600)
    file.write_text(contents.format("first"))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        reconnect(database)
    assert not caplog.records
