"""Every mistake that keeps a control plane from starting: one line with what and where, a fix, and the exit status.

The address cannot be listened on, so that a start that is not refused ends too.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from operators_certificate import write_certificate
from postgres_server import PostgresServer

from certctrl.cli.main import run_command
from certctrl.errors import DiskError, ExitStatus
from certctrl.plane.ca.x509 import new_root
from certctrl.plane.core import Plane
from certctrl.plane.storage.data_dir import DataDir, locked
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.moving import move

NOT_HERE = "192.0.2.1:1"
Prepare = Callable[[Path], list[str] | None]


def refused(capsys: pytest.CaptureFixture[str], data: Path, *options: str) -> tuple[int, str, str]:
    """Return exit status, error and fix of a start; check their form."""
    capsys.readouterr()
    listen = [] if "--listen" in options else ["--listen", NOT_HERE]
    status = run_command(["plane", "serve", "--data", str(data), *listen, *options])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if not line.startswith(("WARNING", "ERROR", "INFO"))]
    errors = [line for line in lines if line.startswith("cert-ctrl: error: ")]
    fixes = [line for line in lines if line.startswith("fix: ")]
    assert (len(errors), len(fixes)) == (1, 1), err
    return status, errors[0].removeprefix("cert-ctrl: error: "), fixes[0].removeprefix("fix: ")


# --- the data directory -----------------------------------------------------------------------------------------------


def no_directory(data: Path) -> None:
    for path in data.iterdir():
        path.unlink()
    data.rmdir()
    data.write_text("")


def not_a_database(data: Path) -> None:
    (data / "plane.db").write_bytes(b"not a database, but long enough to be read as one" * 100)


def newer_schema(data: Path) -> None:
    with closing(sqlite3.connect(data / "plane.db")) as connection:
        connection.execute("PRAGMA user_version = 100")


def moved_away(data: Path) -> None:
    with closing(sqlite3.connect(data / "plane.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO settings VALUES ('moved_to', 'postgresql://db.example.com/plane')")


def other_storage_key(data: Path) -> None:
    data.with_name("other").mkdir()
    Keyring.open(DataDir(data.with_name("other")))
    (data.with_name("other") / "storage.key").rename(data / "storage.key")


def operators_certificate_without_key(data: Path) -> None:
    now = time.time()
    write_certificate(data, new_root("Example CA", not_before=now - 60, not_after=now + 86_400))
    (data / "tls.key").write_text("")


DIRECTORIES: list[tuple[Prepare, int, str, str]] = [
    (no_directory, ExitStatus.CONFIG, "plane: is not a directory", "pass a directory to --data"),
    (not_a_database, ExitStatus.DISK, "plane.db: file is not a database", "restore it from a backup"),
    (newer_schema, ExitStatus.CONFIG, "plane.db: was written by a newer release (schema 100", "run the newer release"),
    (moved_away, ExitStatus.CONFIG, "plane.db: was moved to postgresql://db.example.com/plane", "add --database"),
    (lambda data: (data / "storage.key").unlink(), ExitStatus.CONFIG, "storage.key: is missing", "restore it"),
    (lambda data: (data / "storage.key").write_text("x") and None, ExitStatus.CONFIG, "storage.key: is not", "restore"),
    (other_storage_key, ExitStatus.CONFIG, "storage.key", ""),
    (lambda data: (data / "operator.key").write_text("") and None, ExitStatus.CONFIG, "operator.key: contains no", "delete"),
    (operators_certificate_without_key, ExitStatus.CONFIG, "tls.pem: cannot be used with tls.key", "delete both"),
    (lambda data: None, ExitStatus.UNAVAILABLE, f"cannot listen on {NOT_HERE}", "choose another --listen"),
    (lambda data: ["--listen", "x"], ExitStatus.USAGE, "--listen 'x' is not HOST:PORT", "use for example"),
    (lambda data: ["--proxy", "x"], ExitStatus.USAGE, "--proxy 'x' is not an address or network", "use for example"),
    (lambda data: ["--public-url", "x"], ExitStatus.USAGE, "--public-url 'x' is not a URL", "use https://"),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "status", "what", "fix"), DIRECTORIES)
def test_a_data_directory_that_cannot_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Prepare, status: int, what: str, fix: str
) -> None:
    data = tmp_path / "plane"
    Plane.open(data).close()
    options = prepare(data) or []
    found = refused(capsys, data, *options)
    assert (found[0], what in found[1], fix in found[2]) == (status, True, True), found


def test_a_directory_that_another_process_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "plane"
    Plane.open(data).close()
    with locked(DataDir(data)):
        status, error, fix = refused(capsys, data)
    assert (status, fix) == (ExitStatus.BUSY, "stop it, or use another --data")
    assert f"{data} is served by another plane (process {os.getpid()})" in error


def test_a_database_that_another_process_has_locked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.storage.sqlite._LOCKED_SECONDS", 0.1)
    data = tmp_path / "plane"
    Plane.open(data).close()
    with closing(sqlite3.connect(data / "plane.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        status, error, fix = refused(capsys, data)
    assert (status, fix) == (ExitStatus.BUSY, f"end the process that has it open: fuser {data / 'plane.db'}")
    assert f"{data / 'plane.db'}: locked by another process" in error


def test_an_old_schema_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "plane"
    Plane.open(data).close()
    with closing(sqlite3.connect(data / "plane.db")) as connection:
        connection.execute("PRAGMA user_version = 1")

    def read_only(path: Path) -> None:
        raise DiskError(f"{path}: Read-only file system", path=str(path), errno=errno.EROFS)

    monkeypatch.setattr("certctrl.plane.storage.sqlite.make_private", read_only)
    status, error, fix = refused(capsys, data)
    assert (status, fix) == (ExitStatus.DISK, "make it writable for one start")
    assert f"{data / 'plane.db'}: must be migrated and is read-only" in error


# --- a database on a server -------------------------------------------------------------------------------------------


@pytest.fixture
def moved(postgres: PostgresServer, tmp_path: Path) -> tuple[Path, str]:
    """A data directory whose data are in a database, with its URL."""
    from certctrl.plane.storage.postgres import PostgresDatabase

    data, url = tmp_path / "plane", postgres.database()
    Plane.open(data).close()
    move(DataDir(data), lambda: PostgresDatabase(url))
    return data, url


def in_database(postgres: PostgresServer, url: str, sql: str) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase

    with closing(PostgresDatabase(url)) as database, database.transaction():
        database.run(sql)


def test_a_database_that_cannot_be_served(
    postgres: PostgresServer, moved: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, url = moved
    secret, open_file = tmp_path / "password", tmp_path / "open"
    secret.write_text("\n")
    secret.chmod(0o600)
    open_file.write_text("hunter2\n")
    open_file.chmod(0o644)
    base, _, rest = url.partition("?")
    other = f"{base.rpartition('/')[0]}/nothing?{rest}"
    gone = "postgresql://plane@/plane?host=/nowhere"
    usage, away, config = ExitStatus.USAGE, ExitStatus.UNAVAILABLE, ExitStatus.CONFIG
    table: list[tuple[list[str], int, str, str]] = [
        (["--database", "postgresql://plane:hunter2@db/plane"], usage, "contains a password", "--database-file"),
        (["--database", "mysql://plane@db/plane"], usage, "is not a PostgreSQL URL", "postgresql://"),
        (["--database", f"{url}&colour=red"], config, "the database URL is not valid", "postgresql://"),
        (["--database", gone], away, "postgresql:///nowhere/plane", "check the server"),
        (["--database", other], away, 'database "nothing" does not exist', "check the server"),
        (["--database", url, "--database-file", str(secret)], config, f"{secret}: must contain one line", ""),
        (["--database", url, "--database-file", str(open_file)], config, f"{open_file}: is readable by other", "chmod"),
        (["--database", url, "--database-file", str(tmp_path / "no")], config, "cannot be read", "write the password"),
        (["--database", url, "--storage-key-file", str(open_file)], config, f"{open_file}: is readable by", "chmod"),
        (["--database", url, "--operator-key-file", str(secret)], config, f"{secret}: must contain one line", "write"),
        (["--database", postgres.database()], config, "the database has no CA keys", "migrate-to"),
        (["--database", url], away, f"cannot listen on {NOT_HERE}", "choose another --listen"),
        ([], config, "plane.db: was moved to postgresql://", "add --database"),
    ]  # fmt: skip
    for options, status, what, fix in table:
        found = refused(capsys, data, *options)
        assert (found[0], what in found[1], fix in found[2]) == (status, True, True), (options, found)
        assert "hunter2" not in "".join(map(str, found))


def test_keys_that_do_not_belong_to_the_database(moved: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    data, url = moved
    key = (data / "storage.key").read_bytes()
    other_storage_key(data)
    status, error, _ = refused(capsys, data, "--database", url)
    assert (status, "storage.key" in error) == (ExitStatus.CONFIG, True)
    for name in ("storage.key", "operator.key"):
        (data / "storage.key").write_bytes(key)
        (data / name).rename(data / "kept")
        status, error, fix = refused(capsys, data, "--database", url)
        assert (status, name in error, bool(fix)) == (ExitStatus.CONFIG, True, True)
        (data / "kept").rename(data / name)


@pytest.mark.parametrize(
    ("sql", "status", "what"),
    [
        ("UPDATE schema_version SET version = 100", ExitStatus.CONFIG, "was written by a newer release (schema 100"),
        ("UPDATE schema_version SET version = 1", ExitStatus.DISK, "read-only"),
    ],
)
def test_a_schema_that_cannot_be_used(
    postgres: PostgresServer,
    moved: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
    sql: str,
    status: int,
    what: str,
) -> None:
    data, url = moved
    in_database(postgres, url, sql)
    postgres.sql(f"ALTER DATABASE plane{postgres._made} SET default_transaction_read_only = on")
    found = refused(capsys, data, "--database", url)
    assert (found[0], what in found[1], bool(found[2])) == (status, True, True), found


def test_a_server_that_is_too_old(
    moved: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, url = moved
    monkeypatch.setattr("certctrl.plane.storage.postgres._OLDEST", 990_000)
    status, error, fix = refused(capsys, data, "--database", url)
    assert (status, "the server is PostgreSQL" in error, fix) == (ExitStatus.CONFIG, True, "use PostgreSQL 15 or later")
