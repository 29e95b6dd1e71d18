"""The everyday of a session: polls at their interval, pages delivered before they count, acks that hold up nothing."""

from __future__ import annotations

import itertools
import math

import pytest
from session_story import NEWS, S, Story

from certctrl.protocol import events as ev
from certctrl.protocol.session import OUTCOME_WAIT
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Refresh, Wait

# --- the everyday ------------------------------------------------------------------------------------------


def test_polling_without_news() -> None:
    story = Story(cursor="c1")
    assert story.poll() == Poll("c1", 20, 0)
    story.tell(ev.NoUpdates("c1"))
    assert story.wait() == 5.0
    assert story.next() == FlushAcks(), "acks go right before the next poll"
    story.tell(ev.AcksSent())
    assert story.next() == Poll("c1", 20, 0)
    assert story.path == [S.INITIALIZING, S.POLLING, S.POLLING]
    assert (story.session.last_poll_code, story.session.last_poll_text) == (204, "204 No Content")


def test_a_step_stands_until_its_event_arrives() -> None:
    story = Story()
    assert story.next() is story.next()
    story.tell(ev.AcksSent())
    poll = story.next()
    story.now += 100
    story.tell(ev.Timer())
    story.tell(ev.Delivered())
    story.tell(ev.TokenRefreshed())
    assert story.next() is poll


def test_the_first_poll_is_spread() -> None:
    assert Story(first_poll_spread_seconds=5.0).wait() == 2.5
    late = Story(first_poll_spread_seconds=5.0, token_valid=False)
    assert late.wait() == 2.5
    assert late.next() == Refresh(), "the spread is for the first request, whichever it is"


def test_nothing_happens_before_the_start() -> None:
    story = Story(start=False)
    for event in (ev.PollNow(), ev.Timer(), ev.NoUpdates("c"), ev.Delivered()):
        story.tell(event)
        assert story.next() == Wait(math.inf, "not started")
    assert story.session.next_poll_at is None
    story.tell(ev.Started(True))
    story.tell(ev.Started(False))
    assert story.session.state is S.POLLING


def test_a_204_moves_the_cursor_to_disk() -> None:
    story = Story(cursor="c1")
    story.answer(ev.NoUpdates("c2"))
    assert story.session.seen_cursor == "c2"
    assert story.session.committed_cursor == "c1"
    assert story.deliver() == Deliver("c2", ())
    assert story.session.state is S.POLLING
    assert story.wait() == 5.0
    assert story.poll().cursor == "c2"
    story.tell(ev.NoUpdates(None))
    assert story.wait() == 5.0
    assert story.poll().cursor == "c2", "no ETag: the last one stays"


def test_a_page() -> None:
    story = Story(cursor="c1")
    assert story.news("c2") == Deliver("c2", NEWS, OUTCOME_WAIT)
    assert story.wait() == 5.0
    assert story.poll().cursor == "c2"
    assert story.path == [S.INITIALIZING, S.POLLING, S.PROCESSING, S.ACKNOWLEDGING, S.POLLING]
    assert story.session.last_poll_text == "200 OK, 1 signal"
    assert story.session.cursor_at == story.session.last_answer_at == 1000.0


def test_a_page_without_a_cursor_keeps_the_last_one() -> None:
    story = Story(cursor="c1")
    story.news(None, full=True)
    assert story.wait() == 5.0, "the same page would come again: no hurry"
    assert story.poll().cursor == "c1"


def test_a_full_page_is_followed_at_once() -> None:
    story = Story()
    for n in range(3):
        story.news(f"c{n}", full=True)
        assert isinstance(story.next(), Poll), "and acks are not flushed twice in a row"
    story.news("c99", full=False)
    assert story.wait() >= 5.0


def test_full_pages_stay_within_what_the_plane_lets_in() -> None:
    story = Story()
    started = []
    for n in range(20):
        while isinstance(story.next(), Wait):
            story.wait()
        started.append(story.now)
        story.news(f"c{n}", full=True)
    for first, later in itertools.product(range(20), range(20)):
        if later > first:
            assert later - first + 1 <= 5 + (started[later] - started[first]), "a bucket of five, one a second"


def test_a_full_page_that_does_not_move_on_is_not_followed_at_once() -> None:
    story = Story(cursor="c1")
    story.news("c1", full=True)
    assert story.wait() == 5.0


def test_the_server_may_slow_us_down_although_all_is_well() -> None:
    story = Story()
    story.answer(ev.NoUpdates(None, retry_after=30.0))
    assert 30.0 <= story.wait() <= 33.0
    story.answer(ev.Updates("c", NEWS, True, retry_after=60.0))
    story.deliver()
    story.flush()
    assert 60.0 <= story.wait() <= 66.0
    story.answer(ev.NoUpdates(None))
    assert story.wait() == 5.0, "one-shot"
    assert story.session.last_retry_after == 60.0


def test_acks_are_flushed_again_after_a_wait() -> None:
    story = Story()
    story.news("c1")
    assert story.wait() == 5.0
    assert story.next() == FlushAcks(), "handlers have finished meanwhile"


@pytest.mark.parametrize(
    ("event", "code", "text"),
    [
        (ev.NoUpdates(None, status=200), 200, "200 OK, no signals"),
        (ev.Updates("c", NEWS * 2, False), 200, "200 OK, 2 signals"),
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
def test_what_status_shows_of_an_answer(event: ev.Event, code: int | None, text: str) -> None:
    story = Story()
    story.answer(event)
    assert (story.session.last_poll_code, story.session.last_poll_text) == (code, text)
    assert (story.session.last_answer_at is not None) == isinstance(event, ev.NoUpdates | ev.Updates)


# --- delivery ------------------------------------------------------------------------------------------------


def test_what_cannot_be_delivered_comes_again() -> None:
    story = Story(cursor="c1")
    pauses = []
    for _ in range(4):
        story.answer(ev.Updates("c2", NEWS, False))
        assert story.next() == Deliver("c2", NEWS, OUTCOME_WAIT)
        story.tell(ev.DeliverFailed("disk full"))
        assert story.session.state is S.ERROR
        assert story.session.seen_cursor == "c1"
        pauses.append(story.wait())
        assert story.session.failures == 0, "the disk's trouble does not open the plane's breaker"
    assert pauses == [5.0, 7.5, 12.5, 22.5]
    assert story.poll().cursor == "c1"
    story.tell(ev.Updates("c2", NEWS, False))
    story.deliver()
    story.flush()
    assert story.wait() == 5.0


def test_a_204_that_cannot_be_saved() -> None:
    story = Story(cursor="c1")
    story.answer(ev.NoUpdates("c2"))
    assert story.next() == Deliver("c2", ())
    story.tell(ev.DeliverFailed("read-only"))
    assert story.session.state is S.ERROR
    assert story.wait() == 5.0
    assert story.poll().cursor == "c1"


# --- acks ------------------------------------------------------------------------------------------------------


def test_failing_acks_back_off_and_do_not_hold_up_polling() -> None:
    story = Story()
    flushed_at, polled_at = [], []
    while len(polled_at) < 12:
        step = story.next()
        if isinstance(step, Wait):
            story.wait()
        elif isinstance(step, FlushAcks):
            flushed_at.append(story.now)
            story.tell(ev.AcksFailed("503"))
            assert story.session.state is S.ERROR
        else:
            assert isinstance(step, Poll)
            polled_at.append(story.now)
            story.tell(ev.NoUpdates(None))
    assert [b - a for a, b in itertools.pairwise(polled_at)] == [5.0] * 11
    assert len(flushed_at) < 6
    assert story.session.failures == 0


def test_acks_wait_as_long_as_the_server_says() -> None:
    story = Story()
    assert story.next() == FlushAcks()
    story.tell(ev.AcksFailed("429", 60.0))
    for _ in range(12):
        assert isinstance(story.next(), Poll)
        story.tell(ev.NoUpdates(None))
        assert story.wait() == 5.0
    assert story.next() == FlushAcks()


def test_the_outcomes_of_a_page_are_waited_for_unless_more_pages_come() -> None:
    story = Story()
    for cursor, full, outcome_wait in (("c1", True, 0.0), ("c2", False, OUTCOME_WAIT), ("c3", True, 0.0)):
        assert story.news(cursor, full=full) == Deliver(cursor, NEWS, outcome_wait)
        story.wait() if not full else None


def test_acks_of_a_page_that_fail_are_left_for_later() -> None:
    story = Story()
    story.answer(ev.Updates("c1", NEWS, True))
    story.deliver()
    assert story.next() == FlushAcks()
    story.tell(ev.AcksFailed("down"))
    assert story.session.state is S.ERROR
    assert story.next() == Poll("c1", 20, 0), "the next page of a full one does not wait for acks"
    story.tell(ev.Updates("c2", NEWS, True))
    story.deliver()
    assert story.session.state is S.ACKNOWLEDGING
    assert story.next() == Poll("c2", 20, 0)
    assert story.path[-3:] == [S.PROCESSING, S.ACKNOWLEDGING, S.POLLING]
