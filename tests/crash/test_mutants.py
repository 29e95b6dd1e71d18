"""Check the trials: each mutant of `crash_mutants` is caught by its kind of trial.

The mutants that the model disk catches are in ``tests/store/test_crash_mutants.py``; those that both catch have the
same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import crash_checks as checks
import pytest
from crash_faults import faults
from crash_mutants import MUTANTS
from crash_power import VARIANTS, stage_on
from crash_stage import Stage
from crash_stories import STORIES, Story
from crash_trials import Tally, kill_at, killed, numbered, run_traced, sample, trial
from test_errno import nothing_wasted
from test_power import Powered, cut_after_the_end

BY_NAME = {story.name: story for story in STORIES}
KINDS = {kind: [name for name, mutant in MUTANTS.items() if mutant.kind == kind] for kind in ("kill", "errno", "power")}


def mutated_points(stage: Stage, story: Story, mutant: str) -> list:
    """Return the points of the mutant: its calls differ from the product's, and it works without a fault."""
    story.begin(stage)
    status, trace = run_traced(stage, story, (), (mutant,))
    assert status == 0, f"the mutant fails without a fault: {stage.log}"
    checks.at_once(stage)
    return numbered(trace, str(stage.world))


def show(capsys: pytest.CaptureFixture[str], mutant: str, how: str, tally: Tally) -> None:
    first = tally.failures[0].partition(", ")[2][:150] if tally.failures else "NOT CAUGHT"
    with capsys.disabled():
        print(f"\n{mutant} → {how}, trial {tally.trials}: {first}", end="")


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", KINDS["kill"])
def test_kills_catch_the_mutant(stage: Stage, mutant: str, capsys: pytest.CaptureFixture[str]) -> None:
    story, tally = BY_NAME[MUTANTS[mutant].story], Tally()
    for point in mutated_points(stage, story, mutant):
        trial(stage, story, kill_at(point), tally, f"killed before {point}", reached=killed, mutants=(mutant,))
        if tally.failures:
            break
    show(capsys, mutant, "kill -9", tally)
    assert tally.failures


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", KINDS["errno"])
def test_disk_faults_catch_the_mutant(stage: Stage, mutant: str, capsys: pytest.CaptureFixture[str]) -> None:
    story, tally = BY_NAME[MUTANTS[mutant].story], Tally()
    every = [(point, *fault) for point in mutated_points(stage, story, mutant) for fault in faults(point)]
    for point, name, rules in every:
        trial(stage, story, rules, tally, f"{name} at {point}", reached=lambda *_: True, endings=(0, 1),
              mutants=(mutant,), ended=partial(nothing_wasted, stage, story, point, name))  # fmt: skip
        if tally.failures:
            break
    show(capsys, mutant, "failing disk", tally)
    assert tally.failures


@pytest.fixture(scope="module")
def powered(need: Callable[[str], str]) -> Iterator[Powered]:
    """A stage on XFS: the journal of ext4 makes more durable than was synced."""
    with stage_on("xfs", need) as (stage, made):
        yield Powered(stage, made, "xfs")


@pytest.mark.root
@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", KINDS["power"])
def test_power_cuts_catch_the_mutant(powered: Powered, mutant: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage, story, tally = powered.stage, BY_NAME[MUTANTS[mutant].story], Tally()
    for name, variant in VARIANTS.items():
        cut_after_the_end(powered, story, tally, name, variant, (mutant,))
    for point in sample(mutated_points(stage, story, mutant), 40) if not tally.failures else ():
        for name, variant in VARIANTS.items():
            trial(stage, story, kill_at(point), tally, f"power cut ({name}) before {point}", reached=killed,
                  mutants=(mutant,), settle=powered.disk.settle, crash=lambda v=variant: powered.disk.cut(v))  # fmt: skip
        if tally.failures:
            break
    show(capsys, mutant, "power cut", tally)
    assert tally.failures
