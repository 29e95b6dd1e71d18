"""Rounds of rollouts on both engines: outages, several planes, crashes, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from profile_fleet import Fleet, profile_fleet

from certctrl.errors import CertctrlError
from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.rollouts.rollouts import PROFILE
from certctrl.plane.rollouts.runner import IDLE_SECONDS, ROUND_SECONDS
from certctrl.plane.storage.database import Database


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    return await profile_fleet(open_database)


async def test_a_wave_is_recorded_once_with_its_first_devices(fleet: Fleet) -> None:
    """Devices that are released later than others of their wave, or before it, add no entries."""
    fleet.now[0] += 3600
    await fleet.heard(fleet.devices[0])
    await fleet.start("3")
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    for place in (1, 4, 2, 3, 5):
        await fleet.heard(fleet.devices[place])
        await fleet.round()
        await fleet.ack(fleet.devices[place])
    await fleet.round()
    assert len(await fleet.new()) == 6
    recorded = await fleet.recorded()
    assert recorded[0] == ("rollout.release", {"waves": [1], "devices": 3})
    assert [action for action, _ in recorded].count("rollout.release") == 2


async def test_nothing_is_released_by_an_outage(fleet: Fleet) -> None:
    """It skipped each wave, and gave all devices the version at the end, as the first wave had proven it."""
    rollout = await fleet.start("1", "2")
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    fleet.now[0] += 1000
    await fleet.round()
    assert (await fleet.new(), await fleet.state(rollout)) == ([0], ("running", "a device that is heard from: none is"))
    await fleet.heard(*fleet.devices)
    await fleet.round()
    assert await fleet.new() == [0, 1, 2]


async def test_a_plane_that_has_just_started_skips_nobody(fleet: Fleet) -> None:
    rollout = await fleet.start("1", "2")
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    fleet.now[0] += 1000
    await fleet.heard(fleet.devices[0])
    for plane in fleet.planes:
        plane.rollout_runner.begun = trio.current_time()
    await fleet.round()
    assert await fleet.state(rollout) == ("running", "devices of wave 2 that were not heard from yet")
    for plane in fleet.planes:
        plane.rollout_runner.begun -= 900
    await fleet.round()
    assert (await fleet.show(rollout))["waves"][1]["states"] == {"skipped": 2}


async def test_planes_that_run_rounds_at_a_time_release_once(fleet: Fleet) -> None:
    rollout = await fleet.start("2", "2")
    for devices in (fleet.devices[:0], fleet.devices[:2], fleet.devices[2:4], fleet.devices[4:]):
        await fleet.ack(*devices)
        async with trio.open_nursery() as nursery:
            for plane in fleet.planes * 2:
                nursery.start_soon(plane.rollout_runner.round)
    await fleet.round()
    assert (await fleet.state(rollout))[0] == "done"
    assert [action for action, _ in await fleet.recorded()] == ["rollout.release"] * 3 + ["rollout.end"]
    for device in fleet.devices:
        page = await fleet.plane.work(fleet.plane.stream.read, device, None, 100)
        assert [signal["ref"]["version"] for signal in page.signals] == [2, 3]


async def test_a_round_that_dies_leaves_nothing_half_done(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = await fleet.start("3")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet.plane.installs, "problems", killed)
    with pytest.raises(BaseException):  # noqa: B017
        await fleet.plane.rollout_runner.round()
    assert (await fleet.new(), await fleet.recorded()) == ([], [])
    await fleet.planes[1].rollout_runner.round()
    assert await fleet.new() == [0, 1, 2]
    assert (await fleet.show(rollout))["waves"][0]["states"] == {"released": 3}


async def test_a_rollout_that_cannot_go_on_holds_up_no_other(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rollout, runner = await fleet.start("3"), fleet.plane.rollout_runner
    one_round, running = runner._round, runner._running
    errors: list[CertctrlError] = [CertctrlError("its rules are damaged"), DatabaseAwayError("no connection")]

    def broken(rollout_id: int, kind: str, may_skip: bool) -> bool:
        if rollout_id == rollout:
            return one_round(rollout_id, kind, may_skip)
        raise errors.pop(0)

    monkeypatch.setattr(runner, "_running", lambda: [(rollout + 1, PROFILE), *running()])
    monkeypatch.setattr(runner, "_round", broken)
    await runner.round()
    assert await fleet.new() == [0, 1, 2]
    assert f"rollout {rollout + 1} cannot go on: its rules are damaged" in caplog.text
    with pytest.raises(DatabaseAwayError):
        await runner.round()


async def test_rounds_go_on_after_a_failure_and_when_woken(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    runner, begun = fleet.plane.rollout_runner, trio.current_time()
    times: list[float] = []
    results = [CertctrlError("the disk is full"), 1, 0, 0, 0]

    async def one_round() -> int:
        times.append(trio.current_time() - begun)
        result = results[len(times) - 1]
        if isinstance(result, CertctrlError):
            raise result
        return result

    monkeypatch.setattr(runner, "round", one_round)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        await trio.sleep(30)
        runner.wake()
        await trio.sleep(19)
        nursery.cancel_scope.cancel()
    assert times == pytest.approx([0, ROUND_SECONDS, 2 * ROUND_SECONDS, 2 * ROUND_SECONDS + IDLE_SECONDS, 30])
    assert runner.begun == begun
    assert "a round of the rollouts failed: the disk is full" in caplog.text
