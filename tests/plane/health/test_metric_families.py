"""The plane's metrics as Prometheus reads them."""

from __future__ import annotations

import pytest
from plane_world import UPDATES, World
from scripted_issuer import scripted

from certctrl.errors import DiskError
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.issuers.registry import NewIssuer


async def scrape(world: World) -> dict[str, dict[tuple[str, ...], float]]:
    """Return name -> values of labels, by their names -> value; without buckets."""
    from prometheus_client.parser import text_string_to_metric_families

    from certctrl.plane.health.metric_families import scraped

    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families((await scraped(world.plane)).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                name = sample.name.removeprefix("certctrl_plane_")
                found.setdefault(name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def test_a_scrape_shows_what_was_done_and_what_there_is(world: World) -> None:
    device = await world.device()
    await device.poll()
    world.plane.counters.refused["all"] += 2
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    found = await scrape(world)
    assert found["requests_total"]["204", "GET", UPDATES] == 1
    assert found["request_duration_seconds_count"][UPDATES,] == 1
    assert found["devices"] == {("expected",): 0, ("active",): 1, ("revoked",): 0, ("silent",): 0}
    assert found["agents"] == {("0.1.0",): 1}
    assert found["certificates"]["active",] == 1
    assert found["jobs"]["housekeeping", "overdue"] == 1
    assert found["sightings_waiting"] == {(): 1}
    assert found["database_calls_total"]["ok",] > 3
    assert found["connections_refused_total"] == {("all",): 2} and found["database_wait_seconds"] == {(): 0}
    assert found["ready"] == {(): 1} and set(found["problem"].values()) == {0}
    world.plane.counters.jobs["housekeeping", "ok"] += await world.plane.work(world.plane.housekeeping.tidy)
    found = await scrape(world)
    assert (found["sightings_waiting"], found["sightings_saved_total"]) == ({(): 0}, {(): 1})
    assert found["job_runs_total"] == {("housekeeping", "ok"): 1}


async def test_orders_and_issuers_are_counted(world: World) -> None:
    with scripted(lambda: world.clock.wall) as kind:
        plane = world.plane
        for name in ("le", "house"):
            await plane.work(plane.issuers.put, NewIssuer(name=name, kind="scripted", settings={}))
        await plane.certificates.issue(1, ["a.example"], issuer="le")
        found = await scrape(world)
        assert found["orders"] == {("csr_wanted",): 0, ("ready",): 1, ("retried",): 0, ("blocked",): 0}
        assert found["certificates"] == {("active",): 0, ("ending",): 0, ("ended",): 0}, "a pending one is none"
        kind.ca.script = [IssuerError("down")]
        await plane.order_runner.run_once()
        found = await scrape(world)
        assert (found["orders"]["retried",], found["orders"]["ready",]) == (1, 0)
        assert found["issuer_failing"] == {("house",): 0, ("le",): 1}
        world.clock.wall += 3600
        kind.ca.script = [IssuerError("no", is_permanent=True)]
        await plane.order_runner.run_once()
        await plane.certificates.issue(1, ["b.example"], issuer="le")
        await plane.order_runner.run_once()
        found = await scrape(world)
    assert found["order_attempts_total"] == {("le", "failed"): 1, ("le", "refused"): 1, ("le", "ok"): 1}
    assert found["issuer_failing"]["le",] == 0


async def test_a_scrape_works_without_the_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise DiskError("/data/plane.db: disk I/O error")

    monkeypatch.setattr(world.plane.census, "counts", fails)
    found = await scrape(world)
    assert "devices" not in found and "jobs" not in found
    world.plane.problems.report(ProblemName.STORAGE, "disk I/O error")
    found = await scrape(world)
    assert found["problem"][ProblemName.STORAGE.value,] == 1 and found["ready"] == {(): 0}
    assert found["database_calls_total"]["storage",] == 2
