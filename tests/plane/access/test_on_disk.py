"""What commands on the data directory do to operators, and that it is in the audit log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer

from certctrl.cli.main import run_command
from certctrl.errors import ConfigError
from certctrl.plane.access import on_disk
from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.log import Filter
from certctrl.plane.core import Plane
from certctrl.plane.storage.database import Database


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Plane.open(tmp_path / "plane").close()
    return tmp_path / "plane"


def run(*argv: object) -> None:
    assert run_command(["plane", *map(str, argv)]) == 0


def actions(plane: Plane) -> list[str]:
    return [entry["action"] for entry in plane.audit.page(Filter(), 0, 99)]


def key_of(data: Path) -> str:
    return (data / "operator.key").read_text().strip()


def accepts(plane: Plane, key: str) -> bool:
    try:
        return plane.access.identify(key, "") == (Caller(who="operator key", role=Role.ADMIN), None)
    except Exception:
        return False


def test_a_restore_is_recorded_and_keeps_the_key_of_the_directory(data: Path, tmp_path: Path) -> None:
    first = key_of(data)
    on_disk.rotate_key(data, "root on db1", None)
    second = key_of(data)
    run("backup", tmp_path / "backup", "--data", data)
    on_disk.rotate_key(data, "root on db1", None)
    run("restore", tmp_path / "backup", "--data", data)
    with Plane.open(data) as plane:
        assert [accepts(plane, key) for key in (first, second, key_of(data))] == [False, False, True]
        assert actions(plane) == ["plane.restore", "operator-key.rotate"]
        (entry, _) = plane.audit.page(Filter(), 0, 9)
        assert entry["detail"] == {"file": str(tmp_path / "backup")} and " on " in entry["who"]


def test_an_interrupted_rotation_is_repeated(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key_of(data)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr(on_disk, "write_file", lambda path, text, mode: path.write_bytes(text))
    with pytest.raises(KeyboardInterrupt):
        on_disk.rotate_key(data, "root", None)
    monkeypatch.undo()
    assert key_of(data) == first
    with Plane.open(data) as plane:
        assert not accepts(plane, first), "the new key counts"
    on_disk.rotate_key(data, "root", None)
    with Plane.open(data) as plane:
        assert accepts(plane, key_of(data))
    assert not (data / "operator.key.new").exists()


def test_a_key_from_outside_is_not_replaced(data: Path) -> None:
    (data / "operator.key").unlink()
    with pytest.raises(ConfigError, match="given from outside"):
        on_disk.rotate_key(data, "root", None)
    with Plane.open(data) as plane:
        assert actions(plane) == []


def test_an_outdated_key_is_logged(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = (data / "operator.key").read_bytes()
    on_disk.rotate_key(data, "root", None)
    Plane.open(data).close()
    assert "not the current" not in caplog.text
    (data / "operator.key").write_bytes(old)
    Plane.open(data).close()
    assert "operator.key is not the current operator key" in caplog.text


def test_on_a_server(data: Path, postgres: PostgresServer) -> None:
    from certctrl.plane.storage.moving import move
    from certctrl.plane.storage.postgres import PostgresDatabase

    url = postgres.database()
    connect: Callable[[], Database] = lambda: PostgresDatabase(url)  # noqa: E731
    move(on_disk.DataDir(data), connect, lambda target: on_disk.note(target, "root", "plane.migrate"))  # type: ignore[arg-type]
    with closing(connect()) as database, database.transaction():
        database.run("INSERT INTO settings VALUES ('operator_key', 'off')")
    with pytest.raises(ConfigError, match="was moved to"):
        on_disk.turn_key_on(data, "root", None)
    on_disk.turn_key_on(data, "root", connect)
    on_disk.rotate_key(data, "root", connect)
    with Plane.open(data, connect=connect) as plane, plane.database.transaction():
        assert accepts(plane, key_of(data))
        assert actions(plane) == ["operator-key.rotate", "operator-key.on", "plane.migrate"]
