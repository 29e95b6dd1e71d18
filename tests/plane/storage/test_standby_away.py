"""PostgreSQL only: a commit that the synchronous standby has not confirmed is not acknowledged."""

from __future__ import annotations

import contextlib

import pytest
import trio
from engine_plane import plane_on
from postgres_server import PostgresServer

from certctrl.plane.errors import DatabaseAwayError


async def test_a_commit_that_no_standby_has_is_not_acknowledged(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL keeps it, and only warns."""
    from certctrl.plane.storage.postgres import PostgresDatabase

    monkeypatch.setattr("certctrl.plane.storage.postgres.COMMIT_SECONDS", 0.0)
    database = PostgresDatabase(own_postgres.database())
    plane, called = plane_on(database), []

    def change(name: str) -> None:
        plane.devices.add_user(name)
        database.after_commit(lambda: called.append("committed"))

    with contextlib.closing(database):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.exchange_wakes)
            own_postgres.sql("ALTER SYSTEM SET synchronous_standby_names = 'away'")
            own_postgres.sql("SELECT pg_reload_conf()")
            with pytest.raises(DatabaseAwayError, match="no synchronous standby"):
                for number in range(10_000):  # the server's processes read the setting one after the other
                    called.clear()
                    await plane.work(change, f"user {number}")
            assert called == []
            assert len(await plane.work(plane.devices.users)) == number + 2, "reads go on"
            own_postgres.sql("ALTER SYSTEM RESET synchronous_standby_names")
            own_postgres.sql("SELECT pg_reload_conf()")
            monkeypatch.undo()
            await plane.work(change, "last")
            assert called == ["committed"]
            nursery.cancel_scope.cancel()
