"""PostgreSQL only: several planes on one database, lost connections, bad input, and the move from SQLite."""

from __future__ import annotations

import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from engine_plane import WALL, new_device, plane_on, registered
from postgres_server import PostgresServer

from certctrl.errors import BusyError, ConfigError, DiskError, ExitStatus
from certctrl.plane.core import Plane
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import DatabaseAwayError, ErrorResponse
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.polls import Poll
from certctrl.plane.storage.data_dir import DataDir, locked
from certctrl.plane.storage.database import Database, marks
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

Connect = Callable[[str], Database]


@pytest.fixture
def connect(need_module: Callable[[str], None]) -> Iterator[Connect]:
    """``connect(url)`` opens a database, which the test's end closes."""
    need_module("psycopg")
    from certctrl.plane.storage.postgres import PostgresDatabase

    opened: list[Database] = []

    def connect(url: str, **more: Any) -> Database:
        opened.append(PostgresDatabase(url, **more))
        return opened[-1]

    yield connect
    for database in opened:
        database.close()


async def poll(plane: Plane, device_id: int, cursor: str, seen: list[Any]) -> None:
    """Hold a poll until it gets signals."""
    session = DeviceSession(device_id, 1, 1)
    with plane.stream.waiter(device_id) as waiter:
        held = await plane.work(plane.polls.begin, session, Poll(cursor=cursor, wait=30))
        seen.append("held")
        page = await plane.polls.finish(held, waiter)
    seen.append([signal["ref"] for signal in page.signals])


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.01)


async def append(plane: Plane, device_id: int, cert_id: int) -> None:
    await plane.work(plane.stream.append, device_id, "cert.renewed", {"cert_id": cert_id})


# --- several planes ---------------------------------------------------------------------------------------------------


async def test_a_commit_of_one_plane_wakes_a_poll_of_another(
    postgres: PostgresServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certctrl.plane.storage.postgres_wakes import Wakes

    monkeypatch.setattr("certctrl.plane.storage.postgres_wakes.SWEEP_SECONDS", 3600.0)  # notifications alone
    url, keyring = postgres.database(), Keyring.open(None)
    here, there = plane_on(connect(url), keyring), plane_on(connect(url), keyring)
    device_id, _ = await registered(here)
    cursor = (await here.work(here.stream.read, device_id, None, 1)).cursor
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        for plane in (here, there):
            wakes = Wakes(plane.database, plane.database.connections.open_to_listen, plane.stream)  # type: ignore[attr-defined]
            nursery.start_soon(wakes.run)
            with trio.fail_after(60):
                await wakes.listening.wait()
        nursery.start_soon(poll, there, device_id, cursor, seen)
        await until(lambda: seen == ["held"])
        await append(here, device_id, 1)
        await until(lambda: len(seen) == 2)
        assert seen == ["held", [{"cert_id": 1}]]
        postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        seen.clear()
        cursor = (await here.work(here.stream.read, device_id, None, 9)).cursor
        nursery.start_soon(poll, there, device_id, cursor, seen)
        await until(lambda: seen == ["held"])
        await append(here, device_id, 2)
        await until(lambda: len(seen) == 2)  # the listener has a new connection
        assert seen == ["held", [{"cert_id": 2}]]
        nursery.cancel_scope.cancel()


async def test_the_sweep_finds_a_signal_that_was_not_announced(postgres: PostgresServer, connect: Connect) -> None:
    url, keyring = postgres.database(), Keyring.open(None)
    here, there = plane_on(connect(url), keyring), plane_on(connect(url), keyring)
    (device_id, _), other = await registered(here), await new_device(here, "device-2")
    cursor = (await here.work(here.stream.read, device_id, None, 1)).cursor
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll, there, device_id, cursor, seen)
        await until(lambda: seen == ["held"])
        await append(here, other, 1)
        await there.stream.sweep()
        await append(here, device_id, 2)
        assert seen == ["held"]
        await there.stream.sweep()
        await until(lambda: len(seen) == 2)
    assert seen == ["held", [{"cert_id": 2}]]


def test_a_long_list_of_devices_is_sent_in_parts(need_module: Callable[[str], None]) -> None:
    need_module("psycopg")
    from certctrl.plane.storage.postgres_wakes import payloads

    for first in (1, 10**15):
        devices = set(range(first, first + 2000))
        parts = list(payloads("sender", devices))
        assert all(len(part) < 8000 and part.count(",") < 900 for part in parts)
        assert {int(text) for part in parts for text in part.partition(":")[2].split(",")} == devices
    assert list(payloads("sender", ())) == []


# --- a server that goes away --------------------------------------------------------------------------------------------


async def test_a_restarted_server_costs_at_most_an_error(
    own_postgres: PostgresServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    plane = plane_on(connect(own_postgres.database()))
    device_id, _ = await registered(plane)
    cursor = (await plane.work(plane.stream.read, device_id, None, 1)).cursor
    seen: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll, plane, device_id, cursor, seen)
        await until(lambda: seen == ["held"])
        own_postgres.stop(signal.SIGQUIT)
        with pytest.raises(DatabaseAwayError) as caught:
            await plane.work(plane.devices.users)
        assert (caught.value.exit_status, "\n" in str(caught.value)) == (ExitStatus.UNAVAILABLE, False)
        plane.stream.wake_all()
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert seen == ["held"], "held polls stay"
        own_postgres.start()
        await append(plane, device_id, 1)
        await until(lambda: len(seen) == 2)
    assert seen == ["held", [{"cert_id": 1}]]
    away, back = caplog.messages
    assert away.startswith("database does not answer: ") and back.endswith(" answers again")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"], "both are shown by plane serve"


async def test_connections_that_the_server_closed_cost_nothing(own_postgres: PostgresServer, connect: Connect) -> None:
    plane = plane_on(connect(own_postgres.database()))
    await plane.work(plane.devices.users)
    own_postgres.stop()
    own_postgres.start()
    assert await plane.work(plane.devices.users) == [{"id": 1, "name": "operator"}]


async def test_a_statement_outside_of_a_unit_is_a_bug(postgres: PostgresServer, connect: Connect) -> None:
    plane = plane_on(connect(postgres.database()))
    with pytest.raises(RuntimeError, match="outside of a unit"):
        plane.devices.users()


async def test_a_read_only_database_serves_reads(postgres: PostgresServer, connect: Connect) -> None:
    url = postgres.database()
    with plane_on(connect(url)) as plane:
        device_id, _ = await registered(plane)
        token = (await plane.work(plane.sessions.start, device_id))["refresh_token"]
    postgres.sql(f"ALTER DATABASE plane{postgres._made} SET default_transaction_read_only = on")
    database = connect(url)
    assert await database.work(database.one, "SELECT count(*) AS n FROM users") == {"n": 1}
    with pytest.raises(DiskError, match="read-only"):
        await database.work(database.run, "DELETE FROM page_sessions")
    plane = plane_on(database, plane.keyring, lambda: WALL + 30 * 86_400)
    answer = await plane.refresh(token, "device-1", [])
    session = await plane.work(plane.sessions.authenticate, answer["access_token"])
    with plane.stream.waiter(device_id):
        assert not (await plane.work(plane.polls.begin, session, Poll())).page.signals
    await plane.storage_check.once()
    assert ProblemName.READ_ONLY in plane.problems


# --- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"), [("postgresql://u@[h/d", "not valid"), ("postgresql://u@h/d?colour=red", "not valid")]
)
def test_an_unusable_url_is_a_config_error(connect: Connect, url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        connect(url)


def test_a_server_that_is_not_there_is_named(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(DatabaseAwayError) as caught:
        connect(f"postgresql://plane@/plane?host={tmp_path}", password="s3cret")
    assert str(tmp_path) in str(caught.value)
    assert "s3cret" not in f"{caught.value}{caught.value.fix}"


def test_only_a_newer_major_schema_is_refused(postgres: PostgresServer, connect: Connect) -> None:
    url = postgres.database()
    name = f"plane{postgres._made}"
    connect(url)
    postgres.sql("UPDATE schema_version SET version = version + 1", name)
    connect(url)
    postgres.sql("UPDATE schema_version SET version = 999", name)
    with pytest.raises(ConfigError, match="newer release"):
        connect(url)


async def test_planes_that_start_together_migrate_once(postgres: PostgresServer, connect: Connect) -> None:
    url = postgres.database()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(trio.to_thread.run_sync, connect, url)
    assert postgres.sql("SELECT count(*) FROM schema_version", f"plane{postgres._made}") == "1"


# --- the move from SQLite -------------------------------------------------------------------------------------------------


async def sqlite_plane(data: Path) -> tuple[int, Any]:
    """Make a data directory with a device that has signals; return the device and its page."""
    with Plane.open(data) as plane:
        device_id, _ = await registered(plane)
        await plane.certificates.issue(1, ["a.example"], device_ids=[device_id])
        await plane.resync(1, device_id, "übel")
        await plane.work(plane.devices.tags.change, 1, [device_id], add=["web"])
        plane.stream.trim(device_id, 1)
        return device_id, plane.stream.read(device_id, None, 10)


async def test_a_moved_plane_keeps_ids_tokens_and_cursors(
    postgres: PostgresServer, connect: Connect, tmp_path: Path
) -> None:
    from certctrl.plane.storage.moving import move

    data, url = tmp_path / "data", postgres.database()
    device_id, page = await sqlite_plane(data)
    with Plane.open(data) as plane:
        token = (await plane.work(plane.sessions.start, device_id))["access_token"]
        certificate, root = plane.certificates.show(1, 1), plane.ca.root_pem
    assert move(DataDir(data), partial(connect, url)) == (1, 1, 1)
    with pytest.raises(ConfigError, match="was moved to"):
        Plane.open(data)
    with Plane.open(data, connect=partial(connect, url)) as plane:
        assert plane.ca.root_pem == root
        assert (await plane.work(plane.sessions.authenticate, token)).device_id == device_id
        assert await plane.work(plane.stream.read, device_id, None, 10) == page
        assert (await plane.work(plane.stream.read, device_id, page.cursor, 10)).signals == ()
        assert await plane.work(plane.certificates.show, 1, 1) == certificate
        assert (await plane.work(plane.devices.show, 1, device_id))["tags"] == ["web"]
        with pytest.raises(ErrorResponse, match="expired"):
            await plane.work(plane.stream.read, device_id, "1-1", 10)
        assert (await plane.work(plane.devices.add_user, "second"))["id"] == 2
        assert await new_device(plane, "device-2") == device_id + 1
        assert (await plane.certificates.issue(1, ["b.example"]))["id"] == 2


def test_a_move_copies_every_table(need_module: Callable[[str], None]) -> None:
    need_module("psycopg")
    from certctrl.plane.storage.moving import TABLES

    with closing(SqliteDatabase(None)) as database:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        assert sorted(TABLES) == [row["name"] for row in database.all(sql)]


async def test_a_move_goes_into_an_empty_database_only(
    postgres: PostgresServer, connect: Connect, tmp_path: Path
) -> None:
    from certctrl.plane.storage.moving import move

    url = postgres.database()
    for name in ("one", "two"):
        await sqlite_plane(tmp_path / name)
    move(DataDir(tmp_path / "one"), partial(connect, url))
    with pytest.raises(ConfigError, match="contains the data of a control plane"):
        move(DataDir(tmp_path / "two"), partial(connect, url))
    with Plane.open(tmp_path / "two") as plane:
        assert len(plane.devices.show_all(1)) == 1, "the refused one serves on"
    with locked(DataDir(tmp_path / "two")), pytest.raises(BusyError):
        move(DataDir(tmp_path / "two"), partial(connect, url))
    with pytest.raises(ConfigError, match="no such database"):
        move(DataDir(tmp_path / "three"), partial(connect, url))


async def test_a_fleet_plane_makes_no_secrets(postgres: PostgresServer, connect: Connect, tmp_path: Path) -> None:
    from certctrl.plane.storage.moving import move

    url = postgres.database()
    await sqlite_plane(tmp_path / "one")
    for missing in ("storage.key", "operator.key"):
        with pytest.raises(ConfigError, match=f"{missing}: is missing"):
            Plane.open(tmp_path / "two", connect=partial(connect, url))
        (tmp_path / "two" / missing).write_bytes((tmp_path / "one" / missing).read_bytes())
        (tmp_path / "two" / missing).chmod(stat.S_IRUSR)
    with pytest.raises(ConfigError, match="no CA keys"):
        Plane.open(tmp_path / "two", connect=partial(connect, url))
    move(DataDir(tmp_path / "one"), partial(connect, url))
    with Plane.open(tmp_path / "two", connect=partial(connect, url)) as plane:
        assert (tmp_path / "two" / "ca.pem").read_text() == (tmp_path / "one" / "ca.pem").read_text()
        assert len(await plane.work(plane.devices.show_all, 1)) == 1


async def test_another_storage_key_is_refused(postgres: PostgresServer, connect: Connect, tmp_path: Path) -> None:
    from certctrl.plane.storage.moving import move

    url = postgres.database()
    for name in ("one", "two"):
        await sqlite_plane(tmp_path / name)
    move(DataDir(tmp_path / "one"), partial(connect, url))
    with pytest.raises(ConfigError, match=r"two/storage\.key: does not decrypt") as caught:
        Plane.open(tmp_path / "two", connect=partial(connect, url))
    assert "belongs to the database" in str(caught.value.fix)


def test_an_unusable_url_is_refused_without_its_password(need_module: Callable[[str], None]) -> None:
    need_module("psycopg")
    from certctrl.plane.storage.postgres import PostgresDatabase

    with pytest.raises(ConfigError, match="invalid percent-encoded token") as caught:
        PostgresDatabase("postgresql://plane:hunter%zz2@db.example.com/plane")
    assert "hunter" not in f"{caught.value}{caught.value.fix}"


async def test_sightings_lock_devices_in_the_order_of_their_ids(postgres: PostgresServer, connect: Connect) -> None:
    database: Any = connect(postgres.database())
    plane = plane_on(database)
    first, second = [await new_device(plane, f"device-{number}") for number in range(2)]
    for device_id in (first, second):
        plane.devices.seen(device_id, "192.0.2.1", "")

    def save() -> None:
        # A large fleet has this plan; in the table, the first device comes after the second.
        for setting in ("enable_nestloop", "enable_mergejoin", "enable_indexscan", "enable_bitmapscan"):
            database.run(f"SET LOCAL {setting} = off")
        plane.devices.save_sightings()

    await plane.work(database.run, "UPDATE devices SET name = 'x' WHERE id = ?", first)
    lock = "SELECT id FROM devices WHERE id = %s FOR UPDATE"
    other = database.connections.open()
    try:
        other.execute(lock, (first,))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.work, save)
            while not await plane.work(database.all, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                await trio.sleep(0.01)
            other.execute("SET lock_timeout = 100")
            other.execute(lock, (second,))  # not locked yet
            other.rollback()
    finally:
        other.close()


async def test_numbers_of_any_size_share_a_prepared_statement(postgres: PostgresServer, connect: Connect) -> None:
    database = connect(postgres.database())

    def unit() -> list[Any]:
        for least in (1, 40_000, 2**40) * 3:
            ids = [least, 7, least + 1]
            database.all(f"SELECT id FROM devices WHERE id IN ({marks(ids)})", *ids)
        sql = "SELECT parameter_types::text AS types FROM pg_prepared_statements WHERE statement LIKE '%FROM devices WHERE%'"
        return [row["types"] for row in database.all(sql)]

    assert await database.work(unit) == ["{bigint,bigint,bigint}"]


async def test_a_read_whose_connection_is_lost_between_its_statements_is_repeated(
    postgres: PostgresServer, connect: Connect
) -> None:
    database: Any = connect(postgres.database())
    pids: list[int] = []

    def unit() -> int:
        pids.append(database.one("SELECT pg_backend_pid() AS pid")["pid"])
        if len(pids) == 1:
            postgres.sql(f"SELECT pg_terminate_backend({pids[0]}, 5000)")
        return int(database.one("SELECT count(*) AS n FROM devices")["n"])

    assert await database.work_read(unit) == 0
    assert len(set(pids)) == 2
    await database.work(database.run, "UPDATE devices SET name = 'x'")  # the connection changes again
    assert await database.work_read(unit) == 0
