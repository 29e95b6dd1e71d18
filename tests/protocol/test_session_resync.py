"""After an expired cursor, the session resyncs before the next poll, with backoff if it repeats."""

from __future__ import annotations

import itertools

from session_driver import SIGNALS, Driver, S

from certctrl.model.signals import ResyncRequired
from certctrl.protocol import events as ev
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Resync, Wait


def test_an_expired_cursor() -> None:
    driver = Driver(cursor="c1")
    driver.answer(ev.CursorExpired())
    assert driver.next() == Resync()
    assert driver.session.state is S.PROCESSING
    assert driver.session.failures == 0
    driver.now += 2
    driver.receive(ev.Resynced())
    assert driver.session.seen_cursor is driver.session.committed_cursor is None
    assert driver.session.cursor_at == driver.now
    driver.flush()
    assert driver.wait() == 3.0, "one interval after the refused poll"
    assert driver.poll().cursor is None
    assert driver.path == [S.INITIALIZING, S.POLLING, S.PROCESSING, S.ACKNOWLEDGING, S.POLLING]


def test_a_requested_resync_keeps_its_cursor() -> None:
    driver = Driver(cursor="c1")
    driver.answer(ev.Updates("c2", (ResyncRequired(1), *SIGNALS), True))
    assert driver.deliver() == Deliver("c2", (ResyncRequired(1), *SIGNALS))
    driver.flush()
    assert driver.poll().cursor == "c2"


def test_a_failed_resync_is_retried_before_the_next_poll() -> None:
    driver = Driver(cursor="c1")
    driver.answer(ev.CursorExpired())
    for n, pause in enumerate((5.0, 7.5, 12.5), start=1):
        assert driver.next() == Resync()
        driver.receive(ev.ResyncFailed("503"))
        assert (driver.session.state, driver.session.failures) == (S.ERROR, n)
        assert driver.wait() == pause
    assert driver.next() == Resync()
    driver.receive(ev.ResyncFailed("503", 60.0))
    assert 60.0 <= driver.wait() <= 66.0
    assert driver.next() == Resync()
    driver.receive(ev.Resynced())
    driver.flush()
    assert driver.poll().cursor is None
    assert driver.session.failures == 0


def test_repeated_resyncs_back_off() -> None:
    driver = Driver(cursor="c")
    started = []
    while len(started) < 6:
        step = driver.next()
        if isinstance(step, Wait):
            driver.wait()
        elif isinstance(step, FlushAcks):
            driver.receive(ev.AcksSent())
        elif isinstance(step, Resync):
            started.append(driver.now)
            driver.receive(ev.Resynced())
        elif isinstance(step, Deliver):
            driver.receive(ev.Delivered())
        else:
            assert isinstance(step, Poll)
            driver.receive(ev.NoUpdates("c") if step.cursor is None else ev.CursorExpired())
    gaps = [round(b - a, 3) for a, b in itertools.pairwise(started)]
    assert gaps == [10 + 7.5, 5 + 12.5, 5 + 22.5, 5 + 42.5, 5 + 82.5], "the backoff, after the polls in between"


def test_a_resync_after_a_successful_poll_is_immediate() -> None:
    driver = Driver(cursor="c1")
    for _ in range(3):
        driver.answer(ev.CursorExpired())
        assert driver.next() == Resync()
        driver.receive(ev.Resynced())
        driver.flush()
        driver.wait()
        driver.page("c2")
        driver.wait()
        driver.answer(ev.NoUpdates(None))
        driver.wait()


def test_a_409_without_a_cursor_is_a_failure() -> None:
    driver = Driver()
    driver.answer(ev.CursorExpired())
    assert (driver.session.state, driver.session.failures) == (S.ERROR, 1)
    assert driver.wait() == 5.0
