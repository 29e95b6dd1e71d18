"""PostgreSQL only: a plane that cannot listen for notifications says so, until it listens again."""

from __future__ import annotations

import contextlib

import trio
from engine_plane import plane_on
from postgres_server import PostgresServer

from certctrl.plane.core import Plane
from certctrl.plane.health.problems import ProblemName

END_LISTENER = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'listener'"


async def until(plane: Plane, present: bool) -> None:
    with trio.fail_after(60):
        while (ProblemName.WAKES_DELAYED in plane.problems) is not present:
            await plane.storage_check.once()
            await trio.sleep(0.01)


async def test_a_lost_connection_for_notifications_is_a_problem_until_it_is_back(own_postgres: PostgresServer) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase

    url = own_postgres.database()
    own_postgres.sql("CREATE ROLE listener LOGIN")
    database = PostgresDatabase(url, listen_url=url.replace("//plane@", "//listener@"))
    plane = plane_on(database)
    with contextlib.closing(database):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.exchange_wakes)
            with trio.fail_after(60):
                while own_postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'") != "1":
                    await trio.sleep(0.01)
            await until(plane, False)
            own_postgres.sql("ALTER ROLE listener NOLOGIN")
            assert own_postgres.sql(END_LISTENER) == "t"
            await until(plane, True)
            (problem,) = plane.problems.now()
            assert not problem.name.prevents_ready and problem.what.startswith("no connection for notifications: ")
            own_postgres.sql("ALTER ROLE listener LOGIN")
            await until(plane, False)
            nursery.cancel_scope.cancel()
