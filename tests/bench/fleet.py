"""The fleet: the served plane under thousands of agents, beside bare h11 on Trio and hypercorn with starlette.

The number of agents is ``CERTCTRL_BENCH_AGENTS``. Server and herd share the machine: with two cores, each has one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleet_rig import (
    Fleet,
    Herd,
    Prober,
    Server,
    allow_files,
    make_fleet,
    move_to,
    postgres,
    running_herd,
    served_floor,
    served_plane,
)
from measure import percentile, row, wait_quiet

from certctrl.plane.devices import FIRST_USER

AGENTS = "CERTCTRL_BENCH_AGENTS"
LONGEST = 30
"""Seconds of the longest poll: most figures are taken before one ends."""
_USER = f"/apiv1/users/{FIRST_USER}"
Figures = dict[str, float]


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
        yield from idle_rows(count, running, herd, wait)
    with served_plane(fleet) as running, running_herd(running, fleet.tokens, count) as herd:
        sqlite = wave(running, herd, fleet, signals)
    yield from wave_rows("wave", count, sqlite)
    with postgres() as database:
        if database is None:
            yield {"case": "PostgreSQL", "note": "not measured: it is not installed"}
            return
        url = database.database()
        moved = move_to(fleet, url, work / "moved")
        with served_plane(moved, "--database", url) as running, running_herd(running, fleet.tokens, count) as herd:
            theirs = wave(running, herd, moved, signals)
    yield from postgres_rows(count, theirs, sqlite)


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
    began = time.monotonic()
    if server.key:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        found["drain"] = time.monotonic() - began
        began = time.monotonic()
        with served_plane(fleet, port=server.port):
            herd.obey("parked")
            found["back"] = time.monotonic() - began
        found["refused"] = herd.obey("stat")["refused"]
    return found


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


def publish_to_all(server: Server, fleet: Fleet, operator: Any) -> None:
    """Publish one signal to all devices."""
    if server.key:
        operator.call("POST", f"{_USER}/certificates/{fleet.cert_id}/issues", {"action": "renew"})
    else:
        operator.call("POST", "/publish")


def to_one(server: Server, herd: Herd, fleet: Fleet, operator: Any, signals: int) -> list[float]:
    """Publish signals to single agents; return the seconds until each has its answer."""
    tokens = fleet.tokens.read_text().split()
    delays = []
    for number in range(signals):
        at = number * 7919 % len(tokens)
        herd.obey("mark")
        herd.begin("until", of="answered", count=1)
        began = time.monotonic()
        if server.key:
            operator.call("POST", f"{_USER}/devices/{fleet.devices[at]}/resync", {})
        else:
            operator.call("POST", f"/publish?device={tokens[at]}")
        delays.append(herd.answer()["last"] - began)
        time.sleep(0.02)
    return delays


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
        if key == "last":
            note += f"; first answer {ours['first']:.2f}, stored {ours['published']:.2f}"
        yield row(name + case, ours[key], peer[key], must=1.0, aim=round(min(aim, 1.0), 2), digits=digits, note=note)
    yield row(name + "drain at SIGTERM, seconds", ours["drain"], must=5)
    note = f"agents come back within 10 s of the end; refused requests: {ours['refused']}"
    yield row(name + "restart, seconds until all wait again", ours["back"], must=60, note=note)


def idle_rows(count: int, server: Server, herd: Herd, wait: int) -> Iterator[dict[str, Any]]:
    """Yield the processor time of agents that poll without signals."""
    herd.obey("connect")
    herd.obey("park", wait=wait, work=False, spread=True)
    time.sleep(wait)  # the first polls end at the times at which the agents have connected
    herd.obey("mark")
    before, began = server.usage().cpu, time.monotonic()
    time.sleep(1.2 * wait)
    cpu, passed = server.usage().cpu - before, time.monotonic() - began
    polls = herd.obey("stat")["polls"]
    each = cpu / max(polls, 1) * 1000
    note = f"{polls} polls in {passed:.0f} s, {each:.2f} ms each"
    share = each / 1000 * 10_000 / 25 * 100
    yield row("idle: 10 000 agents, polls of 25 s, % of a core", share, must=30, aim=5, digits=1, note=note)


# --- waves ------------------------------------------------------------------------------------------------------------


def wave(server: Server, herd: Herd, fleet: Fleet, signals: int) -> Figures:
    """Renew the certificate of all agents; each fetches and acknowledges it, while operators ask."""
    count = len(fleet.devices)
    herd.obey("connect")
    herd.obey("park", wait=LONGEST, work=True, spread=False)
    server.wait_quiet()
    operator = server.operator()
    probers = {
        "health": Prober(server, "/health"),
        "fresh": Prober(server, "/health", fresh=True),
        "list": Prober(server, f"{_USER}/devices?limit=100", pause=0.2),
    }
    herd.obey("mark")
    time.sleep(0.5)
    before = server.usage().cpu
    herd.begin("until", of="acked", count=count)
    began = time.monotonic()
    publish_to_all(server, fleet, operator)
    found = {"stored": time.monotonic() - began}
    last = herd.answer()["last"]
    found |= {"last_ack": last - began, "cpu": (server.usage().cpu - before) / count * 1000}
    for name, prober in probers.items():
        found[f"{name}_p50"], found[f"{name}_p99"] = prober.end()
    answered = herd.obey("until", of="answered", count=count)
    found["woken"] = answered["last"] - began
    server.wait_quiet()
    found["one_p50"] = percentile(to_one(server, herd, fleet, operator, signals), 0.5) * 1000
    found["refused"] = herd.obey("stat")["refused"]
    operator.close()
    return found


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
