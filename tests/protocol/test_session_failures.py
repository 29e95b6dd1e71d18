"""Each failure counts and backs off; ten in a row open the breaker, which tells of it once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from session_story import S, Story

from certctrl.model.config import ApplicationConfig
from certctrl.protocol import events as ev
from certctrl.protocol.steps import Poll, Refresh, Wait

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


def test_a_reload_may_end_the_literal_breaker() -> None:
    story = open_breaker(recovery="manual")
    story.session.reconfigure(ApplicationConfig(recovery="auto"), story.now)
    assert story.wait() == 60.0
    assert isinstance(story.poll(), Poll)
