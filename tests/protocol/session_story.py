"""A session told as a story: what the plane answers, what the session does next, on a clock of its own."""

from __future__ import annotations

import attrs

from certctrl.model.config import ApplicationConfig
from certctrl.model.signals import CertRenewed, Signal
from certctrl.protocol import events as ev
from certctrl.protocol.session import Session
from certctrl.protocol.state import State
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Step, Wait

NEWS = (CertRenewed(1, 7),)
S = State


class Story:
    """A session with its clock and its path through the diagram; chance is 1/2, so that jitter is nothing."""

    def __init__(self, *, cursor: str | None = None, token_valid: bool = True, start: bool = True, **settings: object):
        config = attrs.evolve(ApplicationConfig(first_poll_spread_seconds=0), **settings)
        self.session = Session(config, cursor=cursor, random=lambda: 0.5)
        self.now = 1000.0
        self.path = [self.session.state]
        self.session.walk.moved = lambda old, new: self.path.append(new)
        if start:
            self.tell(ev.Started(token_valid))

    def tell(self, event: ev.Event) -> None:
        self.session.receive(event, self.now)

    def next(self) -> Step:
        return self.session.next_step(self.now)

    def wait(self) -> float:
        """Take the wait that is due and return its length."""
        step = self.next()
        assert isinstance(step, Wait), step
        length, self.now = step.until - self.now, step.until
        self.tell(ev.Timer())
        return round(length, 6)

    def poll(self) -> Poll:
        """Take the flush before the poll, and the poll."""
        step = self.next()
        if isinstance(step, FlushAcks):
            self.tell(ev.AcksSent())
            step = self.next()
        assert isinstance(step, Poll), step
        return step

    def answer(self, event: ev.Event) -> None:
        """Poll and be answered."""
        self.poll()
        self.tell(event)

    def fail(self) -> None:
        self.answer(ev.TransportFailed("down"))

    def deliver(self) -> Deliver:
        step = self.next()
        assert isinstance(step, Deliver), step
        self.tell(ev.Delivered())
        return step

    def flush(self) -> None:
        assert self.next() == FlushAcks()
        self.tell(ev.AcksSent())

    def news(self, cursor: str | None, signals: tuple[Signal, ...] = NEWS, *, full: bool = False) -> Deliver:
        """Poll, get a page, deliver it, flush acks."""
        self.answer(ev.Updates(cursor, signals, full))
        page = self.deliver()
        self.flush()
        return page
