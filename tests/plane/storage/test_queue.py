"""How long units of work wait for a connection."""

from __future__ import annotations

import threading
from collections.abc import Callable

import trio
import trio.testing
from postgres_server import PostgresServer

from certctrl.plane.storage.queue import Queue


async def test_the_first_one_that_waits_counts(autojump_clock: trio.testing.MockClock) -> None:
    queue = Queue()
    assert queue.longest_wait() == 0
    with queue.place() as first:
        await trio.sleep(2)
        with queue.place():
            await trio.sleep(1)
            assert queue.longest_wait() == 3
            queue.leave(first)
            assert queue.longest_wait() == 1
            queue.leave(first)
    assert queue.longest_wait() == 0


async def test_a_unit_without_a_connection_waits(postgres: PostgresServer, need_module: Callable[[str], None]) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase

    database = PostgresDatabase(postgres.database(), connections=1)
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.work, hold)
        await trio.to_thread.run_sync(begun.wait, 60)
        assert database.backlog() == 0, "it has its connection"
        nursery.start_soon(database.work, database.one, "SELECT 1")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(60):
            while not database.backlog() > 0:
                await trio.sleep(0.01)
        go.set()
    assert database.backlog() == 0
    database.close()
