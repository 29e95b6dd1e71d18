"""Measuring commands in turn: wall time, CPU time and peak memory of fresh processes, as ratios to a floor.

Ratios inside one run are what counts; absolute times say more about the machine than about us.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import attrs

# A child's peak memory includes its parent's at the moment of the fork, so a small process of its own measures.
METER = """
import os, sys, time
argv = sys.argv[1:]
began = time.perf_counter()
pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=[
    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0), (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)])
_, status, used = os.wait4(pid, 0)
wall, cpu = time.perf_counter() - began, used.ru_utime + used.ru_stime
print(wall, cpu, used.ru_maxrss / 1024, os.waitstatus_to_exitcode(status))
"""


@attrs.frozen
class Sample:
    """One run of one command."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds, user and system."""
    peak: float
    """MiB."""
    status: int


def measure_once(argv: Sequence[str]) -> Sample:
    """Run a command once, its output thrown away."""
    done = subprocess.run([sys.executable, "-S", "-c", METER, *argv], capture_output=True, text=True, check=True)
    wall, cpu, peak, status = done.stdout.split()
    return Sample(float(wall), float(cpu), float(peak), int(status))


def in_turn(cases: Mapping[str, Sequence[str]], *, rounds: int) -> dict[str, list[Sample]]:
    """Run all cases ``rounds`` times, each round every case once, so that drift hits all of them alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    for argv in cases.values():
        measure_once(argv)  # bytecode and page cache
    for _ in range(rounds):
        for name, argv in cases.items():
            samples[name].append(measure_once(argv))
    return samples


def ratio(samples: Sequence[Sample], floor: Sequence[Sample], field: str) -> float:
    """Return the median of the paired ratios of one field."""
    pairs = zip(samples, floor, strict=True)
    return statistics.median(getattr(one, field) / max(getattr(other, field), 1e-9) for one, other in pairs)


def load() -> float:
    """Return how busy the machine is: load of the last minute per core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def now() -> str:
    """Return the date and time of a report."""
    return time.strftime("%Y-%m-%d %H:%M:%S")
