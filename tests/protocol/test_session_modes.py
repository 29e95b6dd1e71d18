"""When the next poll goes out: by mode and configuration, or at once when a person asks."""

from __future__ import annotations

import itertools

import attrs
import pytest
from session_story import NEWS, Story

from certctrl.model.config import ApplicationConfig
from certctrl.protocol import events as ev
from certctrl.protocol.steps import FlushAcks, Poll, Refresh, Wait

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


def test_signals_make_adaptive_mode_long_poll_and_leave_interval_mode_alone() -> None:
    for mode, wait in (("adaptive", 25), ("interval", 0)):
        story = Story(poll_mode=mode, adaptive_window_seconds=30)
        story.news("c1")
        if isinstance(story.next(), Wait):
            story.wait()
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
