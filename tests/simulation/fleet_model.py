"""Ten thousand agents as pure sessions, and a plane that holds their polls, stops, dies and comes back.

Agents share only what happens to the plane, so each one runs separately and their polls are added up.
"""

from __future__ import annotations

import random
from collections import Counter
from math import inf

import attrs

from certctrl.model.config import ApplicationConfig
from certctrl.model.signals import CertRenewed
from certctrl.plane.pace import Pace
from certctrl.protocol import events, steps
from certctrl.protocol.session import Session

AGENTS = 10_000
STARTED = 60.0
"""Seconds before the event within which the agents have started."""
ANSWER_SECONDS = 1.6
"""Seconds in which a plane answers all held polls (10 000, measured)."""
SIGNALS = (CertRenewed(1, 7),)


@attrs.frozen(kw_only=True)
class Story:
    """What happens to the plane from moment 0 on."""

    config: ApplicationConfig
    away: float = 0.0
    """Seconds for which nothing listens."""
    in_order: bool = False
    """Whether the plane answers its polls before."""
    signal: bool = False
    """Whether all agents get a signal."""
    watched: float = 300.0
    """Seconds after which the agents are no longer watched."""


@attrs.define(eq=False, slots=False)
class Fleet:
    """The polls that reach the plane, and those that find it closed."""

    story: Story
    chance: random.Random
    arrivals: Counter[int] = attrs.field(factory=Counter)
    """Second → polls."""
    returns: list[float] = attrs.field(factory=list)
    """Seconds from the plane's return to each agent's first poll."""
    polls_together: int = 0
    """Polls that followed the first one after the return within half the wait of a long poll."""
    refused: int = 0
    """Polls while nothing listened."""
    ended: int = 0
    """Sessions that ended."""

    def run(self, agents: int = AGENTS) -> Fleet:
        """Run all agents."""
        self.pace = Pace(self.chance.random)
        for _ in range(agents):
            self._agent()
        return self

    def _agent(self) -> None:
        story = self.story
        session = Session(story.config, cursor="c", random=self.chance.random)
        now, self.seen, self.first = -self.chance.uniform(0.1, 1.0) * STARTED, not story.signal, inf
        session.receive(events.Started(True), now)
        while self.first == inf or now < story.watched:
            step = session.next_step(now)
            if isinstance(step, steps.Terminate):
                self.ended += 1
                return
            now, event = self._performed(step, now)
            session.receive(event, now)

    def _performed(self, step: steps.Step, now: float) -> tuple[float, events.Event]:
        match step:
            case steps.Wait():
                return step.until, events.Timer()
            case steps.Poll():
                return self._polled(step, now)
            case steps.Deliver():
                return now, events.Delivered()
            case _:
                return now, events.AcksSent()

    def _polled(self, poll: steps.Poll, now: float) -> tuple[float, events.Event]:
        story = self.story
        if 0 <= now < story.away:
            self.refused += 1
            return now, events.TransportFailed("connection refused")
        self._note(now)
        end = now + self.pace.hold_seconds(poll.wait)
        if not self.seen and (now >= 0 or end > 0):
            self.seen = True
            return max(now, 0.0) + self.chance.uniform(0, ANSWER_SECONDS), events.Updates("d", SIGNALS, False)
        if story.away and now < 0 < end:
            if story.in_order:
                answered = -self.chance.uniform(0, ANSWER_SECONDS)
                return max(now, answered), events.NoUpdates(None, retry_after=float(self.pace.return_seconds()))
            return 0.0, events.TransportFailed("connection reset")
        return end, events.NoUpdates(None)

    def _note(self, now: float) -> None:
        """Count a poll that has reached the plane."""
        self.arrivals[int(now // 1)] += 1
        if now < self.story.away:
            return
        if self.first == inf:
            self.first = now
            self.returns.append(now - self.story.away)
        elif now - self.first < self.story.config.long_poll_wait_seconds / 2:
            self.polls_together += 1

    def worst(self, first: float, last: float) -> int:
        """Return the most polls of one second in a span."""
        return max(self.arrivals[second] for second in range(int(first), int(last)))

    def mean(self, first: float, last: float) -> float:
        """Return the polls per second of a span."""
        return sum(self.arrivals[second] for second in range(int(first), int(last))) / (int(last) - int(first))
