"""Faults that random histories found once, each as a separate scenario."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import pytest
import trio
from simulation.clock import run_seeded
from simulation.director import Director
from simulation.history import logged_to_journal, stand_ins
from simulation.host_faults import CLOCK_ERRORS
from simulation.network import REFRESH_PATH, NetworkFault
from simulation.operators import Operators
from simulation.world import DEVICE, USER, Setting, World, template

TEN_YEARS = 315_360_000.0


class Story:
    """A world with one live certificate."""

    def __init__(self, world: World, director: Director) -> None:
        self.world, self.director = world, director
        self.operators: Operators = director.operators
        self.host, self.plane = world.host, world.plane

    async def settle(self, seconds: float) -> None:
        """Wait for ``seconds``, after which the host must match the plane."""
        await trio.sleep(seconds)
        assert self.operators.differences() == []

    def requests(self, path: str) -> int:
        return sum(path in what for _, who, what in self.world.journal.lines if who == "net")


def play_story(scenario: Callable[[Story], Awaitable[Any]], **setting: Any) -> None:
    """Run a story under the auditor."""

    async def main() -> None:
        world = World(1, Setting(span=3600.0, **({"interval": 30.0, "reconcile": 21_600} | setting)))
        director = Director(world)
        with closing(world), logged_to_journal(world), world.auditor.over:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.host.run_forever)
                await world.plane.certificates.issue(
                    USER, ["c1.example"], validity_seconds=8_640_000, device_ids=[DEVICE]
                )
                director.operators.introduce(1, "c1.example")
                director.operators.configured = [1]
                await world.plane.installs.put(DEVICE, director.operators.items([1]))
                story = Story(world, director)
                await story.settle(120)
                await scenario(story)
                nursery.cancel_scope.cancel()
        if world.auditor.violation is not None:
            raise world.auditor.violation

    template()
    with stand_ins():
        run_seeded(1, main)


def test_a_full_disk_delays_signals_but_does_not_end_the_daemon() -> None:
    async def scenario(story: Story) -> None:
        story.world.auditor.disk_was_ill = True
        story.host.disk.trouble = errno.ENOSPC
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(7200)
        story.host.disk.trouble = 0
        await story.settle(1300)  # the breaker counts a token that cannot be stored
        assert story.host.starts == 1

    play_story(scenario)


def test_an_unreadable_disk_does_not_end_the_daemon() -> None:
    async def scenario(story: Story) -> None:
        story.world.auditor.disk_was_ill = True
        story.host.disk.rotten = 1.0
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(7200)
        story.host.disk.rotten = 0.0
        await story.settle(1300)  # likewise: an open breaker may wait a quarter of an hour
        assert story.host.starts == 1

    play_story(scenario)


def test_pending_signals_back_off_while_the_plane_is_down() -> None:
    async def scenario(story: Story) -> None:
        story.world.network.faults.append(
            NetworkFault(kind="refused", path="/apiv1/devices/self/certificates/1/deploy-materials")
        )
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(60)
        before = story.requests("deploy-materials")
        await trio.sleep(7200)
        assert 20 < story.requests("deploy-materials") - before < 60, "every five minutes, not every five seconds"
        story.world.network.clear()
        await story.settle(310)

    play_story(scenario, poison_attempts=3)


def test_failing_token_refreshes_back_off() -> None:
    async def scenario(story: Story) -> None:
        story.world.network.faults.append(NetworkFault(kind="refused", path=REFRESH_PATH))
        await trio.sleep(3600)
        before = story.requests(REFRESH_PATH)
        await trio.sleep(7200)
        assert 20 < story.requests(REFRESH_PATH) - before < 100
        story.world.network.clear()
        await story.settle(1300)

    play_story(scenario)


def test_a_signal_that_failed_while_the_clock_was_ten_years_ahead_does_not_wait_ten_years() -> None:
    async def scenario(story: Story) -> None:
        story.world.clock.error = TEN_YEARS
        await story.plane.certificates.renew(USER, 1)
        await trio.sleep(600)
        story.world.clock.error = 0.0
        await story.plane.certificates.renew(USER, 1)
        await story.settle(4000)

    play_story(scenario)


@pytest.mark.parametrize("error", CLOCK_ERRORS)
def test_polls_keep_their_interval_when_the_wall_clock_jumps(error: float) -> None:
    async def scenario(story: Story) -> None:
        for wrong in (error, 0.0, error / 2, 0.0):
            story.world.clock.error = wrong
            polls, refreshes = story.requests("/devices/self/updates"), story.requests(REFRESH_PATH)
            await trio.sleep(60)
            assert 1 <= story.requests("/devices/self/updates") - polls <= 3, "one poll in 30 s, jitter included"
            assert story.requests(REFRESH_PATH) - refreshes <= 1, "no storm of refreshes"

    play_story(scenario)


def test_after_eight_hours_of_suspension_one_poll_comes_within_an_interval() -> None:
    async def scenario(story: Story) -> None:
        polls = story.requests("/devices/self/updates")
        await story.director.host_faults.suspend()
        await trio.sleep(35)
        assert 1 <= story.requests("/devices/self/updates") - polls <= 3
        await story.director.host_faults.freeze()
        polls = story.requests("/devices/self/updates")
        await trio.sleep(35)
        assert 1 <= story.requests("/devices/self/updates") - polls <= 3
        await story.settle(120)

    play_story(scenario)


def test_a_requested_resync_happens_once() -> None:
    async def scenario(story: Story) -> None:
        await story.plane.resync(USER, DEVICE)
        await trio.sleep(60)
        before = story.requests("/devices/self/certificates -> 200")
        await story.settle(3600)
        assert story.requests("/devices/self/certificates -> 200") == before

    play_story(scenario)


def test_a_ca_whose_signal_was_lost_arrives_with_the_next_resync_and_leaves_by_hand() -> None:
    async def scenario(story: Story) -> None:
        await story.operators.assign_ca()
        story.plane.stream.trim(DEVICE, 0)  # 409
        await story.settle(120)
        await story.operators.unassign_ca()
        story.plane.stream.trim(DEVICE, 0)
        await trio.sleep(120)
        assert "problems: ['unknown-cas']" in story.operators.differences(), "absence is no order"
        await story.director.answer()
        await story.settle(120)

    play_story(scenario)


def test_a_401_of_a_gateway_at_the_refresh_endpoint_does_not_end_the_session() -> None:
    async def scenario(story: Story) -> None:
        story.world.network.faults.append(NetworkFault(kind="challenge", path=REFRESH_PATH))
        await trio.sleep(7200)
        story.world.network.clear()
        await story.settle(1300)
        assert story.host.starts == 1

    play_story(scenario)


def test_full_pages_are_fetched_within_the_planes_rate_limit() -> None:
    async def scenario(story: Story) -> None:
        for _ in range(30):
            await story.operators.send_unknown()
        await story.settle(120)

    play_story(scenario, page=1)


def test_a_killed_process_has_no_further_effect() -> None:
    """Check the harness: a killed process reaches neither disk nor plane nor services."""

    async def scenario(story: Story) -> None:
        old = story.host.process
        story.host.kill(power=False)
        assert old is not None and story.host.disk is not old.disk
        await story.settle(120)
        assert story.host.starts == 2

    play_story(scenario)


def test_answers_of_the_plane_are_dated_by_true_time() -> None:
    """Check the harness: plane and host have different clocks."""

    async def scenario(story: Story) -> None:
        story.world.clock.error = -3600.0
        await trio.sleep(120)
        assert story.host.process is not None and story.host.process.agent is not None
        assert abs((story.host.process.agent.plane.server_skew or 0.0) - 3600.0) < 2.0
        story.world.clock.error = 0.0
        await story.settle(120)

    play_story(scenario)
