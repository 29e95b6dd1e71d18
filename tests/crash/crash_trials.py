"""Trials: restore a story's start, run its act under strace with a fault at one syscall, check the result.

A *point* is the n-th call of one name that changes the disk below the world. Points are counted in one undisturbed
run without faults; strace counts per thread and name, and the act runs in one thread, so "the 3rd fsync" is the same
call in the next run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import crash_checks as checks
from crash_stage import Stage
from crash_stories import Story

CALLS = (
    "openat", "write", "pwrite64", "fsync", "fdatasync", "syncfs", "rename", "renameat", "renameat2", "symlink",
    "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "fchmod", "chmod", "fchmodat", "fchown", "fchownat",
    "ftruncate", "fallocate", "link", "linkat", "fsetxattr",
)  # fmt: skip
LATER = 7200.0
RUNS = 40
"""Most runs without a fault until two in a row make the same calls."""
TRIES = 3
"""Most runs until a point is reached: on a busy machine writes are grouped differently."""
MOST = int(os.environ.get("CERTCTRL_CRASH_TRIALS", "0")) or 10**6
"""Bound of the campaigns, per story: points of a kill or a power cut, faults of a failing disk. All by default."""


@attrs.frozen
class Point:
    """The ``number``-th call of ``call`` (from 1)."""

    call: str
    number: int
    text: str = attrs.field(eq=False, default="")
    before: Mapping[str, int] = attrs.field(eq=False, factory=dict, repr=False)
    """How many calls of each name came before it."""

    def __str__(self) -> str:
        return f"{self.call} #{self.number} {self.text}"


@attrs.define
class Tally:
    """Numbers of trials and of successes; failures with their point."""

    trials: int = 0
    missed: list[str] = attrs.field(factory=list)
    """Points that were not reached before the run ended: on a busy machine, writes are grouped differently."""
    failures: list[str] = attrs.field(factory=list)

    @property
    def mostly_reached(self) -> bool:
        """Whether at most one trial in four missed its point. What such a trial left is checked like any other."""
        return 4 * len(self.missed) <= max(self.trials, 4)

    def __str__(self) -> str:
        held = self.trials - len(self.failures)
        return f"{held} of {self.trials}" + (f", not reached: {self.missed}" if self.missed else "")


def run_traced(
    stage: Stage, story: Story, rules: Sequence[str], mutants: tuple[str, ...] = ()
) -> tuple[int, list[str]]:
    """Run a story's act under strace with these rules; return its exit status and the trace."""
    trace = stage.aside / "trace"
    pid = stage.start(story.act, mutants=mutants, **story.arguments(stage))
    command = ["strace", "-y", "-s", "0", "-o", str(trace), "-e", "trace=" + ",".join(CALLS), "-p", str(pid)]
    for rule in rules:
        command += ["-e", f"inject={rule}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        assert "attached" in line, f"strace: {line}{tracer.stderr.read() if tracer.poll() is not None else ''}"
        stage.forks.go(pid)
        status = stage.forks.wait(pid)
        tracer.wait(30)
    return status, trace.read_text("utf-8", "replace").splitlines()


def points_of(stage: Stage, story: Story) -> list[Point]:
    """Return every point of a story, in order, from a run without faults that is checked like any other.

    Concurrent writes are grouped, differently on a busy machine: two runs in a row must agree.
    """
    before: list[Point] = []
    for _ in range(RUNS):
        story.begin(stage)
        status, trace = run_traced(stage, story, ())
        assert status == 0, f"{story.name} fails without a fault: {stage.log}"
        checks.in_the_end(stage)
        points = numbered(trace, str(stage.world))
        if points == before:
            return points
        before = points
    raise AssertionError(f"{story.name} makes other calls in each run")


def numbered(trace: Iterable[str], world: str) -> list[Point]:
    """Return a point for each traced call that changes something below ``world``."""
    seen: Counter[str] = Counter()
    found: list[Point] = []
    for line in trace:
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue
        call = match[1]
        if world in line and (call != "openat" or "O_CREAT" in line):
            found.append(Point(call, seen[call] + 1, line.replace(world, "")[:160], dict(seen)))
        seen[call] += 1
    return found


def judge(stage: Stage, story: Story, *, recover_first: bool, mutants: tuple[str, ...] = ()) -> None:
    """Check the crashed host, restart, check again."""
    must = partial(stage.must, later=LATER, mutants=mutants)
    checks.at_once(stage)
    if recover_first and stage.layout.access_token.exists() and stage.layout.refresh_token.exists():
        must("recover")
        checks.after_recovery(stage)
    if story.act == "refresh":
        must("poll")  # use the tokens on the disk
    must(story.act, **story.arguments(stage))
    checks.in_the_end(stage)
    if story.act in ("enrol", "refresh"):
        must("poll")  # the session works


def trial(
    stage: Stage, story: Story, rules: Sequence[str], tally: Tally, where: str, *,
    crash: Callable[[], None] = lambda: None, mutants: tuple[str, ...] = (), reached: Callable[[int, list[str]], bool],
    settle: Callable[[], None] = lambda: None, endings: tuple[int, ...] = (-9, 0),
    ended: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Run one trial; a failed check becomes a failure of the tally.

    ``settle`` makes the start durable, ``crash`` follows the run; ``endings`` are the exit statuses it may have;
    ``ended`` is an additional check.
    """
    for _ in range(TRIES):
        story.begin(stage)
        settle()
        status, trace = run_traced(stage, story, rules, mutants)
        if reached(status, trace):
            break
    else:
        tally.missed.append(where)
    tally.trials += 1
    crash()
    try:
        assert status in endings, f"it ended with {status}: {stage.log}"
        ended()
        judge(stage, story, recover_first="copies" in stage.facts or tally.trials % 2 == 0, mutants=mutants)
    except Exception as error:
        tally.failures.append(f"{story.name}, {where}: {type(error).__name__}: {error}")


def kill_at(point: Point) -> list[str]:
    return [f"{point.call}:signal=KILL:when={point.number}"]


def killed(status: int, trace: list[str]) -> bool:
    return status == -9


def sample(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most ``most`` points, evenly spread, including the first and the last."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(number * step)] for number in range(most)]


def in_memory() -> Path | None:
    """Return a directory in memory for temporary files; None without enough space."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30 else None


def scratch(root: Path) -> tuple[Path, Path]:
    """Make the two directories of a stage."""
    world, aside = root / "w", root / "aside"
    world.mkdir(mode=0o755)
    aside.mkdir()
    return world, aside
