"""Hostile answers: the peak memory of a daemon whose plane answers with as much as it can.

Each case is a daemon with one certificate that is idle at first. Then some of the plane's answers are replaced, and
signals make the daemon ask for them. It must live, poll again, and never need more than 40 MiB beyond its idle memory.
The note of each row says for how long its event loop was blocked at most.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from hostile_answers import Case, cases
from material import make_agent, make_material
from measure import Usage, row
from rig import Daemon, Plane, running_daemon, running_plane

from certctrl.model.features import BATCH_FETCH, DELTA, PUSH

MOST = 40
"""MiB beyond the idle memory."""
SAMPLE = (
    "1 MiB of nested objects", "1 MiB of names a page", "from each", "32 connected layers", "all assigned",
    "objects on a socket", "list that grows",
)  # fmt: skip
"""Parts of the names of some cases that need the most."""
QUIET = 0.1
"""Share of one processor below which a daemon has ended its work."""
PATIENCE = 1800.0
"""Seconds until a daemon counts as stuck; a busy machine may need many for the thousands of signals of some cases."""
SETTLE = 10.0
"""Seconds until a daemon is measured even if it retries something."""


def measure(work: Path, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield one row for each case whose name contains one of ``only``; for all of them if it is empty."""
    material = make_material(work / "hostile", count=1, versions=2)
    with running_plane(material) as plane:
        idle = work / "idle"
        settings: dict[str, Any] = {"poll_mode": "long-poll", "poll_jitter": 0, "poll_limit": 100}
        make_agent(idle, material, url=plane.url, features=frozenset({BATCH_FETCH, DELTA, PUSH}), **settings)
        with running_daemon(idle) as daemon:
            daemon.until_done(1)
            plane.wait_parked()
        for number, case in enumerate(cases(material)):
            if not only or any(word in case.name for word in only):
                root = work / f"agent {number}"
                shutil.copytree(idle, root, symlinks=True)
                if case.on_socket:
                    application = json.loads((root / "application.json").read_text())
                    (root / "application.json").write_text(json.dumps(application | {"poll_mode": "push"}))
                yield Trial(work, plane, root, case).row()
                shutil.rmtree(root)


@attrs.define(eq=False)
class Trial:
    """One case with its daemon."""

    work: Path
    plane: Plane
    root: Path
    case: Case
    late: list[tuple[float, float]] = attrs.field(factory=list)
    """Times, and seconds by which the loop was late."""

    def row(self) -> dict[str, Any]:
        """Run the case and return its row."""
        with running_daemon(self.root, "--beats") as daemon:
            drain = threading.Thread(target=self._drain, args=(daemon,), daemon=True)
            drain.start()
            self._until_parked(daemon, polls=self.plane.obey("stat")["polls"])
            idle = memory(daemon, "VmRSS")
            Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")  # VmHWM starts again
            began = time.monotonic()
            before = self.plane.obey("stat")["replaced"]
            size = self._answer()
            self._until_replaced(daemon, before)
            self._until_parked(daemon, polls=self.plane.obey("stat")["polls"])
            self.plane.obey("answer", answers=[])
            peak, after = memory(daemon, "VmHWM"), memory(daemon, "VmRSS")
            took = time.monotonic() - began
        drain.join()
        blocked = max((late for at, late in self.late if at > began), default=0.0)
        note = f"{size / 1024:.0f} KiB in {took:.0f} s; blocked {blocked * 1000:.0f} ms; then {after - idle:.1f}"
        return row(self.case.name, peak - idle, must=MOST, aim=MOST // 2, digits=1, note=note)

    def _drain(self, daemon: Daemon) -> None:
        assert daemon.process.stdout is not None
        for line in daemon.process.stdout:
            stamp = json.loads(line)
            if "late" in stamp:
                self.late.append((stamp["at"], stamp["late"]))

    def _answer(self) -> int:
        """Have the plane answer as the case says; return the bytes of one answer of each kind."""
        orders, size = list[dict[str, Any]](), 0
        for number, answer in enumerate(self.case.answers):
            file = self.work / f"answer {number}"
            raw = answer.raw()
            file.write_bytes(raw)
            size += len(raw)
            orders.append({"path": answer.path, "file": str(file), "times": answer.times})
        self.plane.obey("answer", answers=orders)
        return size

    def _until_replaced(self, daemon: Daemon, before: int) -> None:
        """Make the daemon ask until it got all answers, or at least one and no more in ten seconds."""
        wanted = before + sum(answer.times for answer in self.case.answers)
        began = asked = time.monotonic()
        while (found := self.plane.obey("stat")["replaced"]) < wanted:
            if found > before and time.monotonic() - began > SETTLE:
                break
            if time.monotonic() - asked > 2:
                asked = time.monotonic()
                for kind, ref in self.case.signals:
                    self.plane.obey("signal", type=kind, ref=ref)
                daemon.process.send_signal(signal.SIGUSR1)
            self._check(daemon, began, "asks for the answer")

    def _until_parked(self, daemon: Daemon, *, polls: int) -> None:
        """Wait until a new poll waits at the plane, and the daemon has no other work for ten seconds at most."""
        began = asked = time.monotonic()
        while True:
            before = Usage.of(daemon.process.pid).cpu
            self._check(daemon, began, "polls again")
            found = self.plane.obey("stat")
            polled = found["polls"] > polls
            parked = polled and found["waiting"]
            if polled and not parked and time.monotonic() - asked > 12:  # not earlier: the daemon may just be starting
                asked = time.monotonic()
                daemon.process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)
            quiet = Usage.of(daemon.process.pid).cpu - before < 0.3 * QUIET
            if parked and (quiet or time.monotonic() - began > SETTLE):
                return

    def _check(self, daemon: Daemon, began: float, what: str) -> None:
        time.sleep(0.05)
        if daemon.process.poll() is not None:
            raise SystemExit(f"bench: the daemon ended; see its log: {self.case.name}")
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"bench: the daemon no longer {what}: {self.case.name}")


def memory(daemon: Daemon, key: str) -> float:
    """Return one figure of a daemon's memory in MiB."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024
