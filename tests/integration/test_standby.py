"""The primary PostgreSQL server dies, its synchronous standby takes over: planes follow, nothing acknowledged is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from urllib.parse import quote

import attrs
import pytest
import trio
from appends import appender
from fleet import Fleet, wait_for
from postgres_server import PostgresServer, copy, standby_of
from several_planes import Planes

pytestmark = pytest.mark.integration


@attrs.define
class Pair:
    """A primary and its synchronous standby."""

    need: Callable[[str], str]
    primary: PostgresServer
    standby: PostgresServer
    failovers: int = 0

    def wait_for_standby(self) -> None:
        """Let commits wait for the standby from now on."""
        self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        self.primary.sql("SELECT pg_reload_conf()")
        wait_for(
            lambda: self.primary.sql("SELECT sync_state FROM pg_stat_replication") == "sync", "the standby to catch up"
        )

    def fail_over(self) -> None:
        """Kill the primary and promote the standby."""
        self.primary.kill()
        self.standby.sql("SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary
        self.failovers += 1

    def rebuild(self) -> None:
        """Make the former primary the standby of the new one."""
        copy(self.need, self.primary, self.standby.root)
        self.standby.start()
        self.wait_for_standby()


@pytest.mark.parametrize(
    ("appends", "devices", "failovers"),
    [
        pytest.param(60, 24, 1, id="60 appends"),
        pytest.param(1000, 150, 12, id="1000 appends", marks=[pytest.mark.campaign, pytest.mark.timeout(3600)]),
    ],
)
async def test_a_failover_loses_nothing_acknowledged(
    fleet: Fleet, need: Callable[[str], str], own_postgres: PostgresServer, appends: int, devices: int, failovers: int
) -> None:
    seed, name = random.Random(appends), own_postgres.database().partition("?")[0].rpartition("/")[2]
    with standby_of(need, own_postgres) as standby:
        pair = Pair(need, own_postgres, standby)
        pair.wait_for_standby()
        hosts = quote(f"{own_postgres.root},{standby.root}", safe="")
        url = f"postgresql://plane@/{name}?host={hosts}&target_session_attrs=read-write"
        planes = Planes(fleet, need("haproxy"), url, 3)

        async def disturb() -> None:
            for number in range(1, failovers + 1):
                while len(made.acknowledged) < number * appends / (failovers + 1):
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(pair.fail_over)
                if number < failovers:
                    await trio.to_thread.run_sync(pair.rebuild)

        async with appender(planes, devices, seed) as made:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disturb)
                await made.append(lambda: len(made.acknowledged) >= appends and pair.failovers == failovers)
            print(await made.settle(pair.primary, name))
        print(f"failovers: {pair.failovers}")
        assert not planes.faults, planes.logs
