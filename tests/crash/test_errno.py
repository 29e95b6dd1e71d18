"""Disk faults at every syscall, once and permanently: old or new state, an orderly end, and the next run converges."""

from __future__ import annotations

import random
from functools import partial

import crash_checks as checks
import pytest
from crash_faults import faults, starves
from crash_stage import Stage
from crash_stories import STORIES, Story
from crash_trials import MOST, Point, Tally, points_of, trial

EACH = pytest.mark.parametrize("story", [pytest.param(story, id=story.name) for story in STORIES])
SAMPLE = 2


def injected(status: int, trace: list[str]) -> bool:
    return any("INJECTED" in line for line in trace)


def fail_at_points(stage: Stage, story: Story, most: int, seed: int = 1) -> Tally:
    tally = Tally()
    every = [(point, name, rules) for point in points_of(stage, story) for name, rules in faults(point)]
    chosen = every if len(every) <= most else random.Random(seed).sample(every, most)
    for point, name, rules in chosen:
        trial(stage, story, rules, tally, f"{name} at {point}", reached=injected, endings=(0, 1),
              ended=partial(nothing_wasted, stage, story, point, name))  # fmt: skip
    return tally


def nothing_wasted(stage: Stage, story: Story, point: Point, name: str) -> None:
    if story.act == "refresh" and starves(point, name):
        checks.spent_is_stored(stage)


@pytest.mark.root
@pytest.mark.integration
@EACH
def test_the_next_run_converges_after_a_disk_fault(stage: Stage, story: Story) -> None:
    tally = fail_at_points(stage, story, SAMPLE)
    assert not tally.failures, tally.failures
    assert tally.trials == SAMPLE


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(3 * 3600)
@EACH
def test_campaign_of_disk_faults(stage: Stage, story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    tally = fail_at_points(stage, story, MOST)
    with capsys.disabled():
        print(f"\nfailing disk, {story.name}: {tally}", end="")
    assert not tally.failures, "\n".join(tally.failures)


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(3600)
@EACH
@pytest.mark.parametrize("size", [1, 7, 100])
def test_short_writes_are_finished(stage: Stage, story: Story, size: int) -> None:
    """Limit each write so that it returns early."""
    story.begin(stage)
    assert stage.act(story.act, mutants=(f"write_{size}",), **story.arguments(stage)) == 0, stage.log
