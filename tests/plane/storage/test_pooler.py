"""PostgreSQL behind a real PgBouncer, which gives each transaction any connection of the server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
from engine_plane import plane_on, registered
from postgres_server import PostgresServer, unprivileged

from certctrl.plane.storage.keyring import Keyring

SETTINGS = """
[databases]
* = host={server} user=plane
[pgbouncer]
pool_mode = transaction
default_pool_size = 3
listen_addr =
unix_socket_dir = {root}
auth_type = any
logfile = {root}/pgbouncer.log
"""


@pytest.fixture
def pooler(postgres: PostgresServer, need: Callable[[str], str]) -> Iterator[Path]:
    """The directory of a running pooler's socket."""
    with unprivileged(need) as (root, become):
        (root / "pgbouncer.ini").write_text(SETTINGS.format(server=postgres.root, root=root))
        process = subprocess.Popen([*become, need("pgbouncer"), "-q", root / "pgbouncer.ini"], cwd="/")
        try:
            while not (root / ".s.PGSQL.6432").exists():
                assert process.poll() is None
                time.sleep(0.01)
            yield root
        finally:
            process.terminate()
            process.wait()


async def test_planes_work_and_wake_each_other_through_a_pooler(
    postgres: PostgresServer, pooler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certctrl.plane.storage.postgres import PostgresDatabase
    from certctrl.plane.storage.postgres_wakes import Wakes

    monkeypatch.setattr("certctrl.plane.storage.postgres_wakes.SWEEP_SECONDS", 3600.0)  # notifications alone
    direct, keyring = postgres.database(), Keyring.open(None)
    url = f"postgresql://plane@/plane{postgres._made}?host={quote(str(pooler), safe='')}&port=6432"
    databases = [PostgresDatabase(url, listen_url=direct) for _ in range(2)]
    here, there = (plane_on(database, keyring) for database in databases)
    device_id, _ = await registered(here)
    async with trio.open_nursery() as nursery:
        for plane, database in zip((here, there), databases, strict=True):
            wakes = Wakes(database, database.connections.open_to_listen, plane.stream)
            nursery.start_soon(wakes.run)
            with trio.fail_after(60):
                await wakes.listening.wait()
        with there.stream.waiter(device_id) as waiter, trio.fail_after(60):
            cursor = (await there.work(there.stream.read, device_id, None, 100)).cursor
            await here.resync(1, device_id)
            assert await waiter.wait(cursor)
            assert len((await there.work(there.stream.read, device_id, cursor, 100)).signals) == 1
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:  # often enough for the driver to prepare the statements
        for _ in range(40):
            nursery.start_soon(here.work, here.devices.show_all, 1)
    for database in databases:
        database.close()
