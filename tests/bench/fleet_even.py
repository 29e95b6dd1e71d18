"""How even the load of real connections is: after a signal to all, a restart in order, and a crash.

The agents of the herd decide with the agent's own session. Limits are for 10 000 agents (docs/evidence/benchmarks.md).
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
from fleet_waves import publish_to_all
from measure import row

WAIT = 25
AWAY_SECONDS = 3.0
BACK_SECONDS = 30.0
MOST_SHARE = 0.08
"""Most polls in one second after an outage, by agents."""


def measure(work: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows; takes about five minutes. A few hundred agents are too few to be judged by the worst second."""
    allow_files()
    count = int(os.environ.get(AGENTS) or (300 if quick else 5000))
    fleet = make_fleet(work / "even", count)
    with served_plane(fleet) as plane, running_herd(plane, fleet.tokens, count) as herd:
        herd.obey("connect")
        herd.obey("park", wait=WAIT, work=False, spread=False, session=True)
        time.sleep(2 * WAIT)
        yield after_a_signal(plane, herd, fleet)
        ended = end(plane, herd, signal.SIGTERM)
        with served_plane(fleet, port=plane.port) as again:
            yield from returned(count, "restart in order", herd, *ended)
            ended = end(again, herd, signal.SIGKILL)
            with served_plane(fleet, port=plane.port):
                yield from returned(count, "killed", herd, *ended)


def after_a_signal(plane: Server, herd: Herd, fleet: Fleet) -> dict[str, Any]:
    """Publish to all; return the row of the polls from two waits later on."""
    operator = plane.operator()
    herd.obey("mark")
    publish_to_all(plane, fleet, operator)
    operator.close()
    since = time.monotonic() + 2 * WAIT
    time.sleep(4 * WAIT)
    found = herd.obey("arrivals", since=since, within=2 * WAIT)
    name = f"{len(fleet.devices)} agents, from two waits after a signal to all: worst second beside the mean"
    return row(name, found["worst"], found["mean"], must=1.5, digits=0)


def end(plane: Server, herd: Herd, signum: int) -> tuple[float, float]:
    """End a plane; return when that began and when it was gone, after the rest of its time away."""
    herd.obey("mark")
    began = time.monotonic()
    plane.process.send_signal(signum)
    plane.process.wait(PATIENCE)
    gone = time.monotonic()
    time.sleep(max(0.0, began + AWAY_SECONDS - gone))
    return began, gone


def returned(count: int, how: str, herd: Herd, began: float, gone: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of the agents' return to a plane that serves again."""
    served = time.monotonic()
    time.sleep(2 * WAIT)
    found = herd.obey("arrivals", since=gone, within=2 * WAIT)
    note = f"away for {served - began:.1f} s; {found['closed']:.0f} attempts found the port closed"
    name = f"{count} agents, {how}: "
    yield row(name + "polls in the worst second", found["worst"], must=MOST_SHARE * count, digits=0, note=note)
    missing = count - found["agents"]
    note = f"{missing:.0f} agents missing" if missing else "all agents"
    last = max(0.0, found["last"] - (served - gone))
    yield row(name + "seconds until the last one is back", last, must=BACK_SECONDS, digits=1, note=note)
    yield row(name + "agents that poll twice", found["again"] + missing, must=0, digits=0)
