"""What both engines and several workers are measured with: idle polls, a wave of renewals, polls per second."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from fleet_rig import Fleet, Herd, Prober, Server, running_herd
from measure import percentile

from certctrl.plane.devices.devices import FIRST_USER

LONGEST = 30
"""Seconds of the longest poll: most figures are taken before one ends."""
USER = f"/apiv1/users/{FIRST_USER}"
_HERDS = 3
"""Processes of agents that together ask for more than three workers can answer."""
_FULL_SECONDS = 10.0
Figures = dict[str, float]


def publish_to_all(server: Server, fleet: Fleet, operator: Any) -> None:
    """Publish one signal to all devices."""
    if server.key:
        operator.call("POST", f"{USER}/certificates/{fleet.cert_id}/issues", {"action": "renew"})
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
            operator.call("POST", f"{USER}/devices/{fleet.devices[at]}/resync", {})
        else:
            operator.call("POST", f"/publish?device={tokens[at]}")
        delays.append(herd.answer()["last"] - began)
        time.sleep(0.02)
    return delays


def idle(server: Server, herd: Herd, wait: int, rest: float) -> Figures:
    """Let connected agents poll without signals, and count for ``rest`` times the length of a poll."""
    herd.obey("park", wait=wait, work=False, spread=True)
    time.sleep(wait)  # the first polls end at the times at which the agents have connected
    herd.obey("mark")
    before, began = server.processor_seconds(), time.monotonic()
    time.sleep(rest * wait)
    spent, passed = spent_since(server, before), time.monotonic() - began
    polls = herd.obey("stat")["polls"]
    return {"polls": polls, "seconds": passed, "each": sum(spent) / max(polls, 1) * 1000, "busiest": share(spent)}


def spent_since(server: Server, before: list[float]) -> list[float]:
    """Return the processor time that each process of the server has used since."""
    return [now - then for now, then in zip(server.processor_seconds(), before, strict=True)]


def share(spent: list[float]) -> float:
    """Return the part of the processor time that the busiest process has used."""
    return max(spent) / max(sum(spent), 1e-9)


def wave(server: Server, herd: Herd, fleet: Fleet, signals: int) -> Figures:
    """Renew the certificate of all connected agents; each fetches and acknowledges it, while operators ask."""
    count = len(fleet.devices)
    herd.obey("park", wait=LONGEST, work=True, spread=False)
    server.wait_quiet()
    operator = server.operator()
    probers = {
        "health": Prober(server, "/health"),
        "fresh": Prober(server, "/health", fresh=True),
        "list": Prober(server, f"{USER}/devices?limit=100", pause=0.2),
    }
    herd.obey("mark")
    time.sleep(0.5)
    before = server.processor_seconds()
    herd.begin("until", of="acked", count=count)
    began = time.monotonic()
    publish_to_all(server, fleet, operator)
    found = {"stored": time.monotonic() - began}
    last = herd.answer()["last"]
    spent = spent_since(server, before)
    found |= {"last_ack": last - began, "cpu": sum(spent) / count * 1000, "busiest": share(spent)}
    for name, prober in probers.items():
        found[f"{name}_p50"], found[f"{name}_p99"] = prober.end()
    answered = herd.obey("until", of="answered", count=count)
    found["woken"] = answered["last"] - began
    server.wait_quiet()
    found["one_p50"] = percentile(to_one(server, herd, fleet, operator, signals), 0.5) * 1000
    found["refused"] = herd.obey("stat")["refused"]
    operator.close()
    return found


def full_speed(server: Server, fleet: Fleet) -> float:
    """Return the polls per second that a server answers to more agents than it can keep up with."""
    count = len(fleet.devices) // _HERDS
    with contextlib.ExitStack() as stack:
        herds = [
            stack.enter_context(running_herd(server, fleet.tokens, count, number * count)) for number in range(_HERDS)
        ]
        for order in ({"op": "connect"}, {"op": "park", "wait": 1, "work": False, "spread": False}, {"op": "mark"}):
            for herd in herds:
                herd.begin(**order)
            for herd in herds:
                herd.answer()
        began = time.monotonic()
        time.sleep(_FULL_SECONDS)
        return sum(herd.obey("stat")["polls"] for herd in herds) / (time.monotonic() - began)
