"""The counts of devices, certificates and jobs, and the planes of a database, with each engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_plane import WALL, new_device, plane_on, registered

from certctrl.errors import DiskError
from certctrl.plane.clock import rfc3339
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import AgentVersion
from certctrl.plane.errors import DatabaseAwayError, conflict
from certctrl.plane.health.census import MOST_VERSIONS, OTHER, UNKNOWN
from certctrl.plane.planes import plane_name
from certctrl.plane.storage.database import Database


async def test_the_counts_by_state(open_database: Callable[[], Database]) -> None:
    clock = [WALL]
    plane = plane_on(open_database(), wall_now=lambda: clock[0])
    device_id, _ = await registered(plane, "first-device")
    await new_device(plane, "second-device")
    row = await plane.certificates.issue(1, ["a.example"], device_ids=[device_id])
    await plane.certificates.issue(1, ["unused.example"])
    taken = await plane.work(plane.census.counts)
    assert taken["devices"] == {"expected": 1, "active": 1, "revoked": 0, "silent": 0}
    assert taken["certificates"] == {"active": 2, "ending": 0, "ended": 0}
    assert taken["jobs"] == {"housekeeping": {"due": 0, "overdue": 1, "running": 0, "scheduled": 0}}
    await plane.work(plane.housekeeping.tidy)
    clock[0] += 20
    assert (await plane.work(plane.census.counts))["jobs"]["housekeeping"]["due"] == 1
    await plane.work(lambda: plane.jobs.claim("housekeeping", limit=1, lease_seconds=9))
    assert (await plane.work(plane.census.counts))["jobs"]["housekeeping"]["running"] == 1
    clock[0] += 80 * 86_400
    taken = await plane.work(plane.census.counts)
    assert taken["devices"]["silent"] == 1
    assert taken["certificates"] == {"active": 2, "ending": 1, "ended": 0}, f"{row['id']}: only where it is used"
    clock[0] += 30 * 86_400
    assert (await plane.work(plane.census.counts))["certificates"] == {"active": 2, "ending": 0, "ended": 1}


async def test_agents_are_counted_by_version(open_database: Callable[[], Database]) -> None:
    plane = plane_on(open_database())
    devices = [(await registered(plane, f"device-{number}"))[0] for number in range(MOST_VERSIONS + 3)]
    await new_device(plane, "expected")
    assert (await plane.work(plane.census.counts))["agents"] == {UNKNOWN: MOST_VERSIONS + 3}

    def announce() -> None:
        for number, device_id in enumerate(devices):
            plane.reports.store(device_id, [AgentVersion("1.0" if number < 3 else f"2.{number:02}")])

    await plane.work(announce)
    counts = (await plane.work(plane.census.counts))["agents"]
    assert list(counts.items())[:3] == [("1.0", 3), ("2.03", 1), ("2.04", 1)]
    assert (len(counts), counts[OTHER], sum(counts.values())) == (MOST_VERSIONS + 1, 1, len(devices))
    await plane.work(plane.devices.revoke, 1, devices[0], "lost")
    assert (await plane.work(plane.census.counts))["agents"]["1.0"] == 2


async def test_a_version_that_is_known_is_not_written_again(
    open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = plane_on(open_database())
    device_id, _ = await registered(plane)
    run, written = plane.database.run, list[int]()

    def counted(sql: str, *parameters: Any) -> int:
        changed = run(sql, *parameters)
        if sql.startswith("UPDATE devices SET app_version"):
            written.append(changed)
        return changed

    monkeypatch.setattr(plane.database, "run", counted)
    for event in [AgentVersion("1.0", ("csr",))] * 2 + [AgentVersion("1.1", ("csr",)), AgentVersion("1.1")]:
        await plane.work(plane.reports.store, device_id, [event])
        shown = await plane.work(plane.devices.show, 1, device_id)
        assert (shown["app_version"], shown["features"]) == (event.version, list(event.features))
    assert written == [1, 0, 1, 1]


async def test_planes_see_each_other(open_database: Callable[[], Database]) -> None:
    clock = [WALL]
    one = plane_on(open_database(), wall_now=lambda: clock[0])
    one.planes.address, one.planes.connections = "https://one", lambda: 7
    await one.work(one.housekeeping.tidy)
    clock[0] += 120
    two = plane_on(open_database(), one.keyring, wall_now=lambda: clock[0])
    await two.work(two.housekeeping.tidy)
    shown = await two.work(two.planes.shown)
    assert [(row["this"], row["running"], row["address"], row["connections"]) for row in shown] == [
        (False, False, "https://one", 7), (True, True, "", 0),
    ]  # fmt: skip
    await one.work(one.housekeeping.tidy)
    assert [row["running"] for row in await two.work(two.planes.shown)] == [True, True]
    await two.work(two.planes.leave)
    clock[0] += 100_000
    await one.work(one.planes.delete_expired)
    assert await one.work(one.planes.shown) == []


async def test_units_of_work_are_counted_by_result(open_database: Callable[[], Database]) -> None:
    database = open_database()
    for error in (conflict("no"), DatabaseAwayError("away"), DiskError("full"), ZeroDivisionError()):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            await database.work(fail)
    await database.work(database.one, "SELECT 1")
    assert database.calls.results == {"ok": 2, "away": 1, "storage": 1, "bug": 1}
    assert database.calls.seconds.count == 5


async def test_a_plane_replaces_the_one_that_was_killed_in_its_directory(tmp_path: Path) -> None:
    killed = Plane.open(tmp_path)
    await killed.work(killed.housekeeping.tidy)
    killed._closing.close()
    with Plane.open(tmp_path) as plane:
        await plane.work(plane.housekeeping.tidy)
        (row,) = plane.planes.shown()
        assert row["this"] and row["started_at"] == rfc3339(plane.planes.started_at)
        assert plane_name(tmp_path) != plane_name(tmp_path / "other")
