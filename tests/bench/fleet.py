"""The fleet: the served plane under thousands of agents, beside bare h11 on Trio and hypercorn with starlette.

The number of agents is ``CERTCTRL_BENCH_AGENTS``. Server and herd share the machine: with two cores, each has one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

from fleet_rig import (
    PATIENCE,
    Fleet,
    Herd,
    Server,
    allow_files,
    make_fleet,
    move_to,
    postgres,
    running_herd,
    served_floor,
    served_plane,
)
from fleet_waves import LONGEST, Figures, full_speed, idle, publish_to_all, to_one, wave
from measure import percentile, row, wait_quiet

from certctrl.protocol.wire.poll import LEAST_HELD

AGENTS = "CERTCTRL_BENCH_AGENTS"
WORKERS = 3
CORES_FOR_WORKERS = 8
"""From here on, three workers, PostgreSQL and the agents do not compete for the processor."""
SHORT = 10
"""Seconds of the polls that compare processes."""


def measure(work: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    allow_files()
    count = int(os.environ.get(AGENTS) or (300 if quick else 5000))
    signals, wait = (20, 10) if quick else (200, 25)
    fleet = make_fleet(work / "plane", count)
    found: dict[str, Figures] = {}
    for kind in ("plane", "bare", "hypercorn"):
        wait_quiet()
        server = served_plane(fleet) if kind == "plane" else served_floor(kind, fleet)
        with server as running, running_herd(running, fleet.tokens, count) as herd:
            found[kind] = held(running, herd, fleet, signals)
    yield from held_rows(count, found)
    with served_plane(fleet) as running, running_herd(running, fleet.tokens, count) as herd:
        herd.obey("connect")
        yield idle_row(count, idle(running, herd, wait, 1.2))
    with served_plane(fleet) as running, running_herd(running, fleet.tokens, count) as herd:
        herd.obey("connect")
        sqlite = wave(running, herd, fleet, signals)
    yield from wave_rows("wave", count, sqlite)
    with postgres() as database:
        if database is None:
            yield {"case": "PostgreSQL", "note": "not measured: it is not installed"}
            return
        url = database.database()
        moved = move_to(fleet, url, work / "moved")
        one = on_postgres(moved, url, signals)
        yield from postgres_rows(count, one, sqlite)
        yield from worker_rows(count, on_postgres(moved, url, max(20, signals // 10), WORKERS), one)


# --- held polls -------------------------------------------------------------------------------------------------------


def held(server: Server, herd: Herd, fleet: Fleet, signals: int) -> Figures:
    """Park all agents, publish to all and to one, and stop the server."""
    count = len(fleet.devices)
    server.wait_quiet()
    before = server.usage()
    took = herd.obey("connect")["seconds"]
    herd.obey("park", wait=LONGEST, work=False, spread=False)
    server.wait_quiet()
    parked = server.usage()
    found = {
        "memory": (parked.uss - before.uss) * 1024 / count,
        "connect_cpu": (parked.cpu - before.cpu) / count * 1000,
        "connect_seconds": took,
    }
    operator = server.operator()
    rounds = [to_all(server, herd, fleet, operator) for _ in range(3)]
    found |= {key: percentile([one[key] for one in rounds], 0.5) for key in rounds[0]}
    delays = to_one(server, herd, fleet, operator, signals)
    found |= {"one_p50": percentile(delays, 0.5) * 1000, "one_p99": percentile(delays, 0.99) * 1000}
    operator.close()
    return found | restart(server, herd, fleet) if server.key else found


def restart(server: Server, herd: Herd, fleet: Fleet) -> Figures:
    """Stop the server while agents wait, and start it again; agents connect again only after its end."""
    count = len(fleet.devices)
    herd.obey("stay")
    herd.obey("mark")
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    herd.begin("until", of="lost", count=count)
    server.process.wait(PATIENCE)
    found = {"ended": time.monotonic() - began}
    herd.answer()
    found["answered"] = herd.obey("stat")["polls"]
    if found["answered"]:
        found["drain"] = herd.obey("until", of="polls", count=found["answered"])["last"] - began
    began = time.monotonic()
    herd.obey("return")
    with served_plane(fleet, port=server.port):
        herd.obey("parked")
        found["back"] = time.monotonic() - began
    return found | {"refused": herd.obey("stat")["refused"]}


def to_all(server: Server, herd: Herd, fleet: Fleet, operator: Any) -> Figures:
    """Publish one signal to all agents."""
    server.wait_quiet()
    herd.obey("mark")
    before = server.usage().cpu
    herd.begin("until", of="answered", count=len(fleet.devices))
    began = time.monotonic()
    publish_to_all(server, fleet, operator)
    published = time.monotonic() - began
    heard = herd.answer()
    server.wait_quiet()
    spent = server.usage().cpu - before
    return {
        "published": published,
        "first": heard["first"] - began,
        "last": heard["last"] - began,
        "answer_cpu": spent / len(fleet.devices) * 1000,
    }


def held_rows(count: int, found: dict[str, Figures]) -> Iterator[dict[str, Any]]:
    """Yield what held polls cost, judged against hypercorn."""
    ours, bare, peer = found["plane"], found["bare"], found["hypercorn"]
    note = f"bare h11 {bare['memory']:.1f}"
    name = f"{count} held polls: "
    yield row(
        name + "memory, KiB each", ours["memory"], peer["memory"], value=ours["memory"], must=45, aim=30, note=note
    )
    for key, case, digits in (
        ("connect_cpu", "connect and park, CPU milliseconds each", 2),
        ("last", "one signal to all, seconds to the last answer", 2),
        ("answer_cpu", "the same, CPU milliseconds per answer", 2),
        ("one_p50", "one signal to one, p50, milliseconds", 1),
        ("one_p99", "the same, p99, milliseconds", 1),
    ):
        aim = 1.5 * bare[key] / peer[key]
        note = f"bare h11 {bare[key]:.{digits}f}"
        if key.startswith("one"):
            note += "; each commits the signal first"
        if key == "last":
            note += f"; first answer {ours['first']:.2f}, stored {ours['published']:.2f}"
        yield row(name + case, ours[key], peer[key], must=1.0, aim=round(min(aim, 1.0), 2), digits=digits, note=note)
    note = f"answered {ours['answered']:.0f}; agents reconnect only after the end"
    yield row(name + "SIGTERM to the last answer, seconds", ours.get("drain", inf), must=5, note=note)
    yield row(name + "SIGTERM to the end of the process, seconds", ours["ended"])
    note = f"agents come back within 10 s of the end; refused requests: {ours['refused']}"
    yield row(name + "restart, seconds until all wait again", ours["back"], must=60, note=note)


def idle_row(count: int, found: Figures) -> dict[str, Any]:
    """Return the processor time of agents that poll without signals; polls are held for 0.85 of their wait on average."""
    note = f"{found['polls']:.0f} polls in {found['seconds']:.0f} s, {found['each']:.2f} ms each"
    share = found["each"] / 1000 * 10_000 / (25 * (1 + LEAST_HELD) / 2) * 100
    return row("idle: 10 000 agents, polls of 25 s, % of a core", share, must=30, aim=5, digits=1, note=note)


# --- waves ------------------------------------------------------------------------------------------------------------


def wave_rows(name: str, count: int, found: Figures) -> Iterator[dict[str, Any]]:
    """Yield the rows of a wave; its limits are for 10 000 agents."""
    share = count / 10_000
    name = f"{name} of {count}: "
    note = f"stored {found['stored']:.2f}, last answer {found['woken']:.2f}, CPU {found['cpu']:.2f} ms per agent"
    yield row(name + "last ack, seconds", found["last_ack"], must=25 * share, aim=12 * share, note=note)
    for key, case in (
        ("health", "/health"), ("fresh", "/health on a new connection"), ("list", "100 devices, listed")
    ):  # fmt: skip
        note = f"p50 {found[f'{key}_p50']:.3f}"
        yield row(name + f"{case}, p99, seconds", found[f"{key}_p99"], must=0.3, aim=0.1, digits=3, note=note)


def postgres_rows(count: int, theirs: Figures, ours: Figures) -> Iterator[dict[str, Any]]:
    """Yield the wave on PostgreSQL, and what is judged beside SQLite."""
    yield from wave_rows("PostgreSQL: wave", count, theirs)
    yield row(
        "PostgreSQL: one signal to one, p50, beside SQLite, milliseconds", theirs["one_p50"], ours["one_p50"], must=3
    )
    share = count / 10_000
    yield row(f"PostgreSQL: wave of {count}, stored, seconds", theirs["stored"], must=0.5 * share)


def on_postgres(fleet: Fleet, url: str, signals: int, workers: int = 1) -> Figures:
    """Measure idle polls and a wave with so many processes, and their full speed if the machine has the cores."""
    with served_plane(fleet, "--database", url, workers=workers) as running:
        with running_herd(running, fleet.tokens, len(fleet.devices)) as herd:
            herd.obey("connect")
            polls = idle(running, herd, SHORT, 1.5)
            found = wave(running, herd, fleet, signals)
        found |= {"idle": polls["each"], "idle_busiest": polls["busiest"]}
        if len(os.sched_getaffinity(0)) >= CORES_FOR_WORKERS:
            found["speed"] = full_speed(running, fleet)
    return found


def worker_rows(count: int, several: Figures, one: Figures) -> Iterator[dict[str, Any]]:
    """Yield several workers beside one process: by processor time, and by polls per second if that was measured."""
    name = f"PostgreSQL: {WORKERS} workers beside one process: "
    for key, busiest, case in (
        ("idle", "idle_busiest", "idle poll"), ("cpu", "busiest", f"agent in a wave of {count}")
    ):  # fmt: skip
        factor = WORKERS * one[key] / several[key]
        note = f"by CPU: {WORKERS} × one / workers; the busiest has {several[busiest]:.0%}"
        yield row(
            f"{name}CPU milliseconds per {case}", several[key], one[key],
            value=factor, must=2.2, least=True, note=note,
        )  # fmt: skip
    yield row(name + "one signal to one, p50, milliseconds", several["one_p50"], one["one_p50"])
    if "speed" in one:
        yield row(name + "polls per second", several["speed"], one["speed"], must=2.2, least=True, digits=0)
