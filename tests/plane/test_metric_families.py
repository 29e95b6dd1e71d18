"""The plane's metrics as Prometheus reads them."""

from __future__ import annotations

from typing import Any

from plane_world import UPDATES, World

from certctrl.errors import DiskError
from certctrl.plane.problems import ProblemName


async def scrape(world: World) -> dict[str, dict[tuple[str, ...], float]]:
    """Return name -> values of labels, by their names -> value; without buckets."""
    from prometheus_client.parser import text_string_to_metric_families

    from certctrl.plane.metric_families import scraped

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
    assert found["certificates"]["active",] == 1
    assert found["jobs"]["housekeeping", "overdue"] == 1
    assert found["sightings_waiting"] == {(): 1}
    assert found["database_calls_total"]["ok",] > 3
    assert found["connections_refused_total"] == {("all",): 2} and found["database_wait_seconds"] == {(): 0}
    assert found["ready"] == {(): 1} and set(found["problem"].values()) == {0}
    world.plane.counters.jobs["housekeeping", "ok"] += await world.plane.work(world.plane.tidy)
    found = await scrape(world)
    assert (found["sightings_waiting"], found["sightings_saved_total"]) == ({(): 0}, {(): 1})
    assert found["job_runs_total"] == {("housekeeping", "ok"): 1}


async def test_a_scrape_works_without_the_database(world: World, monkeypatch: Any) -> None:
    def fails() -> None:
        raise DiskError("/data/plane.db: disk I/O error")

    monkeypatch.setattr(world.plane.census, "taken", fails)
    found = await scrape(world)
    assert "devices" not in found and "jobs" not in found
    world.plane.problems.report(ProblemName.STORAGE, "disk I/O error")
    found = await scrape(world)
    assert found["problem"][ProblemName.STORAGE.value,] == 1 and found["ready"] == {(): 0}
    assert found["database_calls_total"]["storage",] == 2
