"""An expired token is refreshed once for a poll, and a final refusal ends the session wherever it stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from session_story import NEWS, S, Story

from certctrl.model.status import StopReason
from certctrl.protocol import events as ev
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Refresh, Resync, Terminate, Wait

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
