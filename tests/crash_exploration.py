"""Run an act on a model disk and try every crash before each of its operations."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from modeldisk import ModelFs


@dataclass
class Tally:
    """Counters of an exploration."""

    points: int = 0
    """Points of power cuts: before each operation, and at the end."""
    kills: int = 0
    states: set[bytes] = field(default_factory=set)
    """Distinct disks checked."""


def explore(
    start: ModelFs,
    act: Callable[[ModelFs], object],
    check: Callable[[ModelFs], object],
    *,
    limit: int,
    seed: int = 1,
    kills: bool = True,
) -> Tally:
    """Run ``act`` on ``start`` and ``check`` on every disk that a crash meanwhile may leave.

    A crash is a power cut (any legal state) or a kill (the cache survives, no more durable than before).

    ``check`` gets a disk as the next start finds it, with the ``promises`` made before the crash. Raises what ``check``
    raises, with the point of the crash as a note.
    """
    tally, chance = Tally(), random.Random(seed)

    def observe(fs: ModelFs, operation: str) -> None:
        tally.points += 1
        for crashed in fs.crash_states(limit, chance):
            mark = crashed.fingerprint()
            if mark not in tally.states:
                tally.states.add(mark)
                judge(crashed, f"power cut before operation {tally.points}: {operation}")
        if kills:
            killed = fs.copy()
            tally.kills += 1
            tally.states.add(killed.fingerprint())
            judge(killed, f"kill before operation {tally.points}: {operation}")

    def judge(crashed: ModelFs, where: str) -> None:
        try:
            check(crashed)
        except BaseException as error:
            error.add_note(where)
            raise

    start.observer = observe
    act(start)
    observe(start, "the end")
    start.observer = None
    return tally
