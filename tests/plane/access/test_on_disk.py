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
from certctrl.plane.storage.data_dir import GivenKey, GivenKeys
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


def test_a_key_from_outside_that_was_replaced_there_becomes_the_current_one(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a dead end: the database knew the key that a command had made, and no command could tell it another one."""
    on_disk.rotate_key(data, "root", None)
    outside, new = tmp_path / "key", f"ok_{'n' * 40}"
    (data / "operator.key").rename(outside)
    first = outside.read_text().strip()
    outside.write_text(f"{new}\n")  # it keeps the mode 0600
    given = GivenKey(new, outside)
    with Plane.open(data, keys=GivenKeys(operator=given)) as plane:
        assert [accepts(plane, key) for key in (first, new)] == [True, False]
        assert "--operator-key-file FILE if it is given from outside" in caplog.text
    caplog.clear()
    for _ in range(2):
        run("rotate", "operator-key", "--data", data, "--operator-key-file", outside)
        assert not (data / "operator.key").exists() and not (data / "operator.key.new").exists()
        with Plane.open(data, keys=GivenKeys(operator=given)) as plane:
            assert [accepts(plane, key) for key in (first, new)] == [False, True]
            assert actions(plane)[0] == "operator-key.rotate"
    assert "not the current one" not in caplog.text


def test_a_given_key_does_not_contradict_the_one_in_the_directory(data: Path, tmp_path: Path) -> None:
    """The next start would be refused."""
    for text, said in (("n" * 40, "is not the operator key of"), ("short", "contains no operator key")):
        with pytest.raises(ConfigError, match=said):
            on_disk.rotate_key(data, "root", None, GivenKey(text, tmp_path / "key"))
    with Plane.open(data) as plane:
        assert (accepts(plane, key_of(data)), actions(plane)) == (True, [])


def test_an_outdated_key_is_logged(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = (data / "operator.key").read_bytes()
    on_disk.rotate_key(data, "root", None)
    Plane.open(data).close()
    assert "not the current" not in caplog.text
    (data / "operator.key").write_bytes(old)
    Plane.open(data).close()
    assert "the operator key of this control plane is not the current one" in caplog.text


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
