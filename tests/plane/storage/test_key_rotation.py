"""Rotation of the storage key: every secret moves, kill -9 anywhere loses nothing, planes and backups need the right key."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer

import certctrl.plane
from certctrl.cli.main import run_command
from certctrl.errors import BusyError, ConfigError
from certctrl.plane.core import Plane
from certctrl.plane.storage import key_rotation
from certctrl.plane.storage.backup import back_up, restore
from certctrl.plane.storage.data_dir import DataDir, GivenKey, GivenKeys
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.key_rotation import NEW, OLD, ROTATING, SEALED, rotate
from certctrl.plane.storage.keyring import new_storage_text, storage_keyring
from certctrl.plane.storage.moving import move
from certctrl.plane.storage.sqlite import SqliteDatabase

SECRETS = {
    "secrets": "INSERT INTO secrets (value_enc, name) VALUES (?, 'more')",
    "issuers": "INSERT INTO issuers (secrets_enc, name, kind, created_at, updated_at) VALUES (?, 'le', 'acme', 0, 0)",
    "issuer_items": "INSERT INTO issuer_items (value_enc, issuer, name) VALUES (?, 'le', 'account')",
    "held_certificates": "INSERT INTO held_certificates VALUES (1, 's', '', 0, 0, '', '', ?, '', '', 0)",
    "alert_channels": "INSERT INTO alert_channels VALUES (1, 'ops', 'webhook', '{}', ?, 0, 0)",
}
ROWS = {"secrets": {"name": "more"}, "issuers": {"name": "le"}, "issuer_items": {"issuer": "le", "name": "account"}}
ROWS |= {"held_certificates": {"cert_id": "1"}, "alert_channels": {"name": "ops"}}


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """A data directory with each kind of secret, twice in most columns."""
    root = tmp_path / "plane"
    with Plane.open(root) as plane, plane.database.transaction():
        plane.database.run(
            "INSERT INTO certificates (id, user_id, domain_name, sans, key_type, validity_seconds, status, serial_number,"
            " fingerprint_sha256, not_before, not_after, certificate_pem, chain_pem, created_at, updated_at, private_key_enc)"
            " VALUES (1, 1, 'a.test', '[]', 'ec', 1, 'active', '', '', 0, 0, '', '', 0, 0, ?)",
            plane.keyring.seal("certificate 1", b"plain"),
        )
        for number in (1, 2):
            sealed = [
                plane.keyring.seal(f"order {number} {what}", b"plain")
                for what in ("key", "memo", "issued", "issued key")
            ]
            plane.database.run(
                "INSERT INTO orders (id, cert_id, issuer, action, state, key_enc, memo_enc, issued_enc, issued_key_enc,"
                " created_at, updated_at) VALUES (?, 1, 'le', 'renew', 'done', ?, ?, ?, ?, 0, 0)",
                *(number, *sealed),
            )  # fmt: skip
        for table, sql in SECRETS.items():
            (purpose,) = [one.purpose.format(**ROWS[table]) for one in SEALED if one.table == table]
            plane.database.run(sql, plane.keyring.seal(purpose, b"plain"))
    return DataDir(root)


def nothing(_: Database) -> None:
    """What no audit log is needed for."""


def read_all(database: Database, text: bytes) -> int:
    """Decrypt every secret with a key; return their number."""
    keyring, count = storage_keyring(text, Path("key")), 0
    for sealed in SEALED:
        for row in database.all(f"SELECT * FROM {sealed.table} WHERE length({sealed.column}) > 0"):
            keyring.unseal(sealed.purpose.format(**{name: row[name] for name in sealed.key}), bytes(row[sealed.column]))
            count += 1
    return count


def test_every_sealed_column_and_purpose_is_known() -> None:
    with closing(SqliteDatabase(None)) as database:
        tables = [row["name"] for row in database.all("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {
            (table, row["name"])
            for table in tables
            for row in database.all("SELECT name FROM pragma_table_info(?)", table)
            if row["name"].endswith("_enc")
        }
    assert columns == {(one.table, one.column) for one in SEALED}
    code = "".join(file.read_text() for file in Path(certctrl.plane.__file__).parent.rglob("*.py"))
    used = set(re.findall(r'(?:\bseal\(|_purpose\(.*\n +return )f"([^"]*)"', code))
    assert {re.sub(r"\{.*?\}", "{}", one) for one in used} == {
        re.sub(r"\{.*?\}", "{}", one.purpose) for one in SEALED if one.table != "secrets"
    }


def test_every_secret_moves_to_the_new_key(data: DataDir, capsys: pytest.CaptureFixture[str]) -> None:
    old = data.storage_key.read_bytes()
    assert run_command(["plane", "rotate", "storage-key", "--data", str(data.root)]) == 0
    said = capsys.readouterr().out
    new = data.storage_key.read_bytes()
    assert new != old == (data.root / OLD).read_bytes() and not (data.root / NEW).exists()
    assert data.storage_key.stat().st_mode & 0o777 == 0o600
    with Plane.open(data.root) as plane:
        count = read_all(plane.database, new)
        assert count > 12 and f"sealed {count} secrets under the new key: {data.storage_key}" in said
        with pytest.raises(ConfigError, match="does not decrypt"):
            read_all(plane.database, old)
        entry = plane.database.one("SELECT * FROM audit ORDER BY id DESC LIMIT 1")
        assert entry is not None and entry["action"] == "storage-key.rotate"
    assert rotate(data, None, nothing).secrets == count, "and once more"
    with Plane.open(data.root) as plane:
        assert read_all(plane.database, data.storage_key.read_bytes()) == count


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process; return how it ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(step: int, data: DataDir) -> Callable[[], object]:
    """A rotation that kills its process before a step: a statement, a commit or an operation on files."""
    left = [step]

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def work() -> None:
        key_rotation.SECRETS_PER_UNIT = 1
        SqliteDatabase.run = before(SqliteDatabase.run)  # type: ignore[method-assign]
        key_rotation._stopped = before(key_rotation._stopped)
        key_rotation.secret_file = before(key_rotation.secret_file)
        key_rotation.sync_directory = before(key_rotation.sync_directory)
        os.link = before(os.link)
        Path.rename = before(Path.rename)  # type: ignore[method-assign]
        Path.unlink = before(Path.unlink)  # type: ignore[method-assign]
        rotate(data, None, nothing)

    return work


def test_alerts_keep_their_name_of_the_installation(data: DataDir, tmp_path: Path) -> None:
    """By it, receivers know that a message is about an incident that is open there."""
    names, first = list[str](), GivenKey(data.storage_key.read_text(), data.storage_key)
    back_up(data, tmp_path / "backup", now=0.0)
    for _ in range(3):
        with Plane.open(data.root) as plane:
            names.append(plane.alerts.senders.installation)
        rotate(data, None, nothing)
    restore(data, tmp_path / "backup", now=1.0, old_key=first)
    with Plane.open(data.root) as plane:
        names.append(plane.alerts.senders.installation)
    assert len(set(names)) == 1


def test_kill_9_at_any_step_loses_no_secret(data: DataDir, tmp_path: Path) -> None:
    step, refused = 0, 0
    with closing(SqliteDatabase(data.database)) as database:
        count = read_all(database, data.storage_key.read_bytes())
    while True:
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(data.root, copy)
        killed = DataDir(copy)
        end = in_child(killed_at(step, killed))
        if end == 0:
            break
        assert os.WTERMSIG(end) == signal.SIGKILL
        with closing(SqliteDatabase(killed.database)) as database:
            is_between = bool(database.setting(ROTATING))
            if not is_between and not (copy / NEW).exists():
                assert read_all(database, killed.storage_key.read_bytes()) == count
        if is_between:
            refused += 1
            with pytest.raises(ConfigError, match="a rotation of its storage key was interrupted"):
                back_up(killed, tmp_path / f"backup-{step}", now=0.0)
            if step % 4 == 0:
                with pytest.raises(ConfigError, match="a rotation of its storage key was interrupted"):
                    Plane.open(copy).close()
        rotate(killed, None, nothing)
        with closing(SqliteDatabase(killed.database)) as database:
            assert read_all(database, killed.storage_key.read_bytes()) == count
        shutil.rmtree(copy)
        step += 5  # a unit of one secret has three
    assert step > 40 and refused > 5, "it was killed between secrets, too"
    Plane.open(copy).close()


def test_a_served_directory_and_a_foreign_key_are_refused(data: DataDir) -> None:
    with Plane.open(data.root), pytest.raises(BusyError):
        rotate(data, None, nothing)
    own = data.storage_key.read_bytes()
    data.storage_key.write_bytes(new_storage_text())
    with pytest.raises(ConfigError, match="does not decrypt the stored jwt"):
        rotate(data, None, nothing)
    assert not (data.root / NEW).exists(), "nothing has begun"
    data.storage_key.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        rotate(data, None, nothing)
    data.storage_key.write_bytes(own)
    with pytest.raises(ConfigError, match="no such database"):
        rotate(DataDir(data.root / "nowhere"), None, nothing)
    Plane.open(data.root).close()


def test_a_damaged_secret_changes_nothing_in_its_unit(data: DataDir) -> None:
    with closing(SqliteDatabase(data.database)) as database:
        database.run("UPDATE issuer_items SET value_enc = ?", b"x" * 40)
    with pytest.raises(ConfigError, match="does not decrypt the stored issuer le account"):
        rotate(data, None, nothing)
    with closing(SqliteDatabase(data.database)) as database:
        database.run("DELETE FROM issuer_items")
    rotate(data, None, nothing)
    Plane.open(data.root).close()


def test_what_a_stopping_plane_still_stored_is_found(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with Plane.open(data.root) as plane:
        late = plane.keyring.seal("late", b"plain")
    units: list[Database] = []

    def stopped(database: Database) -> None:
        units.append(database)
        if len(units) == 2:
            database.run("INSERT INTO secrets (value_enc, name) VALUES (?, 'late')", late)

    monkeypatch.setattr(key_rotation, "_stopped", stopped)
    rotate(data, None, nothing)
    with Plane.open(data.root) as plane:
        assert read_all(plane.database, data.storage_key.read_bytes()) > 13


def test_a_key_from_outside(data: DataDir, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    data.storage_key.rename(first)
    given = GivenKeys(storage=GivenKey(first.read_text(), first))
    second.write_bytes(new_storage_text())
    second.chmod(0o600)
    with pytest.raises(ConfigError, match="is given from outside"):
        rotate(DataDir(data.root, given), None, nothing)
    with pytest.raises(ConfigError, match="is the current storage key"):
        rotate(DataDir(data.root, given), None, nothing, GivenKey(first.read_text(), first))
    argv = ["plane", "rotate", "storage-key", "--data", str(data.root), "--storage-key-file", str(first)]
    assert run_command([*argv, "--new-storage-key-file", str(second)]) == 0
    assert sorted(one.name for one in data.root.glob("storage.key*")) == []
    Plane.open(data.root, keys=GivenKeys(storage=GivenKey(second.read_text(), second))).close()
    with pytest.raises(ConfigError, match="does not decrypt"):
        Plane.open(data.root, keys=given).close()


def test_no_plane_starts_with_the_new_key_of_an_interrupted_rotation(
    data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    data.storage_key.rename(first)
    second.write_bytes(new_storage_text())
    both = [GivenKeys(storage=GivenKey(file.read_text(), file)) for file in (first, second)]
    stopped, units = key_rotation._stopped, list[Database]()

    def interrupted(database: Database) -> None:
        units.append(database)
        if len(units) == 3:
            raise KeyboardInterrupt
        stopped(database)

    monkeypatch.setattr(key_rotation, "_stopped", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rotate(DataDir(data.root, both[0]), None, nothing, both[1].storage)
    for keys in both:
        with pytest.raises(ConfigError, match="a rotation of its storage key was interrupted"):
            Plane.open(data.root, keys=keys).close()
    rotate(DataDir(data.root, both[0]), None, nothing, both[1].storage)
    Plane.open(data.root, keys=both[1]).close()


def test_a_backup_from_before_is_restored_with_the_old_key(data: DataDir, tmp_path: Path) -> None:
    back_up(data, tmp_path / "backup", now=0.0)
    rotate(data, None, nothing)
    with pytest.raises(ConfigError, match="does not decrypt the stored jwt"):
        restore(data, tmp_path / "backup", now=1.0)
    argv = ["plane", "restore", str(tmp_path / "backup"), "--data", str(data.root)]
    assert run_command([*argv, "--old-storage-key-file", str(data.root / OLD)]) == 0
    with Plane.open(data.root) as plane:
        assert read_all(plane.database, data.storage_key.read_bytes()) > 12
    back_up(data, tmp_path / "after", now=2.0)
    restore(data, tmp_path / "after", now=3.0)


def test_several_planes(data: DataDir, postgres: PostgresServer, tmp_path: Path) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase

    url = postgres.database()
    connect = lambda: PostgresDatabase(url)  # noqa: E731
    move(data, connect)
    other = tmp_path / "other"
    shutil.copytree(data.root, other)
    with Plane.open(other, connect=connect), pytest.raises(BusyError, match="connections of control planes use"):
        rotate(data, connect, nothing)
    named = lambda: PostgresDatabase(f"{url}&application_name=second-plane")  # noqa: E731
    with Plane.open(other, connect=named), pytest.raises(BusyError, match="connections of control planes use"):
        rotate(data, connect, nothing)
    rotate(data, connect, nothing)
    with pytest.raises(ConfigError, match="does not decrypt the stored"):
        Plane.open(other, connect=connect).close()
    shutil.copy(data.storage_key, other / "storage.key")
    for root in (data.root, other):
        with Plane.open(root, connect=connect) as plane, plane.database.transaction():
            assert read_all(plane.database, data.storage_key.read_bytes()) > 12
