"""PostgreSQL only: a commit that the synchronous standby has not confirmed is not acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import trio
from engine_plane import plane_on
from postgres_server import PostgresServer, postgres_server

from certctrl.plane.errors import DatabaseAwayError


@pytest.fixture
def server(need: Callable[[str], str], need_module: Callable[[str], None]) -> Iterator[PostgresServer]:
    """A server of this test's own, whose settings may change."""
    need_module("psycopg")
    with postgres_server(need) as server:
        yield server


async def test_a_commit_that_no_standby_has_is_not_acknowledged(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL keeps it, and only warns."""
    from certctrl.plane.storage.postgres import PostgresDatabase

    monkeypatch.setattr("certctrl.plane.storage.postgres.COMMIT_SECONDS", 0.0)
    database = PostgresDatabase(server.database())
    plane, called = plane_on(database), []

    def change(name: str) -> None:
        plane.devices.add_user(name)
        database.after_commit(lambda: called.append("committed"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.exchange_wakes)
        server.sql("ALTER SYSTEM SET synchronous_standby_names = 'away'")
        server.sql("SELECT pg_reload_conf()")
        with pytest.raises(DatabaseAwayError, match="no synchronous standby"):
            await plane.work(change, "second")
        assert called == []
        assert len(await plane.work(plane.devices.users)) == 2, "reads go on"
        server.sql("ALTER SYSTEM RESET synchronous_standby_names")
        server.sql("SELECT pg_reload_conf()")
        monkeypatch.undo()
        await plane.work(change, "third")
        assert called == ["committed"]
        nursery.cancel_scope.cancel()
    database.close()
