"""StorageCheck: what it finds wrong with a database of each engine."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from postgres_server import PostgresServer

from certctrl.errors import DiskError
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.health.storage_check import StorageCheck
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.sqlite import SqliteDatabase


def check_of(database: Database, directory: Path | None = None) -> tuple[StorageCheck, Callable[[], set[ProblemName]]]:
    problems = Problems(lambda: 0.0)
    check = StorageCheck(database, problems, directory)
    return check, lambda: {problem.name for problem in problems.now()}


async def test_a_database_that_answers_is_no_problem(open_database: Callable[[], Database], tmp_path: Path) -> None:
    check, present = check_of(open_database(), tmp_path)
    await check.once()
    assert present() <= {ProblemName.DISK_LOW}  # of the machine of the test


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ProblemName.DISK_FULL), (errno.EROFS, ProblemName.READ_ONLY),
        (errno.EIO, ProblemName.STORAGE), (0, ProblemName.STORAGE),
    ],
)  # fmt: skip
async def test_a_failed_change_is_a_problem_until_one_is_stored(
    open_database: Callable[[], Database], number: int, kind: ProblemName, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database()
    check, present = check_of(database)
    check.note_failure(DiskError("x", errno=number))
    run = database.run

    def full(sql: str, *parameters: object) -> int:
        if "settings" in sql:
            raise DiskError("full", errno=number)
        return run(sql, *parameters)

    monkeypatch.setattr(database, "run", full)
    await check.once()
    assert present() == {kind}
    monkeypatch.undo()
    await check.once()
    assert present() == set()
    assert await database.work(database.one, "SELECT count(*) AS n FROM settings WHERE name = 'write_check'")


async def test_a_healthy_database_is_not_written_to(
    open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database()
    check, _ = check_of(database)
    monkeypatch.setattr(check, "_write", lambda: pytest.fail("written"))
    await check.once()


async def test_a_schema_that_only_a_newer_release_knows_is_a_problem(
    open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database()
    check, present = check_of(database)
    monkeypatch.setattr(database, "schema_version", lambda: 100)
    await check.once()
    assert present() == {ProblemName.SCHEMA_NEWER}
    monkeypatch.setattr(database, "schema_version", lambda: 99)
    await check.once()
    assert present() == set()


async def test_a_database_that_does_not_answer_in_time_is_away(autojump_clock: trio.abc.Clock) -> None:
    database = SqliteDatabase(None)
    check, present = check_of(database)
    seen: list[set[ProblemName]] = []

    async def stuck(*args: object) -> tuple[bool, bool]:
        await trio.sleep(60)
        seen.append(present())
        return False, False

    database.work = stuck  # type: ignore[assignment,method-assign]
    await check.once()
    assert (seen, present()) == ([{ProblemName.DATABASE_AWAY}], set())
    database.close()


async def test_a_busy_database_gets_more_time(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    database = SqliteDatabase(None)
    check, present = check_of(database)
    seen: list[set[ProblemName]] = []

    async def slow(*args: object) -> tuple[bool, bool]:
        for seconds in (20, 10):
            await trio.sleep(seconds)
            seen.append(present())
        return False, False

    monkeypatch.setattr(database, "work", slow)
    monkeypatch.setattr(database, "backlog", lambda: 3)
    await check.once()
    assert seen == [set(), {ProblemName.DATABASE_AWAY}]
    database.close()


async def test_a_read_only_file_system_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = SqliteDatabase(tmp_path / "plane.db")
    check, present = check_of(database)
    monkeypatch.setattr("certctrl.plane.storage.sqlite.os.statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    await check.once()
    assert present() == {ProblemName.READ_ONLY}
    monkeypatch.undo()
    await check.once()
    assert present() == set()
    database.close()


async def test_a_data_directory_that_is_almost_full_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = SqliteDatabase(None)
    check, present = check_of(database, tmp_path)
    free = SimpleNamespace(f_bavail=1000, f_frsize=4096)
    monkeypatch.setattr("certctrl.plane.health.storage_check.os.statvfs", lambda path: free)
    await check.once()
    assert present() == {ProblemName.DISK_LOW}
    free.f_bavail = 1_000_000
    await check.once()
    assert present() == set()
    database.close()


async def test_sqlite_reports_a_full_disk_by_its_number() -> None:
    database = SqliteDatabase(None)
    database.run("PRAGMA max_page_count = 1")
    with pytest.raises(DiskError) as caught:
        while True:
            database.run("INSERT INTO settings VALUES (hex(randomblob(8)), hex(zeroblob(8192)))")
    assert caught.value.errno == errno.ENOSPC
    database.close()


async def test_a_postgresql_server_that_is_away_or_read_only(own_postgres: PostgresServer) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase

    database = PostgresDatabase(own_postgres.database())
    check, present = check_of(database)
    own_postgres.stop(signal.SIGQUIT)
    await check.once()
    assert present() == {ProblemName.DATABASE_AWAY}
    own_postgres.start()
    await check.once()
    assert present() == set()
    own_postgres.sql("ALTER DATABASE plane1 SET default_transaction_read_only = on")
    database.close()  # the setting counts for new connections
    await check.once()
    assert present() == {ProblemName.READ_ONLY}
    with pytest.raises(DiskError) as caught:
        await database.work(database.run, "DELETE FROM settings")
    assert caught.value.errno == errno.EROFS
    own_postgres.sql("ALTER DATABASE plane1 RESET default_transaction_read_only")
    database.close()
    await check.once()
    assert present() == set()
    database.close()
