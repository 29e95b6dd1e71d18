"""Push: the served plane with thousands of push sockets, beside the same agents as long-polls.

The number of agents is ``CERTCTRL_BENCH_AGENTS``. Server and herd share the machine: with two cores, each has one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleet import AGENTS
from fleet_rig import PATIENCE, Fleet, Herd, Server, allow_files, make_fleet, running_herd, served_plane
from fleet_waves import LONGEST, USER, Figures, publish_to_all, to_one
from measure import percentile, row, wait_quiet

PINGS = 25
"""Seconds between the pings of an idle agent."""


def measure(work: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    allow_files()
    count = int(os.environ.get(AGENTS) or (300 if quick else 5000))
    signals, every = (20, 5) if quick else (200, PINGS)
    fleet = make_fleet(work / "plane", count)
    wait_quiet()
    with served_plane(fleet) as running, running_herd(running, fleet.tokens, count) as herd:
        polled = as_polls(running, herd, fleet, signals)
    wait_quiet()
    with served_plane(fleet) as running, running_herd(running, fleet.tokens, count, program="push_herd.py") as herd:
        pushed = as_sockets(running, herd, fleet, signals)
        idled = idle(running, herd, every, 2.2)
        ended = drained(running, herd, count)
    yield from rows(count, pushed, polled, idled, ended)


def as_polls(server: Server, herd: Herd, fleet: Fleet, signals: int) -> Figures:
    """Measure agents that poll."""
    server.wait_quiet()
    before = server.usage()
    herd.obey("connect")
    herd.obey("park", wait=LONGEST, work=False, spread=False)
    server.wait_quiet()
    return _common(server, herd, fleet, signals, before, "answered")


def as_sockets(server: Server, herd: Herd, fleet: Fleet, signals: int) -> Figures:
    """Measure agents with sockets."""
    server.wait_quiet()
    before = server.usage()
    herd.obey("connect")
    server.wait_quiet()
    return _common(server, herd, fleet, signals, before, "pages")


def _common(server: Server, herd: Herd, fleet: Fleet, signals: int, before: Any, what: str) -> Figures:
    count, held = len(fleet.devices), server.usage()
    found = {
        "memory": (held.uss - before.uss) * 1024 / count,
        "connect_cpu": (held.cpu - before.cpu) / count * 1000,
    }
    operator = server.operator()
    herd.obey("mark")
    herd.begin("until", of=what, count=count)
    began = time.monotonic()
    publish_to_all(server, fleet, operator)
    found["last"] = herd.answer()["last"] - began
    server.wait_quiet()
    found["cpu"] = (server.usage().cpu - held.cpu) / count * 1000
    delays = (
        to_one(server, herd, fleet, operator, signals)
        if what == "answered"
        else _to_one(herd, fleet, operator, signals)
    )
    operator.close()
    return found | {"p50": percentile(delays, 0.5) * 1000, "p99": percentile(delays, 0.99) * 1000}


def _to_one(herd: Herd, fleet: Fleet, operator: Any, signals: int) -> list[float]:
    delays = []
    for number in range(signals):
        device = fleet.devices[number * 7919 % len(fleet.devices)]
        herd.obey("mark")
        herd.begin("until", of="pages", count=1)
        began = time.monotonic()
        operator.call("POST", f"{USER}/devices/{device}/resync", {})
        delays.append(herd.answer()["last"] - began)
        time.sleep(0.02)
    return delays


def idle(server: Server, herd: Herd, every: int, rounds: float) -> Figures:
    """Let idle agents ping, and count for so many of their intervals."""
    herd.obey("ping", every=every)
    time.sleep(every)
    herd.obey("mark")
    before, began = server.usage().cpu, time.monotonic()
    time.sleep(every * rounds)
    spent, passed = server.usage().cpu - before, time.monotonic() - began
    pongs = herd.obey("stat")["pongs"]
    return {"pongs": pongs, "seconds": passed, "each": spent / max(pongs, 1) * 1000}


def drained(server: Server, herd: Herd, count: int) -> dict[str, Any]:
    """Stop the server while agents are connected."""
    herd.obey("mark")
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    last = herd.obey("until", of="ended", count=count)["last"] - began
    server.process.wait(PATIENCE)
    return {"last": last, "ended": time.monotonic() - began, "codes": herd.obey("stat")["codes"]}


def rows(count: int, ours: Figures, polls: Figures, idled: Figures, ended: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    name = f"{count} push sockets: "
    yield row(name + "memory beside held polls, KiB each", ours["memory"], polls["memory"], must=1.1, aim=1.0, digits=1)
    yield row(name + "connect, CPU milliseconds each", ours["connect_cpu"], polls["connect_cpu"])
    yield row(name + "one signal to all, seconds to the last page", ours["last"], polls["last"], must=1.0)
    yield row(name + "the same, CPU milliseconds per page, with its ack", ours["cpu"], polls["cpu"])
    yield row(name + "one signal to one, p50, milliseconds", ours["p50"], polls["p50"], must=0.8, digits=1)
    yield row(name + "the same, p99, milliseconds", ours["p99"], polls["p99"], digits=1)
    share = idled["each"] / 1000 * 10_000 / PINGS * 100
    note = f"{idled['pongs']:.0f} pings in {idled['seconds']:.0f} s, {idled['each']:.3f} ms each"
    yield row("idle: 10 000 push sockets, a ping each 25 s, % of a core", share, must=8, aim=5, digits=1, note=note)
    note = f"close codes {ended['codes']}"
    yield row(name + "SIGTERM to the last end, seconds", ended["last"], must=5, note=note)
    yield row(name + "SIGTERM to the end of the process, seconds", ended["ended"])
