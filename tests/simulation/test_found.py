"""What the random histories found once, each told by itself: the whole agent, one kind of trouble, one promise."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import pytest
import trio
from simulation.clockwork import run_seeded
from simulation.director import Director
from simulation.faults import CLOCK_ERRORS
from simulation.history import heard, stand_ins
from simulation.network import REFRESH_PATH, Weather
from simulation.operators import Operators
from simulation.world import DEVICE, USER, Setting, World, template

TEN_YEARS = 315_360_000.0


class Story:
    """A world with one certificate in use, for a test to do something to."""

    def __init__(self, world: World, director: Director) -> None:
        self.world, self.director = world, director
        self.operators: Operators = director.operators
        self.machine, self.plane = world.machine, world.plane

    async def settle(self, seconds: float) -> None:
        """Let ``seconds`` pass, by the end of which nothing may be left to do."""
        await trio.sleep(seconds)
        assert self.operators.differences() == []

    def requests(self, path: str) -> int:
        return sum(path in what for _, who, what in self.world.journal.lines if who == "net")


def told(happens: Callable[[Story], Awaitable[Any]], **setting: Any) -> None:
    """Run a story; every promise of the auditor holds in it as well."""

    async def main() -> None:
        world = World(1, Setting(span=3600.0, **({"interval": 30.0, "reconcile": 21_600} | setting)))
        director = Director(world)
        with closing(world), heard(world), world.auditor.over:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.machine.run_forever)
                await world.plane.certificates.issue(
                    USER, ["c1.example"], validity_seconds=8_640_000, device_ids=[DEVICE]
                )
                director.operators.introduce(1, "c1.example")
                director.operators.configured = [1]
                await world.plane.installs.put(DEVICE, director.operators.items([1]))
                story = Story(world, director)
                await story.settle(120)
                await happens(story)
                nursery.cancel_scope.cancel()
        if world.auditor.violation is not None:
            raise world.auditor.violation

    template()
    with stand_ins():
        run_seeded(1, main)


def test_a_full_disk_costs_news_and_not_the_daemon() -> None:
    async def happens(story: Story) -> None:
        story.world.auditor.disk_was_ill = True
        story.machine.disk.trouble = errno.ENOSPC
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(7200)
        story.machine.disk.trouble = 0
        await story.settle(1300)  # the breaker counts a token that cannot be stored
        assert story.machine.lives == 1

    told(happens)


def test_a_disk_that_cannot_be_read_for_a_while_costs_no_daemon() -> None:
    async def happens(story: Story) -> None:
        story.world.auditor.disk_was_ill = True
        story.machine.disk.rotten = 1.0
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(7200)
        story.machine.disk.rotten = 0.0
        await story.settle(700)
        assert story.machine.lives == 1

    told(happens)


def test_a_plane_that_is_down_is_asked_ever_less_for_what_waits() -> None:
    async def happens(story: Story) -> None:
        story.world.network.weather.append(
            Weather(kind="refused", path="/apiv1/devices/self/certificates/1/deploy-materials")
        )
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(60)
        before = story.requests("deploy-materials")
        await trio.sleep(7200)
        assert 20 < story.requests("deploy-materials") - before < 60, "every five minutes, not every five seconds"
        story.world.network.clear()
        await story.settle(310)

    told(happens, poison_attempts=3)


def test_a_token_that_cannot_be_refreshed_is_tried_ever_less() -> None:
    async def happens(story: Story) -> None:
        story.world.network.weather.append(Weather(kind="refused", path=REFRESH_PATH))
        await trio.sleep(3600)
        before = story.requests(REFRESH_PATH)
        await trio.sleep(7200)
        assert 20 < story.requests(REFRESH_PATH) - before < 100
        story.world.network.clear()
        await story.settle(1300)

    told(happens)


def test_a_signal_that_failed_while_the_clock_was_ten_years_ahead_does_not_wait_ten_years() -> None:
    async def happens(story: Story) -> None:
        story.world.time.error = TEN_YEARS
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(600)
        story.world.time.error = 0.0
        await story.plane.certificates.renew(USER, 1)
        await story.settle(4000)

    told(happens)


@pytest.mark.parametrize("error", CLOCK_ERRORS)
def test_whatever_the_wall_clock_does_polls_keep_their_pace(error: float) -> None:
    async def happens(story: Story) -> None:
        for wrong in (error, 0.0, error / 2, 0.0):
            story.world.time.error = wrong
            polls, refreshes = story.requests("/devices/self/updates"), story.requests(REFRESH_PATH)
            await trio.sleep(60)
            assert 1 <= story.requests("/devices/self/updates") - polls <= 3, "one poll in 30 s, jitter included"
            assert story.requests(REFRESH_PATH) - refreshes <= 1, "no storm of refreshes"

    told(happens)


def test_after_eight_hours_of_sleep_the_first_poll_comes_within_an_interval_and_nothing_comes_twice() -> None:
    async def happens(story: Story) -> None:
        polls = story.requests("/devices/self/updates")
        await story.director.host.suspend()
        await trio.sleep(35)
        assert 1 <= story.requests("/devices/self/updates") - polls <= 3
        await story.director.host.freeze()
        polls = story.requests("/devices/self/updates")
        await trio.sleep(35)
        assert 1 <= story.requests("/devices/self/updates") - polls <= 3
        await story.settle(120)

    told(happens)


def test_a_wish_for_a_resync_is_fulfilled_once() -> None:
    async def happens(story: Story) -> None:
        await story.plane.resync(USER, DEVICE)
        await trio.sleep(60)
        before = story.requests("/devices/self/certificates -> 200")
        await story.settle(3600)
        assert story.requests("/devices/self/certificates -> 200") == before

    told(happens)


def test_a_ca_whose_signal_was_lost_comes_with_the_next_comparison() -> None:
    async def happens(story: Story) -> None:
        await story.operators.assign_ca()
        story.plane.stream.trim(DEVICE, 0)  # 409
        await story.settle(120)
        await story.operators.unassign_ca()
        story.plane.stream.trim(DEVICE, 0)
        await story.settle(120)

    told(happens)


def test_a_gateways_guard_at_the_refresh_endpoint_ends_no_session() -> None:
    async def happens(story: Story) -> None:
        story.world.network.weather.append(Weather(kind="challenge", path=REFRESH_PATH))
        await trio.sleep(7200)
        story.world.network.clear()
        await story.settle(1300)
        assert story.machine.lives == 1

    told(happens)


def test_full_pages_are_fetched_within_the_planes_rate_limit() -> None:
    async def happens(story: Story) -> None:
        for _ in range(30):
            await story.operators.send_unknown()
        await story.settle(120)

    told(happens, page=1)


def test_a_process_that_is_killed_does_nothing_more() -> None:
    """The harness itself: what the old process still does reaches neither disk, nor plane, nor services."""

    async def happens(story: Story) -> None:
        old = story.machine.life
        story.machine.kill(power=False)
        assert old is not None and story.machine.disk is not old.disk
        await story.settle(120)
        assert story.machine.lives == 2

    told(happens)


def test_an_answer_of_the_plane_is_dated_by_the_worlds_clock() -> None:
    """The harness itself: the plane and the host have different clocks."""

    async def happens(story: Story) -> None:
        story.world.time.error = -3600.0
        await trio.sleep(120)
        assert abs(story.machine.life.agent.plane.server_skew - 3600.0) < 2.0  # type: ignore[union-attr]
        story.world.time.error = 0.0
        await story.settle(120)

    told(happens)
