"""The burst: a thousand renewed certificates, from the signals until records and acks are durable; memory and work.

In the same round the floor fetches and installs the same certificates from the same server over one kept connection,
one after another, with four fsyncs each and no state. Every burst is a version that this host never had.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from material import Material, make_material
from measure import ratio, row, wait_quiet
from rig import Daemon, Plane, deployed, floor_result, running_plane

from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.store.config.files import save_policy
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

PAGE = 100
"""Largest page; the polls of a burst keep to the plane's rate limit, five and then one per second."""
SETTLE = 3.0
RELOAD = ("/bin/true",)


def measure(work: Path, *, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a burst of ``count``, then of counted work."""
    material = make_material(work / "many", count=count, versions=rounds + 2)
    with running_plane(material) as plane, deployed(plane, work / "agent", poll_limit=PAGE) as daemon:
        yield from _bursts(work, plane, daemon, rounds)
    yield from _counted(work, max(99, count // 5))


def _bursts(work: Path, plane: Plane, daemon: Daemon, rounds: int) -> Iterator[dict[str, Any]]:
    count, out = plane.material.count, work / "floor"
    out.mkdir()
    floor_result("burst", plane.facts(out, count=count))  # its files exist: replacing them is measured
    walls, cpus, floors, synced, switches, passed = [], [], [], 0, [], []
    memory = [daemon.usage().uss]
    for version in range(2, rounds + 2):
        wait_quiet()
        floors.append(floor_result("burst", plane.facts(out, count=count)))
        wait_quiet()
        plane.wait_parked()
        before, synced_before, stat = daemon.usage(), daemon.synced, plane.obey("stat")
        began = plane.obey("publish", ids=list(range(1, count + 1)), version=version)["at"]
        walls.append(daemon.until_done(count) - began)
        after = daemon.usage()
        cpus.append(after.total - before.total)
        synced = daemon.synced - synced_before if version > 2 else synced
        switches.append(daemon.switches)
        passed.append(_passed(stat, plane.wait_acks(stat["acks"] + count)))
        time.sleep(SETTLE)
        memory.append(daemon.usage().uss)
    floor_walls, floor_cpus = [one["wall"] for one in floors], [one["cpu"] for one in floors]
    yield row(f"{count} certificates, certificates per second", count / statistics.median(walls),
              count / statistics.median(floor_walls), value=ratio(floor_walls, walls), must=0.8, aim=2.0, least=True,
              digits=0)  # fmt: skip
    yield row(f"{count} certificates, CPU seconds", statistics.median(cpus), statistics.median(floor_cpus),
              value=ratio(cpus, floor_cpus), must=1.5)  # fmt: skip
    yield row("memory: growth by the first burst, MiB", memory[1] - memory[0], must=12, aim=7, digits=1,
              note=f"from {memory[0]:.1f}; peak {daemon.usage().peak:.0f}")  # fmt: skip
    yield row("memory: growth by the next burst, MiB", memory[2] - memory[1], must=3, aim=1, digits=1,
              note=" → ".join(f"{one:.1f}" for one in memory))  # fmt: skip
    pages = 3 * math.ceil(count / PAGE)
    yield row("fsyncs per certificate beyond 3 per page", (synced - pages) / count, must=4, aim=0.1,
              note=f"{synced} in all, {math.ceil(count / PAGE)} pages")  # fmt: skip
    yield row("bytes per renewal, with signals and outcomes", statistics.median(passed) / count, digits=0,
              note=f"{statistics.median(passed) / 1024:.0f} KiB in all, without TLS")  # fmt: skip
    yield row("switches per burst", max(switches), note="each is one set of links, one reload per service")


def _passed(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Return the bytes of requests and answers between two states of the plane."""
    return sum(int(after[way]) - int(before[way]) for way in ("received", "sent"))


def _counted(work: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield counted work: reloads per burst, fsyncs of a single renewal, RSA compared with EC."""
    used = {}
    for kind in ("ecdsa-p256", "rsa-2048"):
        material = make_material(work / kind, count=count, versions=6, key_type=kind)
        with running_plane(material) as plane, deployed(plane, work / f"{kind}.agent", poll_limit=PAGE) as daemon:
            used[kind] = _burst_cpu(plane, daemon, 2) + _burst_cpu(plane, daemon, 3)
            if kind == "rsa-2048":
                continue
            yield _lone_fsyncs(plane, daemon)
            yield _lone_bytes(plane, daemon)
            yield _reloads(plane, daemon, material)
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
    return row("fsyncs of a lone renewal", counts[1] - counts[0], must=7,
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
