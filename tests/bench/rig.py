"""The rig: the tiny plane, the stamped daemon and the floors as child processes that end with the block."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs
from material import Material, make_agent
from measure import Usage

HERE = Path(__file__).resolve().parent
PATIENCE = 300.0


@attrs.define(eq=False)
class Plane:
    """A running `tiny_plane.py`."""

    process: subprocess.Popen[str]
    material: Material
    url: str

    def obey(self, op: str, **order: Any) -> dict[str, Any]:
        """Send an order and return its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"op": op, **order}) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def wait_parked(self, count: int = 1) -> None:
        """Wait until that many long-polls wait at the plane."""
        end = time.monotonic() + PATIENCE
        while self.obey("stat")["waiting"] < count:
            if time.monotonic() > end:
                raise SystemExit("bench: no agent polls")
            time.sleep(0.002)

    def wait_acks(self, count: int) -> dict[str, Any]:
        """Wait until that many outcomes have arrived; return the counters."""
        end = time.monotonic() + PATIENCE
        while (found := self.obey("stat"))["acks"] < count:
            if time.monotonic() > end:
                raise SystemExit("bench: outcomes are missing")
            time.sleep(0.002)
        return found

    def facts(self, out: Path, **more: Any) -> dict[str, Any]:
        """Return the parameters of a floor."""
        folder = self.material.directory
        return {"url": self.url, "ca": str(folder / "ca.pem"), "material": str(folder), "out": str(out), **more}


@contextlib.contextmanager
def running_plane(material: Material) -> Iterator[Plane]:
    """Run a plane that serves ``material``."""
    with _child("tiny_plane.py", str(material.directory), stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        yield Plane(process, material, f"https://127.0.0.1:{int(process.stdout.readline())}")
        process.stdin.close()
        process.wait(10)


@attrs.define(eq=False)
class Daemon:
    """A running `stamped_agent.py`."""

    process: subprocess.Popen[str]
    root: Path
    ran: list[dict[str, Any]] = attrs.field(factory=list)
    """Stamps of commands since the last burst."""
    switches: int = 0
    synced: int = 0
    """fsyncs and syncfs calls since the daemon started."""

    def stamp(self) -> dict[str, Any]:
        """Return the next stamp."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"bench: the daemon ended; see {self.root}/logs/agent.log")
        found = dict(json.loads(line))
        self.synced = found.get("synced", self.synced)
        return found

    def until_done(self, count: int) -> float:
        """Read stamps until ``count`` outcomes are durable; return when the last one was."""
        done, self.ran, self.switches = 0, [], 0
        while True:
            found = self.stamp()
            done += found.get("done", 0)
            self.switches += "switched" in found
            if "ran" in found:
                self.ran.append(found)
            if done >= count:
                return float(found["at"])

    def until(self, key: str) -> float:
        """Read stamps until one has this key; return its time."""
        while key not in (found := self.stamp()):
            pass
        return float(found["at"])

    def usage(self) -> Usage:
        """Return the resources that the daemon has used."""
        return Usage.of(self.process.pid)


@contextlib.contextmanager
def running_daemon(root: Path, *options: str) -> Iterator[Daemon]:
    """Run the daemon of one config directory."""
    with _child("stamped_agent.py", str(root), *options) as process:
        yield Daemon(process, root)


@contextlib.contextmanager
def deployed(plane: Plane, root: Path, **settings: Any) -> Iterator[Daemon]:
    """Run a daemon that has all certificates of the plane, restarted after it got them."""
    make_agent(root, plane.material, url=plane.url, poll_mode="long-poll", **settings)
    with running_daemon(root) as first:
        first.until_done(plane.material.count)
    with running_daemon(root) as daemon:
        plane.wait_parked()
        yield daemon


@contextlib.contextmanager
def running_floor(kind: str, facts: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """Run a floor that does not end on its own."""
    with _child("floors.py", kind, json.dumps(facts)) as process:
        yield process


def floor_result(kind: str, facts: dict[str, Any]) -> dict[str, float]:
    """Run a floor until it ends and return its result."""
    done = subprocess.run(
        [sys.executable, str(HERE / "floors.py"), kind, json.dumps(facts)],
        stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


@contextlib.contextmanager
def _child(script: str, *args: str, stdin: int | IO[str] = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, str(HERE / script), *args]
    with subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, text=True) as process:  # closes its pipes
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
