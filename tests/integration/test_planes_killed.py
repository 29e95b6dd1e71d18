"""Three planes behind HAProxy, while planes, PostgreSQL and its connections are killed at random.

Devices wait in long polls; an operator appends signals. What was acknowledged arrives, each signal once and in the order
of the database, and no poll waits longer than the sweep.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import attrs
import httpx
import pytest
import trio
from appends import Appender, appender, check
from fleet import Fleet
from parked_devices import ParkedDevice, Signal
from postgres_server import PostgresServer
from several_planes import Planes

pytestmark = pytest.mark.integration

PLANES = 3
OURS = "application_name = 'certctrl-plane' AND pid <> pg_backend_pid()"


@attrs.define
class Killer:
    """Kills one thing after the other, and brings it back."""

    planes: Planes
    server: PostgresServer
    random: random.Random
    done: Counter[str] = attrs.field(factory=Counter)
    _down: set[int] = attrs.field(factory=set)

    async def run(self, pause: float) -> None:
        """Kill until cancelled; each kind once before any is repeated."""
        async with trio.open_nursery() as nursery:
            for kind in self._kinds():
                await trio.sleep(self.random.uniform(0, pause))
                match kind:
                    case "plane":
                        self._plane(nursery)
                    case "server":
                        await self._server()
                    case _:
                        await self._connection(kind)
                self.done[kind] += 1

    def _kinds(self) -> Iterator[str]:
        kinds = ["plane", "server", "connection killed", "connection ended", "listener ended"]
        while True:
            yield from self.random.sample(kinds, len(kinds))

    def _plane(self, nursery: trio.Nursery) -> None:
        """Kill a plane, to start it again later; one always serves."""
        if len(self._down) < PLANES - 1:
            number = self.random.choice([number for number in range(PLANES) if number not in self._down])
            self._down.add(number)
            self.planes.children[number].kill()
            nursery.start_soon(self._restart, number)

    async def _restart(self, number: int) -> None:
        await trio.sleep(self.random.uniform(0, 2))
        await trio.to_thread.run_sync(self.planes.restart, number)
        self._down.discard(number)

    async def _server(self) -> None:
        with trio.CancelScope(shield=True):  # it must serve in the end
            self.server.kill()
            await trio.sleep(self.random.uniform(0, 1))
            await trio.to_thread.run_sync(self.server.start)

    async def _connection(self, kind: str) -> None:
        """End a connection of a plane. After SIGKILL, PostgreSQL ends all connections and recovers."""
        which = f"{OURS} AND query {'' if kind == 'listener ended' else 'NOT'} LIKE 'LISTEN%'"
        pids = await self._ask(f"SELECT pid FROM pg_stat_activity WHERE {which}")
        if pids:
            pid = self.random.choice(pids)
            if kind == "connection killed":
                self.server.kill_backend(int(pid))
            else:
                await self._ask(f"SELECT pg_terminate_backend({pid})")

    async def _ask(self, statement: str) -> list[str]:
        """Return the lines of an answer; none while the server recovers."""
        try:
            return (await trio.to_thread.run_sync(self.server.sql, statement)).split()
        except AssertionError:
            return []


@pytest.mark.parametrize(
    ("appends", "devices", "pause"),
    [
        pytest.param(60, 24, 2.0, id="60 appends"),
        pytest.param(1000, 150, 3.0, id="1000 appends", marks=[pytest.mark.campaign, pytest.mark.timeout(3600)]),
    ],
)
async def test_what_was_acknowledged_arrives_once(
    fleet: Fleet, need: Callable[[str], str], own_postgres: PostgresServer, appends: int, devices: int, pause: float
) -> None:
    seed = random.Random(appends)
    planes = Planes(fleet, need("haproxy"), own_postgres.database(), PLANES)
    killer = Killer(planes, own_postgres, seed)
    async with appender(planes, devices, seed) as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(killer.run, pause)
            await made.append(lambda: len(made.acknowledged) >= appends and sum(killer.done.values()) >= 5)
            nursery.cancel_scope.cancel()
        print(await made.settle(own_postgres, "plane1"))
    print(f"killed: {dict(sorted(killer.done.items()))}")
    assert not planes.faults, planes.logs


ONE: Signal = ("state.resync_required", 1, '{"reason": "append 1"}')
TWO: Signal = ("state.resync_required", 2, '{"reason": "append 2"}')


@pytest.mark.parametrize(
    ("received", "stored", "words"),
    [
        pytest.param([ONE], [ONE, TWO], "lost, twice", id="not received"),
        pytest.param([ONE, ONE, TWO], [ONE, TWO], "lost, twice", id="received twice"),
        pytest.param([TWO, ONE], [ONE, TWO], "lost, twice", id="received in another order"),
        pytest.param([TWO, ONE], [TWO, ONE], "not in order", id="stored in another order"),
        pytest.param([ONE, ONE, TWO], [ONE, ONE, TWO], "stored twice", id="stored twice"),
        pytest.param([ONE], [ONE], "acknowledged and lost", id="acknowledged, not stored"),
    ],
)
async def test_the_check_notices(received: list[Signal], stored: list[Signal], words: str) -> None:
    """Check the check."""
    async with httpx.AsyncClient() as http:
        device = ParkedDevice("parked-0", http, random.Random(1), 1, received)
        made = Appender([device], http, 1, random.Random(1), {(1, ref): 0.0 for _, _, ref in (ONE, TWO)})
        with pytest.raises(AssertionError, match=words):
            check(made, {1: stored})
        device.received = [ONE, TWO]
        check(made, {1: [ONE, TWO]})
