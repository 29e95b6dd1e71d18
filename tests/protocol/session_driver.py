"""Drive a session: answer its steps and check the next ones, on a simulated clock."""

from __future__ import annotations

from typing import Any

import attrs

from certctrl.model.config import ApplicationConfig
from certctrl.model.signals import CertRenewed, Signal
from certctrl.protocol import events as ev
from certctrl.protocol.session import Session
from certctrl.protocol.state import State
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Step, Wait

SIGNALS = (CertRenewed(1, 7),)
S = State


class Driver:
    """A session with its clock and its path through the states; ``random()`` is 0.5, so that there is no jitter."""

    def __init__(self, *, cursor: str | None = None, token_valid: bool = True, start: bool = True, **settings: Any):
        config = attrs.evolve(ApplicationConfig(first_poll_spread_seconds=0), **settings)
        self.session = Session(config, cursor=cursor, random=lambda: 0.5)
        self.now = 1000.0
        self.path = [self.session.state]
        self.session.walk.moved = lambda old, new: self.path.append(new)
        if start:
            self.receive(ev.Started(token_valid))

    def receive(self, event: ev.Event) -> None:
        self.session.receive(event, self.now)

    def next(self) -> Step:
        return self.session.next_step(self.now)

    def wait(self) -> float:
        """Perform the next step, a wait, and return its length."""
        step = self.next()
        assert isinstance(step, Wait), step
        length, self.now = step.until - self.now, step.until
        self.receive(ev.Timer())
        return round(length, 6)

    def poll(self) -> Poll:
        """Perform the next step, a poll, after sending acks if due."""
        step = self.next()
        if isinstance(step, FlushAcks):
            self.receive(ev.AcksSent())
            step = self.next()
        assert isinstance(step, Poll), step
        return step

    def answer(self, event: ev.Event) -> None:
        """Poll, and answer the poll."""
        self.poll()
        self.receive(event)

    def fail(self) -> None:
        self.answer(ev.TransportFailed("down"))

    def deliver(self) -> Deliver:
        step = self.next()
        assert isinstance(step, Deliver), step
        self.receive(ev.Delivered())
        return step

    def flush(self) -> None:
        assert self.next() == FlushAcks()
        self.receive(ev.AcksSent())

    def page(self, cursor: str | None, signals: tuple[Signal, ...] = SIGNALS, *, full: bool = False) -> Deliver:
        """Poll, get a page, deliver it and send acks."""
        self.answer(ev.Updates(cursor, signals, full))
        page = self.deliver()
        self.flush()
        return page
