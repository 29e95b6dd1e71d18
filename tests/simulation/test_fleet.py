"""Ten thousand agents lose their plane for half an hour and come back, as pure sessions.

They share only the outage, so each one runs separately and their requests are added up.
"""

from __future__ import annotations

import random
from collections import Counter

from certctrl.model.config import ApplicationConfig
from certctrl.protocol import events, steps
from certctrl.protocol.session import Session

AGENTS = 10_000
OUTAGE = 1800.0
WINDOW = 10
WATCHED = 300
"""Seconds of recovery during which requests are counted."""
INTERVAL = 5.0
LONGEST_PROBE = 900.0


def one_agent(chance: random.Random, arrivals: Counter[int]) -> tuple[float, bool]:
    """Run one agent through the outage, from 0 to `OUTAGE`; return when it was back, and whether it ever ended."""
    session = Session(ApplicationConfig(), cursor="c", random=chance.random)
    now, back = -chance.uniform(30, 60), -1.0
    session.receive(events.Started(True), now)
    while back < 0 or now < OUTAGE + WATCHED:
        step = session.next_step(now)
        if isinstance(step, steps.Terminate):
            return back, True
        if isinstance(step, steps.Wait):
            now = step.until
            session.receive(events.Timer(), now)
        elif not isinstance(step, steps.Poll):
            session.receive(events.AcksSent(), now)
        elif 0 <= now < OUTAGE:
            session.receive(events.TransportFailed("down"), now)
        else:
            if now >= OUTAGE:
                back = back if back >= 0 else now - OUTAGE
                arrivals[int((now - OUTAGE) // WINDOW)] += 1
            session.receive(events.NoUpdates(None), now)
    return back, False


def test_ten_thousand_agents_do_not_return_as_a_wave_after_an_outage() -> None:
    chance, arrivals = random.Random(13), Counter[int]()
    ends = [one_agent(chance, arrivals) for _ in range(AGENTS)]
    returns = sorted(back for back, _ in ends)
    assert not any(ended for _, ended in ends), "no session ended"
    assert returns[-1] <= LONGEST_PROBE + INTERVAL, "at most the longest probe interval and one poll interval"

    everyday = AGENTS / INTERVAL * WINDOW
    busiest = max(arrivals[window] for window in range(WATCHED // WINDOW))
    assert busiest <= 2 * everyday, "never twice the usual load"

    windows = Counter(int(moment // WINDOW) for moment in returns)
    nine_of_ten = returns[int(AGENTS * 0.9)]
    mean = 0.9 * AGENTS / nine_of_ten * WINDOW
    assert max(windows.values()) <= 2 * mean, f"returning hosts: {max(windows.values())} in the worst ten seconds"
