"""A session in normal operation: the interval of polls, delivery before the cursor moves, acks without delay."""

from __future__ import annotations

import itertools
import math

import pytest
from session_driver import SIGNALS, Driver, S

from certctrl.protocol import events as ev
from certctrl.protocol.session import OUTCOME_WAIT
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Refresh, Wait

# --- polls -------------------------------------------------------------------------------------------------


def test_polling_without_updates() -> None:
    driver = Driver(cursor="c1")
    assert (driver.session.seen_cursor, driver.session.committed_cursor) == ("c1", "c1")
    assert driver.poll() == Poll("c1", 20, 0)
    driver.receive(ev.NoUpdates("c1"))
    assert driver.wait() == 5.0
    assert driver.next() == FlushAcks(), "acks are sent right before the next poll"
    driver.receive(ev.AcksSent())
    assert driver.next() == Poll("c1", 20, 0)
    assert driver.session.last_poll_at == driver.now
    assert driver.path == [S.INITIALIZING, S.POLLING, S.POLLING]
    assert (driver.session.last_poll_code, driver.session.last_poll_text) == (204, "204 No Content")


def test_a_step_stays_current_until_its_event() -> None:
    driver = Driver()
    assert driver.next() is driver.next()
    driver.receive(ev.AcksSent())
    poll = driver.next()
    driver.now += 100
    driver.receive(ev.Timer())
    driver.receive(ev.Delivered())
    driver.receive(ev.TokenRefreshed())
    assert driver.next() is poll


def test_the_first_poll_is_spread() -> None:
    assert Driver(first_poll_spread_seconds=5.0).wait() == 2.5
    late = Driver(first_poll_spread_seconds=5.0, token_valid=False)
    assert late.wait() == 2.5
    assert late.next() == Refresh(), "the spread applies to any first request"


def test_nothing_happens_before_the_start() -> None:
    driver = Driver(start=False)
    for event in (ev.PollNow(), ev.Timer(), ev.NoUpdates("c"), ev.Delivered()):
        driver.receive(event)
        assert driver.next() == Wait(math.inf, "not started")
    assert (driver.session.next_poll_at, driver.session.last_poll_at, driver.session.last_poll_text) == (None, None, "")
    driver.receive(ev.Started(True))
    driver.receive(ev.Started(False))
    assert driver.session.state is S.POLLING


def test_a_204_moves_the_cursor_to_disk() -> None:
    driver = Driver(cursor="c1")
    driver.answer(ev.NoUpdates("c2"))
    assert driver.session.seen_cursor == "c2"
    assert driver.session.committed_cursor == "c1"
    assert driver.deliver() == Deliver("c2", ())
    assert driver.session.state is S.POLLING
    assert driver.wait() == 5.0
    assert driver.poll().cursor == "c2"
    driver.receive(ev.NoUpdates(None))
    assert driver.wait() == 5.0
    assert driver.poll().cursor == "c2", "without an ETag, the last cursor stays"


def test_a_page() -> None:
    driver = Driver(cursor="c1")
    assert driver.page("c2") == Deliver("c2", SIGNALS, OUTCOME_WAIT)
    assert driver.wait() == 5.0
    assert driver.poll().cursor == "c2"
    assert driver.path == [S.INITIALIZING, S.POLLING, S.PROCESSING, S.ACKNOWLEDGING, S.POLLING]
    assert driver.session.last_poll_text == "200 OK, 1 signal"
    assert driver.session.cursor_at == driver.session.last_answer_at == 1000.0


def test_a_page_without_a_cursor_keeps_the_last_one() -> None:
    driver = Driver(cursor="c1")
    driver.page(None, full=True)
    assert driver.wait() == 5.0, "the same page would come again"
    assert driver.poll().cursor == "c1"


def test_the_poll_after_a_full_page_is_immediate() -> None:
    driver = Driver()
    for n in range(3):
        driver.page(f"c{n}", full=True)
        assert isinstance(driver.next(), Poll), "acks are not sent twice in a row"
    driver.page("c99", full=False)
    assert driver.wait() >= 5.0


def test_full_pages_stay_within_the_rate_limit() -> None:
    driver = Driver()
    started = []
    for n in range(20):
        while isinstance(driver.next(), Wait):
            driver.wait()
        started.append(driver.now)
        driver.page(f"c{n}", full=True)
    for first, later in itertools.product(range(20), range(20)):
        if later > first:
            assert later - first + 1 <= 5 + (started[later] - started[first]), "a bucket of five, one per second"


def test_the_poll_after_a_full_page_with_the_same_cursor_waits() -> None:
    driver = Driver(cursor="c1")
    driver.page("c1", full=True)
    assert driver.wait() == 5.0


def test_a_successful_answer_may_request_a_delay() -> None:
    driver = Driver()
    driver.answer(ev.NoUpdates(None, retry_after=30.0))
    assert 30.0 <= driver.wait() <= 33.0
    driver.answer(ev.Updates("c", SIGNALS, True, retry_after=60.0))
    driver.deliver()
    driver.flush()
    assert 60.0 <= driver.wait() <= 66.0
    driver.answer(ev.NoUpdates(None))
    assert driver.wait() == 5.0, "the delay applies once"
    assert driver.session.last_retry_after == 60.0


def test_acks_are_sent_again_after_a_wait() -> None:
    driver = Driver()
    driver.page("c1")
    assert driver.wait() == 5.0
    assert driver.next() == FlushAcks(), "handlers may have finished during the wait"


@pytest.mark.parametrize(
    ("event", "code", "text"),
    [
        (ev.NoUpdates(None, status=200), 200, "200 OK, no signals"),
        (ev.Updates("c", SIGNALS * 2, False), 200, "200 OK, 2 signals"),
        (ev.TokenExpired(), 401, "401 access token expired"),
        (ev.CursorExpired(), 409, "409 cursor expired"),
        (ev.ServerBusy(503), 503, "503 server busy"),
        (ev.ServerBusy(429, 1.0, "RATE_LIMITED"), 429, "429 RATE_LIMITED"),
        (ev.Refused(400, "", 0, "bad limit"), 400, "400 bad limit"),
        (ev.BadAnswer("HTML", status=502), 502, "unusable answer: HTML"),
        (ev.BadAnswer("too large"), None, "unusable answer: too large"),
        (ev.TransportFailed("no route"), None, "no answer: no route"),
    ],
)
def test_status_texts_of_answers(event: ev.Event, code: int | None, text: str) -> None:
    driver = Driver()
    driver.answer(event)
    assert (driver.session.last_poll_code, driver.session.last_poll_text) == (code, text)
    assert (driver.session.last_answer_at is not None) == isinstance(event, ev.NoUpdates | ev.Updates)


# --- delivery ------------------------------------------------------------------------------------------------


def test_a_page_that_cannot_be_saved_comes_again() -> None:
    driver = Driver(cursor="c1")
    pauses = []
    for _ in range(4):
        driver.answer(ev.Updates("c2", SIGNALS, False))
        assert driver.next() == Deliver("c2", SIGNALS, OUTCOME_WAIT)
        driver.receive(ev.DeliverFailed("disk full"))
        assert driver.session.state is S.ERROR
        assert driver.session.seen_cursor == "c1"
        pauses.append(driver.wait())
        assert driver.session.failures == 0, "a disk problem does not open the breaker"
    assert pauses == [5.0, 7.5, 12.5, 22.5]
    assert driver.poll().cursor == "c1"
    driver.receive(ev.Updates("c2", SIGNALS, False))
    driver.deliver()
    driver.flush()
    assert driver.wait() == 5.0
    driver.answer(ev.Updates("c3", SIGNALS, False))
    driver.next()
    driver.receive(ev.DeliverFailed("disk full"))
    assert driver.wait() == 5.0, "a saved page ends the backoff"


def test_a_204_that_cannot_be_saved() -> None:
    driver = Driver(cursor="c1")
    driver.answer(ev.NoUpdates("c2"))
    assert driver.next() == Deliver("c2", ())
    driver.receive(ev.DeliverFailed("read-only"))
    assert driver.session.state is S.ERROR
    assert driver.wait() == 5.0
    assert driver.poll().cursor == "c1"


# --- acks ------------------------------------------------------------------------------------------------------


def test_failing_acks_back_off_without_delaying_polls() -> None:
    driver = Driver()
    flushed_at, polled_at = [], []
    while len(polled_at) < 12:
        step = driver.next()
        if isinstance(step, Wait):
            driver.wait()
        elif isinstance(step, FlushAcks):
            flushed_at.append(driver.now)
            driver.receive(ev.AcksFailed("503"))
            assert driver.session.state is S.ERROR
        else:
            assert isinstance(step, Poll)
            polled_at.append(driver.now)
            driver.receive(ev.NoUpdates(None))
    assert [b - a for a, b in itertools.pairwise(polled_at)] == [5.0] * 11
    assert [at - flushed_at[0] for at in flushed_at] == [0, 5, 15, 30, 55], (
        "with the next poll after 5, 7.5, 12.5, 22.5 s"
    )
    assert driver.session.failures == 0


def test_sent_acks_end_the_backoff_of_failed_ones() -> None:
    driver = Driver(poll_interval_ms=100)
    for event in (ev.AcksFailed("down"), ev.AcksSent(), ev.AcksFailed("down")):
        while driver.next() != FlushAcks():
            driver.answer(ev.NoUpdates(None)) if isinstance(driver.next(), Poll) else driver.wait()
        driver.receive(event)
    assert [driver.session.may_send_acks(driver.now + pause) for pause in (0.05, 0.11)] == [False, True]


def test_acks_of_a_page_are_sent_as_soon_as_the_backoff_ends() -> None:
    driver = Driver(poll_mode="long-poll")
    driver.next()
    driver.receive(ev.AcksFailed("down"))
    driver.poll()
    driver.now += 5.0
    driver.receive(ev.Updates("c1", SIGNALS, False))
    driver.deliver()
    assert (driver.next(), driver.session.state) == (FlushAcks(), S.ACKNOWLEDGING)


def test_acks_obey_retry_after() -> None:
    driver = Driver()
    assert driver.next() == FlushAcks()
    assert driver.session.may_send_acks(driver.now)
    driver.receive(ev.AcksFailed("429", 60.0))
    allowed = [driver.session.may_send_acks(driver.now + pause) for pause in (0.0, 59.9, 60.0, 61.0)]
    assert allowed == [False, False, True, True]
    for _ in range(12):
        assert isinstance(driver.next(), Poll)
        driver.receive(ev.NoUpdates(None))
        assert driver.wait() == 5.0
    assert driver.next() == FlushAcks()


def test_the_session_waits_for_outcomes_unless_the_page_is_full() -> None:
    driver = Driver()
    for cursor, full, outcome_wait in (("c1", True, 0.0), ("c2", False, OUTCOME_WAIT), ("c3", True, 0.0)):
        assert driver.page(cursor, full=full) == Deliver(cursor, SIGNALS, outcome_wait)
        driver.wait() if not full else None


def test_failed_acks_of_a_page_are_sent_later() -> None:
    driver = Driver()
    driver.answer(ev.Updates("c1", SIGNALS, True))
    driver.deliver()
    assert driver.next() == FlushAcks()
    driver.receive(ev.AcksFailed("down"))
    assert driver.session.state is S.ERROR
    assert driver.next() == Poll("c1", 20, 0), "the poll after a full page does not wait for acks"
    driver.receive(ev.Updates("c2", SIGNALS, True))
    driver.deliver()
    assert driver.session.state is S.ACKNOWLEDGING
    assert driver.next() == Poll("c2", 20, 0)
    assert driver.path[-3:] == [S.PROCESSING, S.ACKNOWLEDGING, S.POLLING]
