"""Invariants of a session under random histories of answers, failures and requests.

The examiner keeps its own small model (the durable cursor, the edges, the times of polls) and reads only the public
attributes of the session.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import attrs
import pytest
from examples import at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certctrl.model.config import ApplicationConfig
from certctrl.model.signals import CertRenewed, ResyncRequired
from certctrl.protocol import events as ev
from certctrl.protocol import steps
from certctrl.protocol.breaker import SOONEST_RETURN
from certctrl.protocol.session import Session
from certctrl.protocol.state import TRANSITIONS, State

SIGNALS = (CertRenewed(1, 7),)
RETRY_AFTERS = st.none() | st.sampled_from([0.0, 0.5, 7.0, 60.0, 3600.0])
CURSORS = st.none() | st.sampled_from(["c1", "c2", "c3", "c4"])
ANSWERS: dict[type, st.SearchStrategy[Any]] = {
    steps.Poll: st.one_of(
        st.builds(ev.NoUpdates, CURSORS, retry_after=RETRY_AFTERS),
        st.builds(ev.Updates, CURSORS, st.just(SIGNALS), st.booleans(), retry_after=RETRY_AFTERS),
        st.builds(ev.Updates, CURSORS, st.just((ResyncRequired(1),)), st.booleans()),
        st.just(ev.TokenExpired()),
        st.just(ev.CursorExpired()),
        st.builds(ev.ServerBusy, st.sampled_from([429, 500, 503]), RETRY_AFTERS),
        st.just(ev.Refused(400, "", 0, "no")),
        st.builds(ev.BadAnswer, st.just("html"), retry_after=RETRY_AFTERS),
        st.just(ev.TransportFailed("down")),
        st.just(ev.TransportFailed("down")),
    ),
    steps.Deliver: st.sampled_from([ev.Delivered(), ev.Delivered(), ev.DeliverFailed("full")]),
    steps.FlushAcks: st.just(ev.AcksSent()) | st.builds(ev.AcksFailed, st.just("x"), RETRY_AFTERS),
    steps.Refresh: st.just(ev.TokenRefreshed()) | st.builds(ev.RefreshFailed, st.just("x"), RETRY_AFTERS),
    steps.Resync: st.just(ev.Resynced()) | st.builds(ev.ResyncFailed, st.just("x"), RETRY_AFTERS),
}
# unrequested events, and answers to steps that were not performed
STRAY = st.sampled_from(
    [ev.Timer(), ev.Started(True), ev.Delivered(), ev.AcksSent(), ev.TokenRefreshed(),
     ev.RefreshFailed("x"), ev.Resynced(), ev.ResyncFailed("x"), ev.NoUpdates("stray"), ev.Updates("stray", SIGNALS, True)]
)  # fmt: skip
CONFIGS = st.builds(
    ApplicationConfig,
    poll_mode=st.sampled_from(["interval", "interval", "long-poll", "adaptive"]),
    poll_interval_ms=st.sampled_from([10, 250, 5000, 600_000]),
    poll_jitter=st.sampled_from([0.0, 0.1, 0.5]),
    breaker_failures=st.sampled_from([1, 3, 10]),
    recovery=st.sampled_from(["auto", "manual"]),
)


class Examiner:
    """Perform the steps of a session and check every invariant."""

    def __init__(self, config: ApplicationConfig, cursor: str | None, chance: random.Random) -> None:
        self.config = config
        self.session = Session(config, cursor=cursor, random=chance.random)
        self.session.walk.moved = self._moved
        self.now = 1000.0
        self.durable = cursor
        self.base = config.poll_interval_ms / 1000
        self.least = self.base * (1 - config.poll_jitter) - 1e-6
        self.edges: Counter[tuple[State, State]] = Counter()
        self.polls: list[float] = []
        self.free = False  # the next poll may be early: poll-now, a full page, signals by long poll
        self.retry = False  # … or it is the one retry after a refresh
        self.lost = False  # … or the first one after a lost connection
        self.still = 0  # steps since time last advanced
        self.requests_at: dict[type, float] = {}

    def _moved(self, old: State, new: State) -> None:
        assert new in TRANSITIONS[old]
        self.edges[old, new] += 1

    def step(self) -> steps.Step:
        step = self.session.next_step(self.now)
        self.still += 1
        assert self.still < 12 or self.free, "busy loop"
        if not isinstance(step, steps.Wait):
            assert self.session.next_step(self.now) is step, "a step stays current"
        getattr(self, "_on_" + type(step).__name__.lower())(step)
        return step

    def _on_wait(self, step: steps.Wait) -> None:
        assert step.until > self.now
        longest = max(3600.0, self.base * (1 + self.config.poll_jitter)) + 2 * self.base
        if not math.isinf(step.until):
            assert step.until - self.now <= longest + 1e-6
            assert self.session.next_poll_at == step.until
        else:
            assert self.session.breaker_open and self.config.recovery == "manual"
            assert self.session.next_poll_at is None

    def _on_poll(self, step: steps.Poll) -> None:
        assert step.cursor == self.durable, "the cursor is on disk, with all signals before it"
        assert self.session.state is State.POLLING
        longest = self.config.long_poll_wait_seconds
        assert (
            step.wait == 0
            or min(math.ceil(self.base * (1 + self.config.poll_jitter) / 0.7), longest) <= step.wait <= longest
        )
        assert step.wait == 0 or self.config.poll_mode != "interval"
        if self.polls and not self.free:
            if not self.retry:
                least = min(self.least, SOONEST_RETURN) if self.lost else self.least
                assert self.now - self.polls[-1] >= least, "two polls within an interval"
            if len(self.polls) >= 3:
                assert self.now - self.polls[-3] >= 2 * self.base - 1e-6, "four polls within two intervals"
        self.polls.append(self.now)
        self.free = self.retry = self.lost = False

    def _on_deliver(self, step: steps.Deliver) -> None:
        assert self.session.state is (State.PROCESSING if step.signals else State.POLLING)

    def _on_flushacks(self, step: steps.FlushAcks) -> None:
        assert self.session.state in (State.ACKNOWLEDGING, State.POLLING)

    def _on_refresh(self, step: steps.Refresh) -> None:
        assert self.session.state is State.REFRESHING

    def _on_resync(self, step: steps.Resync) -> None:
        assert self.session.state is State.PROCESSING

    def _on_terminate(self, step: steps.Terminate) -> None:
        assert self.session.state is State.TERMINATED

    def pass_time(self, seconds: float) -> None:
        if seconds > 0:
            self.now += seconds
            self.still = 0

    def receive(self, event: ev.Event, step: steps.Step | None = None) -> None:
        """Report an event; with ``step``, as the answer to it."""
        if isinstance(step, steps.Poll) and isinstance(event, ev.Updates) and event.cursor not in (None, step.cursor):
            self.free = (event.full or step.wait > 0) and event.retry_after is None
        if isinstance(step, steps.Deliver):
            if isinstance(event, ev.Delivered):
                self.durable = step.cursor or self.durable
            else:
                self.free = False
        if isinstance(step, steps.Resync) and isinstance(event, ev.Resynced):
            self.durable = None
        if isinstance(step, steps.Refresh) and isinstance(event, ev.TokenRefreshed):
            self.retry = True
        if isinstance(event, ev.PollNow):
            self.free = True
        if isinstance(step, steps.Poll) and isinstance(event, ev.TransportFailed):
            self.lost = self.session.failures == 0
        self.session.receive(event, self.now)
        assert self.session.committed_cursor == self.durable


@settings(max_examples=at_most(200), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data(), CONFIGS, CURSORS, st.booleans(), st.integers(0, 2**32))
def test_invariants_of_random_histories(
    data: st.DataObject, config: ApplicationConfig, cursor: str | None, token_valid: bool, seed: int
) -> None:
    examiner = Examiner(config, cursor, random.Random(seed))
    examiner.receive(ev.Started(token_valid))
    for _ in range(data.draw(st.integers(5, 60), label="steps")):
        step = examiner.step()
        if data.draw(st.integers(0, 9), label="stray") == 0:
            stray = data.draw(STRAY)
            if not isinstance(stray, answers_to(step)):
                examiner.receive(stray)
        if isinstance(step, steps.Wait):
            if math.isinf(step.until) or data.draw(st.integers(0, 9), label="poll now") == 0:
                examiner.pass_time(data.draw(st.sampled_from([0.0, 0.3, 2.0])))
                examiner.receive(ev.PollNow())
            else:
                examiner.pass_time(step.until - examiner.now)
                examiner.receive(ev.Timer())
            continue
        examiner.pass_time(data.draw(st.sampled_from([0.0, 0.0, 0.01, 1.0, 25.0])))
        if isinstance(step, steps.Poll) and data.draw(st.integers(0, 19), label="give up") == 0:
            examiner.receive(ev.PollNow())
        else:
            examiner.receive(data.draw(ANSWERS[type(step)]), step)
    reason = data.draw(st.sampled_from([ev.DeviceRevoked("x"), ev.RefreshRefused("x")]))
    examiner.receive(reason)
    assert isinstance(examiner.step(), steps.Terminate)


def answers_to(step: steps.Step) -> tuple[type, ...]:
    """Return the event types that answer a step; stray events must be of other types."""
    kinds: dict[type, tuple[type, ...]] = {
        steps.Poll: ev.POLL_ANSWERS,
        steps.Deliver: (ev.Delivered, ev.DeliverFailed),
        steps.FlushAcks: (ev.AcksSent, ev.AcksFailed),
        steps.Refresh: (ev.TokenRefreshed, ev.RefreshFailed),
        steps.Resync: (ev.Resynced, ev.ResyncFailed),
    }
    return kinds.get(type(step), ())


def chance_answer(step: steps.Step, chance: random.Random, faulty: float) -> ev.Event:
    """Return a random answer without hypothesis, for long runs."""
    bad = chance.random() < faulty
    retry_after = chance.choice([None, None, 0.0, 3.0, 30.0, 900.0])
    cursor = chance.choice([None, "c", f"c{chance.randrange(1000)}"])
    match step:
        case steps.Poll():
            good = [ev.NoUpdates(cursor), ev.NoUpdates(None), ev.Updates(cursor, SIGNALS, False)]
            resync = ev.Updates(cursor, (ResyncRequired(1),), False)
            faults = [ev.TokenExpired(), ev.CursorExpired(), ev.ServerBusy(503, retry_after), ev.Refused(400, "", 0, "no"),
                      ev.BadAnswer("html"), ev.TransportFailed("down"), resync]  # fmt: skip
            return chance.choice(faults if bad else good)
        case steps.Deliver():
            return ev.DeliverFailed("full") if bad else ev.Delivered()
        case steps.FlushAcks():
            return ev.AcksFailed("x", retry_after) if bad else ev.AcksSent()
        case steps.Refresh():
            return ev.RefreshFailed("x", retry_after) if bad else ev.TokenRefreshed()
        case _:
            return ev.ResyncFailed("x", retry_after) if bad else ev.Resynced()


@pytest.mark.parametrize("seed", range(20))
def test_the_default_configuration_makes_at_most_three_requests_in_ten_seconds(seed: int) -> None:
    """A simulated day of random faults, without full pages and poll-now; counted in every window."""
    chance = random.Random(seed)
    examiner = Examiner(ApplicationConfig(), None, chance)
    examiner.receive(ev.Started(token_valid=seed % 2 == 0))
    refreshes: list[float] = []
    while examiner.now < 1000.0 + 86_400 and len(examiner.polls) < 4000:
        step = examiner.step()
        if isinstance(step, steps.Wait):
            examiner.pass_time(step.until - examiner.now)
            examiner.receive(ev.Timer())
            continue
        if isinstance(step, steps.Refresh):
            refreshes.append(examiner.now)
        examiner.pass_time(chance.choice([0.0, 0.02, 0.02, 3.0]))
        faulty = 0.1 if examiner.now % 7200 < 3600 else 0.6
        examiner.receive(chance_answer(step, chance, faulty), step)
    for times in (examiner.polls, refreshes):
        assert all(fourth - first >= 10.0 - 1e-6 for first, fourth in zip(times, times[3:], strict=False))
    assert all(later - earlier >= 4.5 - 1e-6 for earlier, later in pairwise(refreshes))
    assert len(examiner.polls) > 500, "and it keeps polling"


def test_random_histories_take_every_edge() -> None:
    """The random histories cover the whole diagram."""
    edges: Counter[tuple[State, State]] = Counter()
    for seed in range(40):
        chance = random.Random(seed)
        config = attrs.evolve(ApplicationConfig(), poll_mode=chance.choice(["interval", "long-poll", "adaptive"]))
        examiner = Examiner(config, "c", chance)
        examiner.receive(ev.Started(token_valid=chance.random() < 0.5))
        for _ in range(200):
            step = examiner.step()
            if isinstance(step, steps.Wait):
                examiner.pass_time(step.until - examiner.now)
                examiner.receive(ev.Timer())
            else:
                examiner.pass_time(0.02)
                examiner.receive(chance_answer(step, chance, 0.4), step)
        examiner.receive(ev.DeviceRevoked("x") if seed % 2 else ev.RefreshRefused("x"))
        edges += examiner.edges
    assert set(edges) == {(old, new) for old in State for new in TRANSITIONS[old]}


# --- a fleet -----------------------------------------------------------------------------------------------


def first_return(chance: random.Random, outage: float) -> float:
    """Run one agent through an outage that begins at 0; return the time from its end to the first request."""
    session = Session(ApplicationConfig(), cursor="c", random=chance.random)
    now = -chance.uniform(30, 60)
    session.receive(ev.Started(True), now)
    while True:
        step = session.next_step(now)
        if isinstance(step, steps.Wait):
            now = step.until
            event: ev.Event = ev.Timer()
        elif isinstance(step, steps.Poll):
            if now >= outage:
                return now - outage
            event = ev.TransportFailed("down") if now >= 0 else ev.NoUpdates(None)
        else:
            event = ev.AcksSent()
        session.receive(event, now)


@pytest.mark.parametrize(("minutes", "most"), [(2, 2.8), (5, 2.0), (15, 3.2), (30, 2.0), (60, 2.0)])
def test_a_fleet_returns_spread_over_time(minutes: int, most: float) -> None:
    """2 000 agents return after an outage: the worst ten seconds, compared with the mean until 90 % are back.

    After 15 minutes the first breakers have just opened and their first probes are short: that is a fast recovery,
    not a wave (half the fleet is back within two minutes).
    """
    chance = random.Random(minutes)
    returns = sorted(first_return(chance, minutes * 60) for _ in range(2000))
    assert returns[-1] <= 900 + 5, "the last one: the cap and an interval"
    span = returns[int(len(returns) * 0.9)]
    mean = 0.9 * len(returns) / span * 10
    windows = Counter(int(moment // 10) for moment in returns)
    assert max(windows.values()) <= most * mean
