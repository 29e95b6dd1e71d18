"""The load of ten thousand agents stays even after a signal to all, and after outages."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from simulation.fleet_model import AGENTS, Fleet, Story

from certctrl.model.config import ApplicationConfig, PollMode
from certctrl.protocol.breaker import CircuitBreaker
from certctrl.protocol.schedule import Schedule

LONG_POLL = ApplicationConfig(poll_mode=PollMode.LONG_POLL)
WAIT = LONG_POLL.long_poll_wait_seconds
WATCHED = 60.0
MOST = 800
"""Polls in one second after an outage."""
BACK_SECONDS = 30.0
INTERVAL = 5.0
LONGEST_PROBE = 900.0


def uneven_after_a_signal(agents: int = AGENTS) -> list[str]:
    """Return how the load is uneven from two waits after a signal to all."""
    fleet = Fleet(Story(config=LONG_POLL, signal=True, watched=5 * WAIT), random.Random(1)).run(agents)
    worst, mean = fleet.worst(2 * WAIT, 5 * WAIT), fleet.mean(2 * WAIT, 5 * WAIT)
    return [f"worst second {worst} at a mean of {mean:.0f}"] if worst > 1.5 * mean else []


def uneven_after_an_outage(away: float, *, in_order: bool = False, agents: int = AGENTS) -> list[str]:
    """Return how agents return unevenly after an outage; ``in_order``: the plane stops in order."""
    story = Story(config=LONG_POLL, away=away, in_order=in_order, watched=away + WATCHED)
    fleet = Fleet(story, random.Random(2)).run(agents)
    found = []
    if (worst := fleet.worst(away, away + WATCHED)) > MOST * agents / AGENTS:
        found.append(f"{worst} polls in one second")
    if away <= 3.0 and (last := max(fleet.returns)) > BACK_SECONDS:
        found.append(f"the last one is back after {last:.1f} s")
    if fleet.polls_together:
        found.append(f"{fleet.polls_together} agents poll twice")
    if in_order and fleet.refused:
        found.append(f"{fleet.refused} polls at a closed port")
    if fleet.ended:
        found.append(f"{fleet.ended} sessions ended")
    return found


def test_polls_do_not_stay_in_phase_after_a_signal_to_all() -> None:
    assert uneven_after_a_signal() == []


@pytest.mark.parametrize("away", [3.0, 30.0, 1800.0])
def test_agents_return_evenly_after_an_outage(away: float) -> None:
    assert uneven_after_an_outage(away) == []


def test_most_agents_are_back_soon_after_half_a_minute() -> None:
    fleet = Fleet(Story(config=LONG_POLL, away=30.0, watched=30.0), random.Random(3)).run(2000)
    assert sorted(fleet.returns)[int(0.95 * 2000)] <= BACK_SECONDS


def test_agents_return_evenly_after_a_restart_in_order() -> None:
    assert uneven_after_an_outage(3.0, in_order=True) == []


def test_agents_in_interval_mode_return_evenly_after_a_short_outage() -> None:
    """Their polls are 2 000 a second in any case."""
    fleet = Fleet(Story(config=ApplicationConfig(), away=3.0, watched=3 + WATCHED), random.Random(4)).run()
    assert fleet.worst(3, 3 + WATCHED) <= 1.5 * AGENTS / INTERVAL
    assert max(fleet.returns) <= BACK_SECONDS


def test_ten_thousand_agents_do_not_return_as_a_wave_after_half_an_hour() -> None:
    away, window, watched = 1800.0, 10, 300
    fleet = Fleet(Story(config=ApplicationConfig(), away=away, watched=away + watched), random.Random(13)).run()
    returns = sorted(fleet.returns)
    assert not fleet.ended, "no session ended"
    assert returns[-1] <= LONGEST_PROBE + INTERVAL, "at most the longest probe interval and one poll interval"

    everyday = AGENTS / INTERVAL * window
    arrivals = Counter[int]()
    for second, polls in fleet.arrivals.items():
        arrivals[int((second - away) // window)] += polls
    assert max(arrivals[number] for number in range(watched // window)) <= 2 * everyday, "never twice the usual load"

    windows = Counter(int(moment // window) for moment in returns)
    nine_of_ten = returns[int(AGENTS * 0.9)]
    mean = 0.9 * AGENTS / nine_of_ten * window
    assert max(windows.values()) <= 2 * mean, f"returning hosts: {max(windows.values())} in the worst ten seconds"


# --- the checks find these mistakes ----------------------------------------------------------------------------------


def held_if_there_was_no_failure(self: Schedule, now: float) -> int:
    wait = 0 if self.breaker.failures else NOTE_POLL(self, now)
    if not wait:
        NOTE_POLL(self, now)
    return wait


def after_the_interval(self: CircuitBreaker, failures: int, spread: float | None = None) -> float:
    return BACKOFF(self, failures)


def impatient(self: Schedule, poll: Any, event: Any, progress: bool, now: float) -> None:
    self.after_interval(now, held=poll.wait > 0)


NOTE_POLL, BACKOFF = Schedule.note_poll, CircuitBreaker.backoff
MISTAKES: dict[str, tuple[str, Any, Callable[..., list[str]]]] = {
    "the first long poll after signals is as long as all": (
        "certctrl.protocol.schedule.Schedule._hold", lambda self: WAIT, uneven_after_a_signal,
    ),
    "a lost connection is retried after an interval": (
        "certctrl.protocol.breaker.CircuitBreaker.backoff", after_the_interval, lambda: uneven_after_an_outage(3.0),
    ),
    "the retry is not held": (
        "certctrl.protocol.schedule.Schedule.note_poll", held_if_there_was_no_failure,
        lambda: uneven_after_an_outage(30.0),
    ),
    "the Retry-After of a stopping plane is not obeyed": (
        "certctrl.protocol.schedule.Schedule.after_success", impatient,
        lambda: uneven_after_an_outage(3.0, in_order=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str) -> None:
    where, mistake, check = MISTAKES[name]
    with patch(where, mistake):
        assert check() != []
