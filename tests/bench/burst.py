"""The burst: a thousand renewed certificates, from the signals until records and acks are durable; memory and work.

In the same round the floor fetches and installs the same certificates from the same server over one kept connection,
one after another, with four fsyncs each and no state. Every burst is a version that this host never had.
"""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from material import Material, make_material
from measure import ratio, row, wait_quiet
from rig import Daemon, Plane, deployed, floor_result, running_plane

from certctrl.model.features import BATCH_FETCH
from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.store.config.files import save_policy
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

PAGE = 100
"""Largest page; the polls of a burst keep to the plane's rate limit, five and then one per second."""
SETTLE = 3.0
RELOAD = ("/bin/true",)
SIDES: dict[str, frozenset[str]] = {"": frozenset(), " in batches": frozenset({BATCH_FETCH})}
"""Kinds of daemons by the suffix of their rows: the features of their planes."""
LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({"must": 1.2, "aim": 2.0}, {"must": 1.3}),
    " in batches": ({"must": 1.5, "aim": 2.0}, {"must": 1.0}),
}
"""Limits of the speed and of the processor time, beside the floor's."""


def measure(work: Path, *, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a burst of ``count``, without and with batch fetch, then of counted work."""
    material = make_material(work / "many", count=count, versions=rounds + 2)
    with contextlib.ExitStack() as stack:
        sides = [_side(stack, work, material, name, features) for name, features in SIDES.items()]
        yield from _bursts(work, sides, rounds)
    yield from _counted(work, max(99, count // 5))


@attrs.define(eq=False)
class _Side:
    """A daemon with its own plane, and what its bursts have cost."""

    name: str
    plane: Plane
    daemon: Daemon
    memory: list[float] = attrs.field(factory=list)
    """Before the first burst and after each."""
    walls: list[float] = attrs.field(factory=list)
    cpus: list[float] = attrs.field(factory=list)
    switches: list[int] = attrs.field(factory=list)
    passed: list[int] = attrs.field(factory=list)
    """Bytes of requests and answers."""
    synced: int = 0
    """fsyncs of the last burst."""

    def burst(self, version: int) -> None:
        """Publish one version of all certificates and wait until they are durable."""
        wait_quiet()
        count = self.plane.material.count
        self.plane.wait_parked()
        before, synced_before, stat = self.daemon.usage(), self.daemon.synced, self.plane.obey("stat")
        began = self.plane.obey("publish", ids=list(range(1, count + 1)), version=version)["at"]
        self.walls.append(self.daemon.until_done(count) - began)
        self.synced = self.daemon.synced - synced_before
        self.switches.append(self.daemon.switches)
        self.passed.append(_passed(stat, self.plane.wait_acks(stat["acks"] + count)))
        time.sleep(SETTLE)
        self.cpus.append((after := self.daemon.usage()).total - before.total)  # with what follows the outcomes
        self.memory.append(after.uss)


def _side(stack: contextlib.ExitStack, work: Path, material: Material, name: str, features: frozenset[str]) -> _Side:
    plane = stack.enter_context(running_plane(material))
    root = work / f"agent{name.replace(' ', '-')}"
    daemon = stack.enter_context(deployed(plane, root, features=features, poll_limit=PAGE))
    return _Side(name, plane, daemon)


def _bursts(work: Path, sides: list[_Side], rounds: int) -> Iterator[dict[str, Any]]:
    plane, out = sides[0].plane, work / "floor"
    count, floors = plane.material.count, []
    out.mkdir()
    floor_result("burst", plane.facts(out, count=count))  # its files exist: replacing them is measured
    for side in sides:  # not earlier: a poll that waits may be that of the daemon before the restart
        side.memory.append(side.daemon.usage().uss)
    for version in range(2, rounds + 2):
        wait_quiet()
        floors.append(floor_result("burst", plane.facts(out, count=count)))
        for side in sides:
            side.burst(version)
    for side in sides:
        yield from _rows(side, floors)


def _rows(side: _Side, floors: list[dict[str, float]]) -> Iterator[dict[str, Any]]:
    count, memory = side.plane.material.count, side.memory
    speed, cpu = LIMITS[side.name]
    case = f"{count} certificates{side.name}"
    floor_walls, floor_cpus = [one["wall"] for one in floors], [one["cpu"] for one in floors]
    yield row(f"{case}, certificates per second", count / statistics.median(side.walls),
              count / statistics.median(floor_walls), value=ratio(floor_walls, side.walls), **speed, least=True,
              digits=0, note=_spread(floor_walls, side.walls))  # fmt: skip
    yield row(f"{case}, CPU seconds", statistics.median(side.cpus), statistics.median(floor_cpus),
              value=ratio(side.cpus, floor_cpus), **cpu, note=_spread(side.cpus, floor_cpus))  # fmt: skip
    yield row(f"memory{side.name}: growth by the first burst, MiB", memory[1] - memory[0], must=12, aim=7, digits=1,
              note=f"from {memory[0]:.1f}; peak {side.daemon.usage().peak:.0f}")  # fmt: skip
    yield row(f"memory{side.name}: growth by the next burst, MiB", memory[2] - memory[1], must=3, aim=1, digits=1,
              note=" → ".join(f"{one:.1f}" for one in memory))  # fmt: skip
    pages = 3 * math.ceil(count / PAGE)
    yield row(f"fsyncs per certificate{side.name} beyond 3 per page", (side.synced - pages) / count, must=4, aim=0.1,
              note=f"{side.synced} in all, {math.ceil(count / PAGE)} pages")  # fmt: skip
    yield row(f"bytes per renewal{side.name}, with signals and outcomes", statistics.median(side.passed) / count, digits=0,
              note=f"{statistics.median(side.passed) / 1024:.0f} KiB in all, without TLS")  # fmt: skip
    yield row(f"switches per burst{side.name}", max(side.switches),
              note="each is one set of links, one reload per service")  # fmt: skip


def _spread(ours: list[float], others: list[float]) -> str:
    """Return the smallest and largest of the paired ratios."""
    ratios = [one / max(other, 1e-9) for one, other in zip(ours, others, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _passed(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Return the bytes of requests and answers between two states of the plane."""
    return sum(int(after[way]) - int(before[way]) for way in ("received", "sent"))


def _counted(work: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield counted work: reloads per burst, fsyncs of a single renewal, RSA compared with EC, in turn."""
    used = dict.fromkeys(("ecdsa-p256", "rsa-2048"), 0.0)
    with contextlib.ExitStack() as stack:
        sides = {}
        for kind in used:
            material = make_material(work / kind, count=count, versions=6, key_type=kind)
            plane = stack.enter_context(running_plane(material))
            sides[kind] = plane, stack.enter_context(deployed(plane, work / f"{kind}.agent", poll_limit=PAGE))
        for version in (2, 3):
            for kind, side in sides.items():
                used[kind] += _burst_cpu(*side, version)
        plane, daemon = sides["ecdsa-p256"]
        yield _lone_fsyncs(plane, daemon)
        yield _lone_bytes(plane, daemon)
        yield _reloads(plane, daemon, plane.material)
    yield row(
        f"RSA bundles, CPU seconds beside EC, 2 x {count}", used["rsa-2048"], used["ecdsa-p256"], must=1.3, aim=1.1
    )


def _burst_cpu(plane: Plane, daemon: Daemon, version: int) -> float:
    plane.wait_parked()
    before = daemon.usage().total
    plane.obey("publish", ids=list(range(1, plane.material.count + 1)), version=version)
    daemon.until_done(plane.material.count)
    return daemon.usage().total - before


def _lone_fsyncs(plane: Plane, daemon: Daemon) -> dict[str, Any]:
    """Count from one outcome to the next: with the cursor and the ack that follow the first."""
    counts = []
    for version in (4, 5):
        plane.wait_parked()
        plane.obey("publish", ids=[1], version=version)
        daemon.until_done(1)
        counts.append(daemon.synced)
    return row("fsyncs of a lone renewal", counts[1] - counts[0], must=6,
               note="generation, switch, record, outcome, cursor and ack")  # fmt: skip


def _lone_bytes(plane: Plane, daemon: Daemon) -> dict[str, Any]:
    """Count from one parked poll to the next: the page, the material, the outcome, and the polls themselves."""
    plane.wait_parked()
    before = plane.obey("stat")
    plane.obey("publish", ids=[2], version=5)
    daemon.until_done(1)
    plane.wait_acks(before["acks"] + 1)
    plane.wait_parked()
    return row("bytes of a lone renewal", _passed(before, plane.obey("stat")), digits=0,
               note="signal, material, outcome and the next poll, without TLS")  # fmt: skip


def _reloads(plane: Plane, daemon: Daemon, material: Material) -> dict[str, Any]:
    """Assign all certificates to one service, renew them, count its reloads."""
    layout = ConfigDir(daemon.root)
    save_policy(RealFs(), layout, HostPolicy(commands={"reload": NamedCommand(argv=RELOAD)}))
    daemon.process.send_signal(signal.SIGHUP)
    plane.wait_parked()
    plane.obey("config", items=[{"id": "reload", "type": "exec", "cmd_argv": list(RELOAD)}])
    daemon.until_done(1)
    plane.wait_parked()
    plane.obey("publish", ids=list(range(1, material.count + 1)), version=6)
    daemon.until_done(material.count)
    return row(f"reloads in a burst of {material.count}", len(daemon.ran), must=1, aim=1)
