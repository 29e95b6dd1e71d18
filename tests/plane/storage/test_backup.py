"""Backup and restore with either engine: what is kept, what becomes void, and what is refused."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from engine_plane import WALL, plane_on, registered

from certctrl.errors import BusyError, ConfigError, DiskError, UsageError
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage import backup
from certctrl.plane.storage.backup import BEFORE_RESTORE, ID_GAP, VERSION_GAP, Contents, back_up, restore
from certctrl.plane.storage.data_dir import DataDir, locked, make_data_dir
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

LATER = WALL + 3600


@attrs.define(eq=False)
class Store:
    """A data directory and its database."""

    data: DataDir
    connect: Callable[[], Any] | None
    opened: list[Database] = attrs.field(factory=list)

    def plane(self) -> Plane:
        keyring = Keyring.open(self.data)
        self.opened.append(SqliteDatabase(self.data.database) if self.connect is None else self.connect())
        return plane_on(self.opened[-1], keyring)

    def stop(self) -> None:
        while self.opened:
            self.opened.pop().close()

    def back_up(self, file: Path) -> Contents:
        return back_up(self.data, file, now=WALL + 60, connect=self.connect)

    def restore(self, file: Path) -> Contents:
        return restore(self.data, file, now=LATER, connect=self.connect)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    connect = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").database()
        from certctrl.plane.storage.postgres import PostgresDatabase

        connect = lambda: PostgresDatabase(url)  # noqa: E731
    made = Store(make_data_dir(tmp_path / "data"), connect)
    yield made
    made.stop()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    made = Store(make_data_dir(tmp_path / "data"), None)
    yield made
    made.stop()


async def issue(plane: Plane, device_id: int, domain: str) -> int:
    document = await plane.certificates.issue(1, [domain], device_ids=[device_id])
    return int(document["id"])


async def head(plane: Plane, device_id: int) -> str:
    return (await plane.work(plane.stream.read, device_id, None, 100)).cursor


async def test_a_restore_brings_back_what_was_and_voids_all_cursors(store: Store, tmp_path: Path) -> None:
    plane, file = store.plane(), tmp_path / "backup"
    device_id, token = await registered(plane)
    kept = await issue(plane, device_id, "kept.example.com")
    before = await head(plane, device_id)
    assert store.back_up(file) == Contents(1, 1, WALL + 60), "while the plane serves"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lost = await issue(plane, device_id, "lost.example.com")
    after = await head(plane, device_id)
    store.stop()

    assert store.restore(file) == Contents(1, 1, WALL + 60)
    plane = store.plane()
    certificates = await plane.work(plane.certificates.page_of_user, 1, 0, 500)
    assert [row["domain_name"] for row in certificates] == ["kept.example.com"]
    session = await plane.work(plane.sessions.authenticate, token)
    for cursor in (before, after, "0-0", f"{int(LATER * 1000)}-1"):
        with pytest.raises(ErrorResponse) as refused:
            await plane.work(plane.stream.read, session.device_id, cursor, 100)
        assert refused.value.status == 409, cursor
    fresh = await plane.work(plane.stream.read, device_id, None, 100)
    assert fresh.signals == ()
    again = await issue(plane, device_id, "new.example.com")
    assert again > lost > kept, "agents may know the lost id"
    assert again >= kept + ID_GAP
    page = await plane.work(plane.stream.read, device_id, fresh.cursor, 100)
    assert [signal["ref"]["cert_id"] for signal in page.signals] == [again]


async def test_ids_and_versions_that_agents_may_know_are_not_given_out_again(store: Store, tmp_path: Path) -> None:
    plane, file = store.plane(), tmp_path / "backup"
    device_id, _token = await registered(plane)
    version = (await plane.work(plane.installs.document, device_id))["version"]
    store.back_up(file)
    store.stop()
    for round_ in (1, 2):
        store.restore(file)
        plane = store.plane()
        assert (await plane.work(plane.installs.document, device_id))["version"] == version + VERSION_GAP
        other, _token = await registered(plane, f"device-{round_ + 1}")
        assert other >= device_id + ID_GAP
        config = await plane.work(plane.installs.document, other)
        assert config["id"] >= device_id + ID_GAP
        store.stop()


async def test_a_backup_of_one_engine_is_restored_to_the_other(store: Store, tmp_path: Path) -> None:
    plane, file = store.plane(), tmp_path / "backup"
    device_id, token = await registered(plane)
    await issue(plane, device_id, "www.example.com")
    store.back_up(file)
    store.stop()
    other = Store(make_data_dir(tmp_path / "other"), None)
    shutil.copy(store.data.storage_key, other.data.storage_key)
    shutil.copy(store.data.operator_key, other.data.operator_key)
    other.restore(file)
    plane = other.plane()
    session = await plane.work(plane.sessions.authenticate, token)
    assert session.device_id == device_id
    assert len(await plane.work(plane.certificates.page_of_user, 1, 0, 500)) == 1
    other.stop()


async def test_the_clock_may_be_behind_the_signals(sqlite_store: Store, tmp_path: Path) -> None:
    plane, file = sqlite_store.plane(), tmp_path / "backup"
    device_id, token = await registered(plane)
    await issue(plane, device_id, "www.example.com")
    known = await head(plane, device_id)
    sqlite_store.back_up(file)
    sqlite_store.stop()
    restore(sqlite_store.data, file, now=WALL - 9999)
    plane = sqlite_store.plane()
    session = await plane.work(plane.sessions.authenticate, token)
    with pytest.raises(ErrorResponse):
        await plane.work(plane.stream.read, session.device_id, known, 100)


async def test_the_replaced_database_is_kept(sqlite_store: Store, tmp_path: Path) -> None:
    plane, file = sqlite_store.plane(), tmp_path / "backup"
    await registered(plane)
    sqlite_store.back_up(file)
    await registered(plane, "device-2")
    sqlite_store.stop()
    sqlite_store.restore(file)
    kept = sqlite_store.data.root / BEFORE_RESTORE
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert restore(sqlite_store.data, kept, now=LATER).devices == 2, "it can be restored itself"
    assert not list(sqlite_store.data.root.glob("*.tmp*"))


async def test_a_damaged_database_is_replaced_with_its_journal(sqlite_store: Store, tmp_path: Path) -> None:
    plane, file = sqlite_store.plane(), tmp_path / "backup"
    await registered(plane)
    sqlite_store.back_up(file)
    sqlite_store.stop()
    sqlite_store.data.database.write_bytes(b"no database " * 1000)
    journal = Path(f"{sqlite_store.data.database}-wal")
    journal.write_bytes(b"journal of another file")
    sqlite_store.restore(file)
    assert not journal.exists()
    assert len(await sqlite_store.plane().database.work(lambda: [1])) == 1
    assert (sqlite_store.data.root / BEFORE_RESTORE).read_bytes().startswith(b"no database")


async def test_what_cannot_be_restored_changes_nothing(sqlite_store: Store, tmp_path: Path) -> None:
    plane, good = sqlite_store.plane(), tmp_path / "good"
    await registered(plane)
    sqlite_store.back_up(good)
    sqlite_store.stop()
    text, empty, cut, newer, foreign = (tmp_path / name for name in ("text", "empty", "cut", "newer", "foreign"))
    text.write_text("no database at all, but long enough for a header" * 90)
    with closing(sqlite3.connect(empty)) as other:
        other.execute("CREATE TABLE users (id)")
    cut.write_bytes(good.read_bytes()[:-8192])
    for path, change in ((newer, "PRAGMA user_version = 100"), (foreign, "UPDATE secrets SET value_enc = x'00'")):
        shutil.copy(good, path)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(change)
    before = sqlite_store.data.database.read_bytes()
    for path, words in (
        (tmp_path / "missing", "no such file"), (text, "damaged"), (empty, "not the database"), (cut, "damaged"),
        (newer, "newer release"), (foreign, r"storage\.key"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            sqlite_store.restore(path)
        assert sqlite_store.data.database.read_bytes() == before, path
    sqlite_store.data.storage_key.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        sqlite_store.restore(good)
    assert sqlite_store.data.database.read_bytes() == before
    assert not list(sqlite_store.data.root.glob(".*.tmp*"))


async def test_a_plane_that_serves_is_not_restored(store: Store, tmp_path: Path) -> None:
    plane, file = store.plane(), tmp_path / "backup"
    await registered(plane)
    store.back_up(file)
    with pytest.raises(BusyError):
        if store.connect is None:
            with locked(store.data):
                store.restore(file)
        else:
            store.restore(file)
    assert len(await plane.work(plane.devices.users)) == 1


async def test_a_backup_that_cannot_be_written_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registered(store.plane())
    file = tmp_path / "backup"
    file.touch()
    with pytest.raises(UsageError, match="exists"):
        store.back_up(file)
    with pytest.raises(DiskError):
        store.back_up(tmp_path / "missing" / "backup")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup.os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        store.back_up(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["backup", "data"]


def test_a_directory_without_database(sqlite_store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such database"):
        sqlite_store.back_up(tmp_path / "backup")
    assert os.listdir(tmp_path) == ["data"]


async def test_a_crash_of_a_restore_leaves_one_of_the_two_databases(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, file = sqlite_store.plane(), tmp_path / "backup"
    await registered(plane)
    sqlite_store.back_up(file)
    await registered(plane, "device-2")
    sqlite_store.stop()

    class Crash(BaseException):
        pass

    calls = [(os, "link"), (os, "rename"), (backup, "sync_directory")]
    for module, name in calls:
        with monkeypatch.context() as patch:

            def crash(*_: object) -> None:
                raise Crash

            patch.setattr(module, name, crash)
            with pytest.raises(Crash):
                sqlite_store.restore(file)
        plane = sqlite_store.plane()
        devices = plane.database.one("SELECT count(*) AS n FROM devices")
        assert devices is not None and devices["n"] == (1 if name == "sync_directory" else 2)
        sqlite_store.stop()


async def test_orders_and_revocation_lists_get_numbers_that_nobody_knows(store: Store, tmp_path: Path) -> None:
    plane, file = store.plane(), tmp_path / "backup"
    row = await plane.certificates.issue(1, ["www.example.com"], reuse_key=True)
    await plane.certificates.issue(1, ["a.example.com"])
    (key_id,) = await plane.work(plane.ca.intermediates.key_ids)
    before = await plane.crls.get(key_id)
    assert before is not None
    store.back_up(file)
    store.stop()
    store.restore(file)
    plane = store.plane()
    other = await plane.certificates.issue(1, ["b.example.com"], reuse_key=True)
    assert other["order_id"] >= row["order_id"] + ID_GAP, "agents keep the keys of orders that the backup lacks"
    after = await plane.crls.get(key_id)
    assert after is not None
    assert after.number > before.number
