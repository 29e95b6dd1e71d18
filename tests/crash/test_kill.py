"""SIGKILL before every syscall that changes the disk, on the real kernel: the next start finds all or nothing."""

from __future__ import annotations

import pytest
from crash_stage import Stage
from crash_stories import STORIES, Story
from crash_trials import MOST, Tally, kill_at, killed, points_of, sample, trial

EACH = pytest.mark.parametrize("story", [pytest.param(story, id=story.name) for story in STORIES])
SAMPLE = 3


def kill_at_points(stage: Stage, story: Story, most: int) -> Tally:
    tally = Tally()
    for point in sample(points_of(stage, story), most):
        trial(stage, story, kill_at(point), tally, f"killed before {point}", reached=killed)
    return tally


@pytest.mark.root
@pytest.mark.integration
@EACH
def test_the_next_run_converges_after_a_kill(stage: Stage, story: Story) -> None:
    tally = kill_at_points(stage, story, SAMPLE)
    assert not tally.failures, tally.failures
    assert tally.trials == SAMPLE and tally.mostly_reached, str(tally)


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(3600)
@EACH
def test_campaign_of_kills(stage: Stage, story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    tally = kill_at_points(stage, story, MOST)
    with capsys.disabled():
        print(f"\nkill -9, {story.name}: {tally}", end="")
    assert not tally.failures, tally.failures
    assert tally.mostly_reached, str(tally)
