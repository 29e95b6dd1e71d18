"""Idle: memory, processor time, wake-ups, connections and fsyncs of a daemon that polls without signals.

Daemon and floor poll concurrently, each its own plane, by long-poll and by interval, so that drift affects all alike.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from material import make_agent, make_material
from measure import Usage, row
from rig import Plane, running_daemon, running_floor, running_plane

INTERVAL = 5.0
SETTLE = 16.0  # longer than Trio keeps idle threads
SYNCS = "fsync,fdatasync,syncfs"


@attrs.define(eq=False)
class Poller:
    """One process that polls one plane."""

    plane: Plane
    pid: int
    before: Usage | None = None
    heard: dict[str, Any] = attrs.field(factory=dict)

    def begin(self) -> None:
        """Start the window."""
        self.before, self.heard = Usage.of(self.pid), self.plane.obey("stat")

    def used(self, seconds: float) -> dict[str, float]:
        """Return the use since the start, per hour and per second."""
        assert self.before is not None
        after, heard = Usage.of(self.pid), self.plane.obey("stat")
        polls = heard["polls"] - self.heard["polls"]
        cpu = after.cpu - self.before.cpu
        return {
            "cpu_hour": cpu / seconds * 3600,
            "cpu_poll": cpu / max(polls, 1) * 1000,
            "wakeups": (after.wakeups - self.before.wakeups) / seconds,
            "connections": heard["connections"] - self.heard["connections"],
            "polls": polls,
            "uss": after.uss,
        }


def measure(work: Path, *, seconds: float, wait: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of an idle window; ``wait`` is the long-poll's length in seconds."""
    material = make_material(work / "idle", count=1, versions=1)
    modes: dict[str, dict[str, Any]] = {
        "long-poll": {"wait": wait, "interval": 0},
        "interval": {"wait": 0, "interval": INTERVAL},
    }
    pollers: dict[tuple[str, str], Poller] = {}
    with contextlib.ExitStack() as stack:
        for mode, how in modes.items():
            ours, theirs = (stack.enter_context(running_plane(material)) for _ in range(2))
            root = work / f"agent {mode}"
            make_agent(root, material, url=ours.url, poll_mode=mode, long_poll_wait_seconds=wait, poll_jitter=0)
            daemon = stack.enter_context(running_daemon(root))
            daemon.until_done(1)
            floor = stack.enter_context(running_floor("idle", theirs.facts(work, **how)))
            pollers[mode, "ours"] = Poller(ours, daemon.process.pid)
            pollers[mode, "floor"] = Poller(theirs, floor.pid)
        time.sleep(wait + SETTLE)  # the deployment is reported with the first poll
        for poller in pollers.values():
            poller.begin()
        time.sleep(seconds)
        used = {key: poller.used(seconds) for key, poller in pollers.items()}
        for mode in modes:
            yield from _rows(mode, used[mode, "ours"], used[mode, "floor"])
        yield _memory(used)
        yield _fsyncs(pollers["interval", "ours"])


def _rows(mode: str, ours: dict[str, float], floor: dict[str, float]) -> Iterator[dict[str, Any]]:
    note = f"{ours['polls']} polls, floor {floor['polls']}"
    yield row(f"{mode}: CPU seconds per hour", ours["cpu_hour"], floor["cpu_hour"], must=1.5, aim=1.1, note=note)
    yield row(f"{mode}: wake-ups per second", ours["wakeups"], floor["wakeups"], must=1.5, aim=1.1)
    yield row(f"{mode}: CPU milliseconds per poll", ours["cpu_poll"], floor["cpu_poll"])
    yield row(f"{mode}: TLS connections between polls", ours["connections"], must=0, aim=0, digits=0)


def _memory(used: dict[tuple[str, str], dict[str, float]]) -> dict[str, Any]:
    ours, floor = used["long-poll", "ours"]["uss"], used["long-poll", "floor"]["uss"]
    return row("idle memory (USS), MiB beyond the floor", ours, floor, value=ours - floor, must=8, aim=4, digits=1)


def _fsyncs(poller: Poller) -> dict[str, Any]:
    """Count fsyncs during two polls without signals."""
    case = "fsyncs of a poll without news"
    if (strace := shutil.which("strace")) is None:
        return {"case": case, "note": "not measured: strace is not installed"}
    before = poller.plane.obey("stat")["polls"]
    watch = subprocess.Popen(
        [strace, "-f", "-c", "-e", f"trace={SYNCS}", "-p", str(poller.pid)], stderr=subprocess.PIPE, text=True
    )
    time.sleep(2.5 * INTERVAL)
    polls = poller.plane.obey("stat")["polls"] - before
    if watch.poll() is not None:
        return {"case": case, "note": "not measured: strace may not attach here"}
    watch.send_signal(signal.SIGINT)
    found = re.findall(r"\s(\d+)\s+(?:\d+\s+)?(?:fsync|fdatasync|syncfs)$", watch.communicate()[1], re.MULTILINE)
    return row(case, sum(map(int, found)), must=0, aim=0, digits=0, note=f"{polls} polls under strace")
