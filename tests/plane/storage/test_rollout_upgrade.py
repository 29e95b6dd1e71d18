"""Rollouts of profiles survive the script that lets rollouts be without a profile, on both engines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_plane import WALL, plane_on

from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.schema import SCHEMA
from certctrl.plane.storage.sqlite import SqliteDatabase

BEFORE = next(number for number, script in enumerate(SCHEMA) if "rollouts_of_all" in script)


@pytest.fixture(params=["sqlite", "postgresql"])
def open_new(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Open one and the same database, which no other test has used."""
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            make: Callable[[], Database] = lambda: SqliteDatabase(tmp_path / "plane.db")  # noqa: E731
        else:
            from certctrl.plane.storage.postgres import PostgresDatabase

            url = request.getfixturevalue("postgres").database()
            make = lambda: PostgresDatabase(url)  # noqa: E731

        def open_one() -> Database:
            opened = make()
            stack.callback(opened.close)
            return opened

        yield open_one


async def test_rows_and_ids_stay(open_new: Callable[[], Database], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("certctrl.plane.storage.schema.SCHEMA", SCHEMA[:BEFORE])
        database = open_new()
        with database.transaction():
            database.run("INSERT INTO users (id, name, created_at) VALUES (1, 'operator', ?)", WALL)
            database.run(
                "INSERT INTO devices (id, user_id, device_public_id, status, created_at) VALUES (1, 1, 'd', 'active', ?)",
                WALL,
            )
            database.run("INSERT INTO profiles (id, user_id, name, version) VALUES (1, 1, 'web', 1)")
            for state in ("done", "running"):
                database.insert(
                    "INSERT INTO rollouts (user_id, profile_id, version, state, rules, created_at, updated_at)"
                    " VALUES (1, 1, 2, ?, '{}', ?, ?)",
                    *(state, WALL, WALL),
                )
            sql = "INSERT INTO rollout_devices (rollout_id, device_id, wave, state) VALUES (2, 1, 1, 'held')"
            database.run(sql)
        with database.transaction():
            assert database.schema_version() == BEFORE
    upgraded = open_new()
    with upgraded.transaction():
        assert upgraded.schema_version() == len(SCHEMA)
    plane = plane_on(upgraded, Keyring.open(None), wall_now=lambda: WALL)
    shown = await plane.work(plane.rollouts.show_all, 1)
    assert [(one["id"], one["what"], one["state"]) for one in shown] == [
        (2, "profile web, version 2", "running"),
        (1, "profile web, version 2", "done"),
    ]
    assert (await plane.work(plane.rollouts.show, 1, 2))["waves"][0]["states"] == {"held": 1}
    new = await plane.work(plane.rollouts.insert, 1, None, 0, [(1, 1, "")], RolloutRules(), "")
    assert new == 3
    with pytest.raises(Exception, match=r"(?i)unique"):  # one open rollout of a profile
        await plane.work(plane.rollouts.insert, 1, 1, 3, [(1, 1, "")], RolloutRules(), "")
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await plane.work(plane.rollouts.insert, 1, None, 0, [(99, 1, "")], RolloutRules(), "")
