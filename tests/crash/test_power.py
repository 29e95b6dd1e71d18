"""Power cuts on real file systems, before every syscall and right after the end: reported results stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import attrs
import pytest
from crash_power import KINDS, VARIANTS, Disk, stage_on
from crash_stage import Stage
from crash_stories import STORIES, RenewCopies, Story
from crash_trials import MOST, Tally, kill_at, killed, points_of, sample, trial

EACH = pytest.mark.parametrize("story", [pytest.param(story, id=story.name) for story in STORIES])
SAMPLE = 2


@attrs.define
class Powered:
    """A stage on a separate file system."""

    stage: Stage
    disk: Disk
    kind: str


@pytest.fixture(scope="module", params=list(KINDS))
def powered(request: pytest.FixtureRequest, need: Callable[[str], str]) -> Iterator[Powered]:
    with stage_on(request.param, need) as (stage, made):
        yield Powered(stage, made, request.param)


def cut_at_points(powered: Powered, story: Story, most: int) -> Tally:
    """Cut the power before points of a story, in each variant, and after its end."""
    stage, tally = powered.stage, Tally()
    powered.disk.empty()
    for point in sample(points_of(stage, story), most):
        for name, variant in VARIANTS.items():
            trial(stage, story, kill_at(point), tally, f"power cut ({name}) before {point}", reached=killed,
                  settle=powered.disk.settle, crash=partial(powered.disk.cut, variant))  # fmt: skip
    for name, variant in VARIANTS.items():
        cut_after_the_end(powered, story, tally, name, variant)
    return tally


def cut_after_the_end(
    powered: Powered, story: Story, tally: Tally, name: str, variant: int, mutants: tuple[str, ...] = ()
) -> None:
    """Cut the power after a successful act, and check that its results are on the disk."""

    def crash() -> None:
        if story.act == "enrol":
            powered.stage.facts["registered"] = True
        powered.disk.cut(variant)

    trial(powered.stage, story, (), tally, f"power cut ({name}) after the end", mutants=mutants,
          reached=lambda status, trace: status == 0, settle=powered.disk.settle, crash=crash)  # fmt: skip


@pytest.mark.root
@pytest.mark.integration
def test_a_power_cut_undoes_nothing(powered: Powered) -> None:
    tally = cut_at_points(powered, RenewCopies(), SAMPLE)
    assert not tally.failures, tally.failures
    assert tally.trials == 2 * SAMPLE + 2 and tally.mostly_reached, str(tally)


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(3 * 3600)
@EACH
def test_campaign_of_power_cuts(powered: Powered, story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    tally = cut_at_points(powered, story, MOST)
    with capsys.disabled():
        print(f"\npower cut, {powered.kind}, {story.name}: {tally}", end="")
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.mostly_reached, str(tally)
