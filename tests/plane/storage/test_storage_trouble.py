"""Locked, full and read-only databases: what can be read is answered, changes get 503, and the next one is stored."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from plane_world import Device, World

from certctrl.errors import DiskError, ExitStatus
from certctrl.plane.core import Plane
from certctrl.plane.errors import DatabaseLockedError
from certctrl.plane.storage.gathering import Gathering
from certctrl.plane.storage.sqlite import SqliteDatabase

REFRESH = "/auth/token/refresh"
TRANSACTIONS = ("BEGIN", "COMMIT", "ROLLBACK")
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN " + sys.argv[2])
print("locked", flush=True)
sys.stdin.read()
"""


class Lock:
    """Another process that has a lock on a database file."""

    def __init__(self, path: Path, kind: str = "IMMEDIATE") -> None:
        argv = [sys.executable, "-c", HOLD, str(path), kind]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"locked\n"

    def release(self) -> None:
        if self.process.poll() is None:
            self.process.communicate(b"")


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Callable[..., Lock]]:
    locks: list[Lock] = []

    def take(*args: Any) -> Lock:
        locks.append(Lock(*args))
        return locks[-1]

    yield take
    for taken in locks:
        taken.release()


# --- another process has a lock ---------------------------------------------------------------------------------------


async def test_polls_are_answered_while_a_change_waits_for_another_process(
    tmp_path: Path, lock: Callable[..., Lock]
) -> None:
    """The waiting change blocks nothing: the other process unlocks only after the reads."""
    path = tmp_path / "plane.db"
    with closing(SqliteDatabase(path)) as database:
        taken = lock(path)
        done: list[int] = []

        async def change() -> None:
            await database.work(database.run, "INSERT INTO settings VALUES ('a', '1')")
            done.append(len(done))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                for _ in range(20):
                    await trio.testing.wait_all_tasks_blocked()
                    assert await database.work(database.one, "SELECT count(*) AS n FROM settings") is not None
                assert not done
                taken.release()
        assert await database.work(database.setting, "a") == "1"


async def test_polls_that_come_with_a_change_do_not_wait_for_its_lock(
    tmp_path: Path, lock: Callable[..., Lock]
) -> None:
    path = tmp_path / "plane.db"
    with closing(SqliteDatabase(path)) as database:
        taken, gathering = lock(path), Gathering(database)
        done: list[str] = []

        async def run(name: str, *unit: Any) -> None:
            await gathering.work(*unit)
            done.append(name)
            if done == ["poll", "poll"]:
                taken.release()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, "poll", database.setting, "a")
                nursery.start_soon(run, "change", database.run, "INSERT INTO settings VALUES ('a', '1')")
                nursery.start_soon(run, "poll", database.setting, "a")
        assert done == ["poll", "poll", "change"]


async def test_a_lock_that_stays_is_an_error_that_names_it(
    tmp_path: Path, lock: Callable[..., Lock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.storage.sqlite._LOCKED_SECONDS", 0.1)
    path = tmp_path / "plane.db"
    with closing(SqliteDatabase(path)) as database:
        taken = lock(path)
        with pytest.raises(DatabaseLockedError) as caught:
            await database.work(database.run, "INSERT INTO settings VALUES ('a', '1')")
        assert str(caught.value) == f"{path}: locked by another process"
        assert (caught.value.exit_status, "fuser" in caught.value.fix) == (ExitStatus.BUSY, True)
        with pytest.raises(DatabaseLockedError), database.transaction():
            pass
        taken.release()
        await database.work(database.run, "INSERT INTO settings VALUES ('a', '1')")
        exclusive = lock(path, "EXCLUSIVE")
        assert await database.work(database.setting, "a") == "1", "with WAL, nobody keeps others from reading"
        exclusive.release()


def test_a_start_waits_for_a_lock_and_ends_with_75(
    tmp_path: Path, lock: Callable[..., Lock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.storage.sqlite._LOCKED_SECONDS", 0.1)
    with Plane.open(tmp_path / "plane"):
        pass
    lock(tmp_path / "plane" / "plane.db")
    with pytest.raises(DatabaseLockedError) as caught:
        Plane.open(tmp_path / "plane")
    assert caught.value.exit_status is ExitStatus.BUSY


# --- nothing can be stored --------------------------------------------------------------------------------------------

STATES = [
    (DiskError("plane.db: full", errno=errno.ENOSPC), "disk_full", "30"),
    (DiskError("plane.db: read-only", errno=errno.EROFS), "read_only", "30"),
    (DiskError("plane.db: disk I/O error"), "storage", "30"),
    (DatabaseLockedError("plane.db: locked by another process"), "database_locked", "5"),
]


def store_nothing(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make each change fail, but not transactions and reads."""
    run = world.plane.database.run

    def fail(sql: str, *parameters: object) -> int:
        if sql.startswith(TRANSACTIONS):
            return run(sql, *parameters)
        raise error

    monkeypatch.setattr("certctrl.plane.storage.sqlite._LOCKED_SECONDS", 0.0)
    monkeypatch.setattr(world.plane.database, "run", fail)
    monkeypatch.setattr(world.plane.database, "insert", fail)


def refresh_of(device: Device) -> dict[str, str]:
    return {"refresh_token": device.refresh_token, "device_public_id": device.public_id}


@pytest.mark.parametrize(("error", "problem", "retry_after"), STATES)
async def test_reads_polls_and_refreshes_go_on_and_changes_are_503(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str, retry_after: str
) -> None:
    device = await world.device()
    world.clock.advance(30 * 86_400)  # so that a refresh would like to store the new expiry
    store_nothing(world, monkeypatch, error)
    refreshed = await world.stranger("POST", REFRESH, refresh_of(device))
    device.token = refreshed.data["access_token"]
    assert "refresh_token" not in refreshed.data
    for path in ("updates", "certificates", "cas", "install-config"):
        assert (await device("GET", f"/apiv1/devices/self/{path}")).status in (200, 204), path
    poll = await device("GET", "/apiv1/devices/self/updates", headers={"cert-ctrl-instance": "another"})
    assert poll.status == 204
    assert (await world.operator("GET", "/apiv1/users/1/devices")).data[0]["last_seen_at"]
    for client, path, body in (
        (world.operator, "/apiv1/users", {"name": "another"}),
        (world.operator, "/apiv1/users/1/enrolment-tokens", {}),
        (world.operator, f"{device.home}/resync", {}),
        (world.stranger, "/auth/device", {"action": "device_start", "device_public_id": "device-2"}),
    ):
        refused = await client("POST", path, body)
        assert (refused.status, refused.key) == (503, "SERVICE_UNAVAILABLE"), path
        assert (refused.headers["retry-after"], refused.json["error"]["params"]["problem"]) == (retry_after, problem)
        assert "plane.db" not in refused.body.decode()
    health = await world.stranger("GET", "/health")
    assert [shown["key"] for shown in health.json["error"]["params"]["problems"]] == [problem]
    monkeypatch.undo()
    await world.plane.storage_check.once()
    assert (await world.stranger("GET", "/health")).data["status"] == "ok"
    assert (await world.operator("POST", "/apiv1/users", {"name": "another"})).status == 201


async def test_a_token_that_rotates_cannot_be_refreshed_without_storing_it(
    build: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build(rotate_refresh_tokens=True)
    device = await world.device()
    store_nothing(world, monkeypatch, STATES[0][0])
    assert (await world.stranger("POST", REFRESH, refresh_of(device))).status == 503
    monkeypatch.undo()
    assert (await world.stranger("POST", REFRESH, refresh_of(device))).data["refresh_token"] != device.refresh_token


async def test_a_refresh_stores_the_new_expiry_once_a_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    device = await world.device()
    written: list[str] = []
    run = world.plane.database.run
    monkeypatch.setattr(world.plane.database, "run", lambda sql, *more: (written.append(sql), run(sql, *more))[1])

    async def stores() -> bool:
        written.clear()
        assert (await world.stranger("POST", REFRESH, refresh_of(device))).status == 200
        return any(sql.startswith("UPDATE refresh_tokens") for sql in written)

    assert not await stores()
    world.clock.advance(86_000)
    assert not await stores()
    world.clock.advance(1_000)
    assert await stores()
    for _ in range(4):
        world.clock.advance(80 * 86_400)
        assert await stores(), "the expiry moves on"
    world.clock.advance(91 * 86_400)
    assert (await world.stranger("POST", REFRESH, refresh_of(device))).status == 401


async def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """SQLite's own limit of pages fails as a full disk does."""
    with closing(SqliteDatabase(tmp_path / "plane.db")) as database:
        await database.work(database.run, "INSERT INTO settings VALUES ('a', '1')")
        pages = await database.work(database.one, "PRAGMA page_count")
        assert pages is not None
        database.all(f"PRAGMA max_page_count = {pages[0]}")
        with pytest.raises(DiskError, match="full") as caught:
            await database.work(database.run, "INSERT INTO settings VALUES ('b', ?)", "x" * 100_000)
        assert caught.value.errno == errno.ENOSPC
        assert await database.work(database.setting, "a") == "1"
        database.all("PRAGMA max_page_count = 1000000")
        await database.work(database.run, "INSERT INTO settings VALUES ('b', ?)", "x" * 100_000)
