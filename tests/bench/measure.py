"""Measuring: fresh processes in turn, running processes through /proc, ratios, percentiles, verdicts.

Compare ratios inside one run; absolute times depend on the machine.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

# a child's peak memory includes its parent's at the fork, so a small process measures
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
TICKS = os.sysconf("SC_CLK_TCK")


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


@attrs.frozen
class Usage:
    """The resources that a running process has used."""

    cpu: float
    """Processor seconds of the living threads, to the nanosecond."""
    total: float
    """Processor seconds of all threads and ended children, to the tick."""
    wakeups: int
    """Voluntary context switches of all threads."""
    uss: float
    """MiB of private memory."""
    peak: float
    """Peak memory in MiB, including shared pages."""

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Read the resources of a process."""
        run, wakeups, base = 0, 0, Path(f"/proc/{pid}")
        for task in (base / "task").iterdir():
            try:
                run += int((task / "schedstat").read_text().split()[0])
                wakeups += _figure(task / "status", "voluntary_ctxt_switches")
            except FileNotFoundError:
                continue  # the thread has just ended
        private = sum(_figure(base / "smaps_rollup", key) for key in ("Private_Clean", "Private_Dirty"))
        ticks = (base / "stat").read_text().rpartition(")")[2].split()[11:15]
        peak = _figure(base / "status", "VmHWM") / 1024
        return cls(run / 1e9, sum(map(int, ticks)) / TICKS, wakeups, private / 1024, peak)

    @classmethod
    def of_all(cls, pids: Sequence[int]) -> Usage:
        """Return the sums of several processes."""
        return cls(*map(sum, zip(*(attrs.astuple(cls.of(pid)) for pid in pids), strict=True)))


def _figure(path: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key + ":"))


def measure_once(argv: Sequence[str]) -> Sample:
    """Run a command once and discard its output."""
    done = subprocess.run([sys.executable, "-S", "-c", METER, *argv], capture_output=True, text=True, check=True)
    wall, cpu, peak, status = done.stdout.split()
    return Sample(float(wall), float(cpu), float(peak), int(status))


def in_turn(cases: Mapping[str, Sequence[str]], *, rounds: int) -> dict[str, list[Sample]]:
    """Run all cases once per round, so that drift affects them alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    for argv in cases.values():
        measure_once(argv)  # fill bytecode and page cache
    for _ in range(rounds):
        for name, argv in cases.items():
            samples[name].append(measure_once(argv))
    return samples


def ratio(ours: Sequence[float], floor: Sequence[float]) -> float:
    """Return the median of the paired ratios."""
    return statistics.median(one / max(other, 1e-9) for one, other in zip(ours, floor, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile, ``share`` from 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * (len(ordered) - 1))))]


def row(
    case: str, ours: float, floor: float | None = None, *, unit: str = "", value: float | None = None,
    must: float | None = None, aim: float | None = None, least: bool = False, digits: int = 2, note: str = "",
) -> dict[str, object]:  # fmt: skip
    """Return one line of the report.

    ``value`` is compared with the limits (default: ours divided by floor, or ours). ``least`` makes them lower limits.
    """
    judged = value if value is not None else (ours / floor if floor else ours)
    found: dict[str, object] = {"case": case, "ours": round(ours, digits), "unit": unit}
    if floor is not None:
        found["floor"] = round(floor, digits)
    if must is not None:
        sign = -1 if least else 1
        good, best = sign * judged <= sign * must, aim is not None and sign * judged <= sign * aim
        found |= {"judged": round(judged, 2), "must": must, "aim": "" if aim is None else aim}
        found["verdict"] = "aim" if best else "must" if good else "MISSED"
    elif floor:
        found["judged"] = round(judged, 2)
    return found | ({"note": note} if note else {})


def load() -> float:
    """Return how busy the machine is: load of the last minute per core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def wait_quiet(limit: float = 0.1, timeout: float = 10.0) -> None:
    """Wait until the machine is nearly idle, or until the timeout."""
    end = time.monotonic() + timeout
    while _busy(0.2) > limit and time.monotonic() < end:
        pass


def _busy(seconds: float) -> float:
    def snap() -> tuple[int, int]:
        figures = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(figures), figures[3] + figures[4]

    (all_before, idle_before), _, (all_after, idle_after) = snap(), time.sleep(seconds), snap()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def spread(directory: str) -> None:
    """Let ext4 put the subdirectories into separate block groups; no effect on other file systems.

    ext4 skips recently freed inodes one by one when it creates files: a run would be slowed by the files that an
    earlier run, or a package installer, has removed.
    """
    with contextlib.suppress(OSError):
        subprocess.run(["chattr", "+T", directory], stderr=subprocess.DEVNULL, check=False)


def file_system(directory: Path) -> str:
    """Return the kind of a directory's file system; for ext4, whether it has a journal.

    Without one, ext4 skips the inodes that were removed in the last seconds one by one: a file made soon after removals takes
    up to forty times as long, in the product and in its floor.
    """
    device = directory.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == f"{os.major(device)}:{os.minor(device)}":
            kind, source = words[words.index("-") + 1 :][:2]
            if kind != "ext4":
                return kind
            journals = Path("/proc/fs/jbd2")
            has_journal = any(one.name.startswith(f"{Path(source).name}-") for one in journals.glob("*"))
            return "ext4" if has_journal else "ext4 without a journal"
    return "an unknown file system"


def now() -> str:
    """Return the date and time of a report."""
    return time.strftime("%Y-%m-%d %H:%M:%S")
