"""``GET /apiv1/plane/status``."""

from __future__ import annotations

import pytest
from plane_world import World

from certctrl.errors import DiskError
from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.storage.schema import SCHEMA

PATH = "/apiv1/plane/status"


async def test_the_status_needs_the_operator_key(world: World) -> None:
    assert (await world.stranger("GET", PATH)).status == 401
    device = await world.device()
    assert (await device("GET", PATH)).status == 403


async def test_the_status_shows_the_plane_and_its_database(world: World) -> None:
    device = await world.device()
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    await world.plane.work(world.plane.housekeeping.tidy)
    found = (await world.operator("GET", PATH)).data
    assert (found["status"], found["problems"], found["polls"], found["disk"]) == ("ok", [], 0, None)
    database = found["database"]
    assert (database["engine"], database["schema"]) == ("SQLite", len(SCHEMA))
    assert (database["devices"]["active"], database["certificates"]["active"], database["ending"]) == (1, 1, [])
    assert [plane["this"] for plane in database["planes"]] == [True]
    world.clock.wall += 85 * 86_400
    (ending,) = (await world.operator("GET", PATH)).data["database"]["ending"]
    assert (ending["id"], ending["domain_name"]) == (row["id"], "a.example")


async def test_the_status_has_the_details_of_problems(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.plane.problems.report(ProblemName.DISK_LOW, "/var/lib/plane: 3 MiB")
    found = (await world.operator("GET", PATH)).data
    assert (found["status"], found["problems"][0]["detail"]) == ("degraded", "/var/lib/plane: 3 MiB")

    def away() -> None:
        raise DatabaseAwayError("postgresql://db/plane: connection refused")

    monkeypatch.setattr(world.plane.database, "schema_version", away)
    found = (await world.operator("GET", PATH)).data
    assert (found["status"], found["database"]) == ("unavailable", None)
    assert [problem["key"] for problem in found["problems"]] == ["database_away", "disk_low"]


async def test_a_failed_housekeeping_counts_as_a_failed_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import trio

    def full() -> int:
        raise DiskError("/data/plane.db: database or disk is full")

    monkeypatch.setattr(world.plane.housekeeping, "tidy", full)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.plane.housekeeping.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    found = (await world.operator("GET", PATH)).data
    assert found["job_runs"] == {"ok": 0, "failed": 1}
    assert [problem["key"] for problem in found["problems"]] == ["storage"]
