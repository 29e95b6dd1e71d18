"""``/health``, ``/health/live`` and ``/health/ready``."""

from __future__ import annotations

import pytest
from plane_world import World

from certctrl import __version__
from certctrl.plane.health.problems import ProblemName

UNREADY = [kind for kind in ProblemName if kind.prevents_ready]


async def test_a_healthy_plane_is_alive_and_ready(world: World) -> None:
    assert (await world.stranger("GET", "/health/live")).data == {"status": "alive"}
    assert (await world.stranger("GET", "/health/ready")).data == {"status": "ready"}
    assert (await world.stranger("HEAD", "/health/ready")).status == 200
    summary = (await world.stranger("GET", "/health")).data
    assert summary == {"status": "ok", "version": __version__, "time": "2026-09-21T14:13:20Z", "problems": []}


@pytest.mark.parametrize("kind", UNREADY)
async def test_a_plane_that_cannot_do_everything_is_alive_but_not_ready(world: World, kind: ProblemName) -> None:
    world.plane.problems.report(kind, "plane.db: secret details")
    world.clock.advance(60)
    for path in ("/health", "/health/ready"):
        reply = await world.stranger("GET", path)
        assert b"secret" not in reply.body
        assert (reply.status, reply.key, reply.headers["retry-after"]) == (503, "SERVICE_UNAVAILABLE", "5")
        assert reply.what == kind.summary
        params = reply.json["error"]["params"]
        shown = {"key": kind.value, "what": kind.summary, "since": "2026-09-21T14:13:20Z"}
        assert (params["status"], params["problems"]) == ("unavailable", [shown])
    assert (await world.stranger("GET", "/health/live")).status == 200
    world.plane.problems.clear(kind)
    assert (await world.stranger("GET", "/health/ready")).status == 200


async def test_a_lesser_problem_leaves_the_plane_ready(world: World) -> None:
    world.plane.problems.report(ProblemName.DISK_LOW, "/var")
    summary = (await world.stranger("GET", "/health")).data
    assert (summary["status"], [problem["key"] for problem in summary["problems"]]) == ("degraded", ["disk_low"])
    assert (await world.stranger("GET", "/health/ready")).status == 200


async def test_health_costs_no_unit_of_work(world: World) -> None:
    world.units.of.clear()
    for path in ("/health", "/health/live", "/health/ready"):
        await world.stranger("GET", path)
    assert not world.units.of
