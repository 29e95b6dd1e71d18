"""Jobs on both engines: one plane at a time, leases that end, jobs planned anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from engine_plane import plane_on

from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

Open = Callable[[], Database]


class Bench:
    """Two planes on one database, with one clock."""

    def __init__(self, databases: list[Database]) -> None:
        self.now = 1000.0
        self.databases = databases
        self.jobs = [Jobs(database, lambda: self.now) for database in databases]

    async def put(self, key: str, due: float = 0.0) -> None:
        await self.databases[0].work(self.jobs[0].put, "renew", key, due)

    async def claim(self, plane: int = 0, limit: int = 10) -> list[Job]:
        return await self.databases[plane].work(self.jobs[plane].claim, "renew", limit=limit, lease_seconds=60)

    async def finish(self, job: Job, plane: int = 0) -> bool:
        return await self.databases[plane].work(self.jobs[plane].finish, job)


@pytest.fixture
def bench(open_database: Open) -> Bench:
    return Bench([open_database(), open_database()])


def keys(jobs: list[Job]) -> list[str]:
    return [job.key for job in jobs]


async def test_due_jobs_are_claimed_by_one_plane(bench: Bench) -> None:
    for key, due in (("b", 20.0), ("a", 10.0), ("later", 2000.0)):
        await bench.put(key, due)
    assert keys(await bench.claim(limit=1)) == ["a"]
    assert keys(await bench.claim(plane=1)) == ["b"]
    assert await bench.claim() == []
    bench.now = 2000.0
    assert keys(await bench.claim()) == ["a", "b", "later"], "leases have ended"


async def test_a_finished_job_is_gone(bench: Bench) -> None:
    await bench.put("a")
    (job,) = await bench.claim()
    assert await bench.finish(job)
    assert not await bench.finish(job)
    bench.now += 1000
    assert await bench.claim() == []


async def test_a_lost_claim_ends_nothing(bench: Bench) -> None:
    await bench.put("a")
    (lost,) = await bench.claim()
    bench.now += 100
    (job,) = await bench.claim(plane=1)
    assert not await bench.finish(lost)
    assert not await bench.databases[0].work(bench.jobs[0].extend, lost, 60)
    assert await bench.databases[1].work(bench.jobs[1].extend, job, 60)
    assert await bench.finish(job, plane=1)


async def test_a_job_planned_anew_while_it_runs_runs_again(bench: Bench) -> None:
    await bench.put("a")
    (job,) = await bench.claim()
    await bench.put("a", 5.0)
    assert await bench.claim(plane=1) == [], "one plane at a time"
    assert not await bench.finish(job)
    assert keys(await bench.claim(plane=1)) == ["a"]


async def test_a_job_can_be_done_again_later(bench: Bench) -> None:
    await bench.put("a")
    (job,) = await bench.claim()
    assert await bench.databases[0].work(bench.jobs[0].reschedule, job, bench.now + 30)
    assert await bench.claim(plane=1) == []
    bench.now += 30
    assert keys(await bench.claim(plane=1)) == ["a"]


async def test_concurrent_claims_share_the_jobs(bench: Bench) -> None:
    for number in range(40):
        await bench.put(f"{number:02}")
    claimed: list[str] = []

    async def claim(plane: int) -> None:
        while jobs := await bench.claim(plane, limit=3):
            claimed.extend(keys(jobs))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(claim, number % 2)
    assert sorted(claimed) == [f"{number:02}" for number in range(40)]


async def test_one_plane_deletes_what_has_expired(open_database: Open) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring) for _ in range(2)]
    for plane in planes:
        plane.operators._wall_now = lambda: 0.0
        await plane.operators.sign_in(plane.operator_key, "caller")
        plane.operators._wall_now = plane.wall_now
    await planes[0].work(planes[0].housekeeping.tidy)
    row = await planes[1].work(planes[1].database.one, "SELECT count(*) AS n FROM page_sessions")
    assert row is not None
    assert row["n"] == 0
    assert await planes[1].work(planes[1].jobs.claim, "housekeeping", limit=1, lease_seconds=1) == []


async def test_housekeeping_is_planned_again_if_the_clock_was_set_back(open_database: Open) -> None:
    keyring = Keyring.open(None)
    plane = plane_on(open_database(), keyring)
    await plane.work(plane.jobs.put, "housekeeping", "", plane.wall_now() + 1e6)
    again = plane_on(open_database(), keyring)
    assert keys(await again.work(again.jobs.claim, "housekeeping", limit=1, lease_seconds=1)) == [""]
