"""The session, told as stories: what the plane answers, what the session does next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import attrs
import pytest

from certctrl.model.config import ApplicationConfig
from certctrl.model.signals import CertRenewed, ResyncRequired, Signal
from certctrl.model.status import StopReason
from certctrl.protocol import events as ev
from certctrl.protocol.session import OUTCOME_PATIENCE, Session
from certctrl.protocol.state import State
from certctrl.protocol.steps import (
    Deliver,
    FlushAcks,
    Poll,
    Refresh,
    Resync,
    Step,
    Terminate,
    Wait,
)

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
    story.tell(ev.HighInterest(5))
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
    for event in (ev.PollNow(), ev.Timer(), ev.HighInterest(1), ev.NoUpdates("c"), ev.Delivered()):
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
    assert story.news("c2") == Deliver("c2", NEWS, OUTCOME_PATIENCE)
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


# --- delivery ------------------------------------------------------------------------------------------------


def test_what_cannot_be_delivered_comes_again() -> None:
    story = Story(cursor="c1")
    pauses = []
    for _ in range(4):
        story.answer(ev.Updates("c2", NEWS, False))
        assert story.next() == Deliver("c2", NEWS, OUTCOME_PATIENCE)
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
    for cursor, full, patience in (("c1", True, 0.0), ("c2", False, OUTCOME_PATIENCE), ("c3", True, 0.0)):
        assert story.news(cursor, full=full) == Deliver(cursor, NEWS, patience)
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


# --- tokens ------------------------------------------------------------------------------------------------------


def test_an_expired_token_is_refreshed_once_and_the_poll_retried_once() -> None:
    story = Story(cursor="c1")
    story.answer(ev.TokenExpired())
    assert story.next() == Refresh()
    story.tell(ev.TokenRefreshed())
    assert story.poll() == Poll("c1", 20, 0)
    story.tell(ev.TokenExpired())
    assert (story.session.state, story.session.failures) == (S.ERROR, 1)
    assert story.wait() >= 5.0
    story.answer(ev.TokenExpired())
    assert story.next() == Refresh(), "a new try may refresh once more"
    assert story.path[:5] == [S.INITIALIZING, S.POLLING, S.REFRESHING, S.POLLING, S.ERROR]


def test_the_retry_does_not_hold_up_the_polls_after_it() -> None:
    story = Story()
    for _ in range(3):
        story.answer(ev.NoUpdates(None))
        assert story.wait() == 5.0
    story.answer(ev.TokenExpired())
    story.next()
    story.tell(ev.TokenRefreshed())
    story.answer(ev.NoUpdates(None))
    assert story.wait() == 5.0
    story.answer(ev.NoUpdates(None))
    assert story.wait() == 5.0


def test_a_session_may_start_with_a_refresh() -> None:
    story = Story(token_valid=False)
    assert story.session.state is S.REFRESHING
    assert story.next() == Refresh()
    story.tell(ev.TokenRefreshed())
    story.answer(ev.TokenExpired())
    assert story.session.failures == 1, "it was refreshed a moment ago: no second refresh for this poll"


def test_a_refresh_that_is_not_refused_is_tried_again() -> None:
    story = Story()
    story.answer(ev.TokenExpired())
    pauses = []
    for n in range(1, 5):
        assert story.next() == Refresh()
        story.tell(ev.RefreshFailed("503"))
        assert (story.session.state, story.session.failures) == (S.REFRESHING, n)
        pauses.append(story.wait())
    assert pauses == [5.0, 7.5, 12.5, 22.5]
    assert story.next() == Refresh()
    story.tell(ev.RefreshFailed("429", 100.0))
    assert 100.0 <= story.wait() <= 110.0
    assert story.next() == Refresh()
    story.tell(ev.TokenRefreshed())
    story.answer(ev.NoUpdates(None))
    assert story.session.failures == 0


def test_a_refused_refresh_is_the_end() -> None:
    story = Story()
    story.answer(ev.TokenExpired())
    assert story.next() == Refresh()
    story.tell(ev.RefreshRefused("INVALID_TOKEN"))
    assert story.next() == Terminate(StopReason.REFRESH_REFUSED, "INVALID_TOKEN")
    assert story.path[-2:] == [S.REFRESHING, S.TERMINATED]
    assert [alert.kind for alert in story.session.take_alerts()] == ["refresh-refused"]


# --- the end -----------------------------------------------------------------------------------------------------

SITUATIONS: dict[str, Callable[[], Story]] = {}


def situation(make: Callable[[], Story]) -> Callable[[], Story]:
    SITUATIONS[make.__name__] = make
    return make


@situation
def not_started() -> Story:
    return Story(start=False)


@situation
def polling() -> Story:
    story = Story()
    story.poll()
    return story


@situation
def waiting() -> Story:
    story = Story()
    story.answer(ev.NoUpdates(None))
    assert isinstance(story.next(), Wait)
    return story


@situation
def delivering() -> Story:
    story = Story()
    story.answer(ev.Updates("c", NEWS, False))
    assert isinstance(story.next(), Deliver)
    return story


@situation
def acknowledging() -> Story:
    story = delivering()
    story.deliver()
    assert story.next() == FlushAcks()
    return story


@situation
def refreshing() -> Story:
    story = Story(token_valid=False)
    assert story.next() == Refresh()
    return story


@situation
def failing() -> Story:
    story = Story()
    story.fail()
    assert isinstance(story.next(), Wait)
    return story


@situation
def resyncing() -> Story:
    story = Story(cursor="c")
    story.answer(ev.CursorExpired())
    assert story.next() == Resync()
    return story


@pytest.mark.parametrize("make", SITUATIONS.values(), ids=SITUATIONS)
@pytest.mark.parametrize(
    ("event", "reason", "alert"),
    [
        (ev.DeviceRevoked("gone"), StopReason.REVOKED, "device-revoked"),
        (ev.RefreshRefused("gone"), StopReason.REFRESH_REFUSED, "refresh-refused"),
    ],
)
def test_the_end_comes_from_everywhere(
    make: Callable[[], Story], event: ev.Event, reason: StopReason, alert: str
) -> None:
    story = make()
    story.tell(event)
    assert story.session.state is S.TERMINATED
    assert story.next() == Terminate(reason, "gone")
    assert [one.kind for one in story.session.take_alerts()] == [alert]
    assert story.session.take_alerts() == ()
    assert story.session.next_poll_at is None
    for late in (ev.PollNow(), ev.NoUpdates("x"), ev.Delivered(), ev.Started(True), event):
        story.tell(late)
        assert story.next() == Terminate(reason, "gone")
    assert story.session.take_alerts() == ()


def test_a_revoked_device_goes_through_error() -> None:
    story = Story()
    story.answer(ev.DeviceRevoked("Device has been revoked"))
    assert story.path[-2:] == [S.ERROR, S.TERMINATED]
    assert story.session.last_poll_code == 403


# --- resync ----------------------------------------------------------------------------------------------------


def test_an_expired_cursor() -> None:
    story = Story(cursor="c1")
    story.answer(ev.CursorExpired())
    assert story.next() == Resync()
    assert story.session.state is S.PROCESSING
    assert story.session.failures == 0
    story.now += 2
    story.tell(ev.Resynced())
    assert story.session.seen_cursor is story.session.committed_cursor is None
    story.flush()
    assert story.wait() == 3.0, "an interval after the poll that was refused"
    assert story.poll().cursor is None
    assert story.path == [S.INITIALIZING, S.POLLING, S.PROCESSING, S.ACKNOWLEDGING, S.POLLING]


def test_a_resync_on_demand_keeps_its_cursor_or_it_would_come_again_for_ever() -> None:
    story = Story(cursor="c1")
    story.answer(ev.Updates("c2", (ResyncRequired(1), *NEWS), True))
    assert story.deliver() == Deliver("c2", (ResyncRequired(1), *NEWS))
    story.flush()
    assert story.poll().cursor == "c2"


def test_a_failing_resync_is_tried_again_before_anything_is_polled() -> None:
    story = Story(cursor="c1")
    story.answer(ev.CursorExpired())
    for n, pause in enumerate((5.0, 7.5, 12.5), start=1):
        assert story.next() == Resync()
        story.tell(ev.ResyncFailed("503"))
        assert (story.session.state, story.session.failures) == (S.ERROR, n)
        assert story.wait() == pause
    assert story.next() == Resync()
    story.tell(ev.ResyncFailed("503", 60.0))
    assert 60.0 <= story.wait() <= 66.0
    assert story.next() == Resync()
    story.tell(ev.Resynced())
    story.flush()
    assert story.poll().cursor is None
    assert story.session.failures == 0


def test_a_plane_that_loses_every_cursor_is_resynced_ever_more_slowly() -> None:
    story = Story(cursor="c")
    started = []
    while len(started) < 6:
        step = story.next()
        if isinstance(step, Wait):
            story.wait()
        elif isinstance(step, FlushAcks):
            story.tell(ev.AcksSent())
        elif isinstance(step, Resync):
            started.append(story.now)
            story.tell(ev.Resynced())
        elif isinstance(step, Deliver):
            story.tell(ev.Delivered())
        else:
            assert isinstance(step, Poll)
            story.tell(ev.NoUpdates("c") if step.cursor is None else ev.CursorExpired())
    gaps = [round(b - a, 3) for a, b in itertools.pairwise(started)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 10.0
    assert gaps[-1] >= 80.0


def test_a_cursor_lost_again_much_later_is_resynced_at_once() -> None:
    story = Story(cursor="c1")
    for _ in range(3):
        story.answer(ev.CursorExpired())
        assert story.next() == Resync()
        story.tell(ev.Resynced())
        story.flush()
        story.wait()
        story.news("c2")
        story.wait()
        story.answer(ev.NoUpdates(None))
        story.wait()


def test_a_409_to_no_cursor_is_a_failure() -> None:
    story = Story()
    story.answer(ev.CursorExpired())
    assert (story.session.state, story.session.failures) == (S.ERROR, 1)
    assert story.wait() == 5.0


# --- failures and the breaker ------------------------------------------------------------------------------------

FAILURES = [
    ev.ServerBusy(500),
    ev.ServerBusy(429, None, "RATE_LIMITED"),
    ev.Refused(400, "BAD", 1, "no"),
    ev.Refused(403, "FORBIDDEN", 1, "no"),
    ev.BadAnswer("HTML"),
    ev.TransportFailed("down"),
]


@pytest.mark.parametrize("event", FAILURES, ids=lambda event: type(event).__name__)
def test_each_failure_counts_and_backs_off(event: ev.Event) -> None:
    story = Story(cursor="c1")
    pauses = []
    for n in range(1, 6):
        story.answer(event)
        assert (story.session.state, story.session.failures) == (S.ERROR, n)
        pauses.append(story.wait())
    assert pauses == [5.0, 7.5, 12.5, 22.5, 42.5]
    assert story.poll().cursor == "c1"
    story.tell(ev.NoUpdates(None))
    assert story.session.failures == 0
    assert story.wait() == 5.0


@pytest.mark.parametrize(
    "make", [ev.ServerBusy, lambda status, wish: ev.BadAnswer("HTML", status=status, retry_after=wish)]
)
@pytest.mark.parametrize(("wish", "least"), [(30.0, 30.0), (0.0, 5.0), (3600.0, 3600.0)])
def test_a_busy_server_names_the_pause(make: Callable[[int, float], ev.Event], wish: float, least: float) -> None:
    story = Story()
    story.answer(make(503, wish))
    assert least <= story.wait() <= min(least * 1.1, 3600.0)
    assert story.session.last_retry_after == least


def open_breaker(**settings: object) -> Story:
    story = Story(**settings)
    for _ in range(9):
        story.fail()
        assert not story.session.breaker_open
        story.wait()
    assert story.session.take_alerts() == ()
    story.fail()
    assert story.session.breaker_open
    return story


def test_the_breaker_opens_once_probes_and_closes() -> None:
    story = open_breaker()
    (alert,) = story.session.take_alerts()
    assert (alert.kind, alert.resolved) == ("breaker-open", False)
    assert "10 times" in alert.text
    pauses = []
    for _ in range(6):
        step = story.next()
        assert isinstance(step, Wait)
        assert step.why == "breaker"
        pauses.append(story.wait())
        story.fail()
    assert pauses == [45.0, 75.0, 135.0, 255.0, 465.0, 465.0]
    assert story.session.take_alerts() == (), "alarm is raised once"
    story.wait()
    story.answer(ev.NoUpdates(None))
    assert not story.session.breaker_open
    (alert,) = story.session.take_alerts()
    assert (alert.kind, alert.resolved) == ("breaker-open", True)
    assert story.wait() == 5.0
    story.answer(ev.NoUpdates(None))
    assert story.session.take_alerts() == ()


def test_the_literal_breaker_waits_for_a_person() -> None:
    story = open_breaker(recovery="manual")
    assert story.next() == Wait(math.inf, "breaker")
    assert story.session.next_poll_at is None
    story.now += 1e6
    assert story.next() == Wait(math.inf, "breaker")
    story.tell(ev.PollNow())
    assert not story.session.breaker_open
    story.fail()
    assert story.session.failures == 1
    assert story.wait() == 5.0, "closed: it takes ten more to open it"


def test_failing_refreshes_open_the_breaker_too() -> None:
    story = Story(token_valid=False)
    for _ in range(10):
        if isinstance(story.next(), Wait):
            story.wait()
        assert story.next() == Refresh()
        story.tell(ev.RefreshFailed("down"))
    assert story.session.breaker_open
    assert story.session.state is S.REFRESHING
    assert [alert.kind for alert in story.session.take_alerts()] == ["breaker-open"]


def test_the_last_poll_tells_what_kept_it_from_being_sent() -> None:
    story = Story(token_valid=False)
    if isinstance(story.next(), Wait):
        story.wait()
    assert story.next() == Refresh()
    story.tell(ev.RefreshFailed("nothing listens"))
    assert story.session.last_poll_text == "token refresh failed: nothing listens"


# --- a person asks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        ev.NoUpdates(None),
        ev.TransportFailed("down"),
        ev.ServerBusy(429, 3600.0),
        ev.NoUpdates(None, retry_after=3600.0),
    ],
)
def test_poll_now_ends_every_wait(event: ev.Event) -> None:
    story = Story()
    story.answer(event)
    assert isinstance(story.next(), Wait)
    story.now += 1.5
    story.tell(ev.PollNow())
    assert isinstance(story.poll(), Poll)


def test_poll_now_is_at_most_one_a_second() -> None:
    story = Story()
    polls = []
    for _ in range(40):
        story.tell(ev.PollNow())
        step = story.next()
        if isinstance(step, Wait):
            assert step.until > story.now
            story.now = min(step.until, story.now + 0.25)
        elif isinstance(step, FlushAcks):
            story.tell(ev.AcksSent())
        else:
            polls.append(story.now)
            story.tell(ev.NoUpdates(None))
    assert len(polls) > 3
    assert all(b - a >= 1.0 for a, b in itertools.pairwise(polls))


def test_poll_now_replaces_a_held_poll_by_a_quick_one() -> None:
    story = Story(poll_mode="long-poll")
    assert story.poll().wait == 25
    story.now += 10
    story.tell(ev.PollNow())
    assert story.poll().wait == 0
    story.tell(ev.NoUpdates(None))
    story.wait()
    assert story.poll().wait == 25


def test_poll_now_during_a_refresh_that_backs_off() -> None:
    story = Story(token_valid=False)
    assert story.next() == Refresh()
    story.tell(ev.RefreshFailed("503", 600.0))
    story.tell(ev.PollNow())
    assert story.wait() == 1.0
    assert story.next() == Refresh()
    story.tell(ev.RefreshFailed("503", 600.0))
    assert story.wait() >= 600.0, "one wish, one try"


def test_poll_now_while_a_page_is_delivered_is_kept() -> None:
    story = Story()
    story.answer(ev.Updates("c1", NEWS, False))
    page = story.next()
    story.now += 2
    story.tell(ev.PollNow())
    assert story.next() is page
    story.tell(ev.Delivered())
    story.flush()
    assert story.next() == Poll("c1", 20, 0)


# --- modes -----------------------------------------------------------------------------------------------------------


def test_a_held_poll_is_itself_the_pause() -> None:
    story = Story(poll_mode="long-poll", cursor="c0")
    assert story.poll().wait == 25
    story.now += 25
    story.tell(ev.NoUpdates(None))
    assert story.poll().wait == 25
    story.now += 1
    story.tell(ev.NoUpdates(None))
    assert story.wait() == 4.0, "a plane that does not hold polls is not asked more often than the interval"


def test_news_by_long_poll_are_followed_at_once_but_not_without_end() -> None:
    story = Story(poll_mode="long-poll")
    starts = []
    for n in range(30):
        if isinstance(story.next(), Wait):
            story.wait()
        story.news(f"c{n}")
        starts.append(story.session.last_poll_at or 0.0)
    assert starts[4] == starts[0]
    assert [round(one - starts[0], 6) for one in starts[5:9]] == [1, 2, 3, 4], "a burst of five, then one a second"


def test_news_that_do_not_move_the_cursor_are_not_followed_at_once() -> None:
    story = Story(poll_mode="long-poll", cursor="c1")
    story.news("c1")
    assert story.wait() == 5.0


def test_after_a_failure_the_server_is_not_asked_to_hold_the_poll() -> None:
    story = Story(poll_mode="long-poll")
    story.fail()
    story.wait()
    assert story.poll().wait == 0
    story.tell(ev.NoUpdates(None))
    story.wait()
    assert story.poll().wait == 25


def test_adaptive_long_polls_for_a_while_after_news() -> None:
    story = Story(poll_mode="adaptive", adaptive_window_seconds=60, long_poll_wait_seconds=20)
    assert story.poll().wait == 0
    story.tell(ev.Updates("c1", NEWS, False))
    story.deliver()
    story.flush()
    began, held = story.now, 0
    while True:
        if isinstance(story.next(), Wait):
            story.wait()
        poll = story.poll()
        if poll.wait == 0:
            break
        assert poll.wait == 20
        held += 1
        story.now += 20
        story.tell(ev.NoUpdates(None))
    assert held == 3
    assert 60 <= story.now - began <= 70


def test_high_interest_makes_adaptive_long_poll_and_leaves_the_other_modes_alone() -> None:
    for mode, wait in (("adaptive", 25), ("interval", 0)):
        story = Story(poll_mode=mode)
        story.tell(ev.HighInterest(30))
        story.tell(ev.HighInterest(-5))
        assert story.poll().wait == wait
        story.now += 31
        story.tell(ev.NoUpdates(None))
        if isinstance(story.next(), Wait):
            story.wait()
        assert story.poll().wait == 0


def test_limits_and_intervals_come_from_the_configuration() -> None:
    story = Story(poll_limit=100, poll_interval_ms=250)
    assert story.poll().limit == 100
    story.tell(ev.NoUpdates(None))
    assert story.wait() == 0.25


def test_a_new_configuration_at_a_step_boundary() -> None:
    story = Story(poll_interval_ms=60_000)
    story.answer(ev.NoUpdates(None))
    story.next()
    fresh = attrs.evolve(ApplicationConfig(), poll_interval_ms=2000, poll_mode="long-poll")
    story.session.reconfigure(fresh, story.now)
    assert story.wait() == 2.0
    assert story.poll().wait == 25
    story.tell(ev.ServerBusy(503, 600.0))
    story.session.reconfigure(fresh, story.now)
    assert story.wait() >= 600.0, "the server's wish outlives a reload"
    story.answer(ev.NoUpdates(None))
    story.session.reconfigure(attrs.evolve(fresh, poll_interval_ms=9000))
    assert story.wait() == 2.0, "without the time, only what comes next"


def test_a_reload_may_end_the_literal_breaker() -> None:
    story = open_breaker(recovery="manual")
    story.session.reconfigure(ApplicationConfig(recovery="auto"), story.now)
    assert story.wait() == 60.0
    assert isinstance(story.poll(), Poll)


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
