"""An expired token is refreshed once per poll; a final refusal ends the session in any state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from session_driver import SIGNALS, Driver, S

from certctrl.model.status import StopReason
from certctrl.protocol import events as ev
from certctrl.protocol.steps import Deliver, FlushAcks, Poll, Refresh, Resync, Terminate, Wait

# --- tokens ------------------------------------------------------------------------------------------------------


def test_an_expired_token_is_refreshed_once_and_the_poll_retried_once() -> None:
    driver = Driver(cursor="c1")
    driver.answer(ev.TokenExpired())
    assert driver.next() == Refresh()
    driver.receive(ev.TokenRefreshed())
    assert driver.next() == FlushAcks(), "handlers may have finished during the refresh"
    assert driver.poll() == Poll("c1", 20, 0)
    driver.receive(ev.TokenExpired())
    assert (driver.session.state, driver.session.failures) == (S.ERROR, 1)
    assert driver.wait() >= 5.0
    driver.answer(ev.TokenExpired())
    assert driver.next() == Refresh(), "a new attempt may refresh once more"
    assert driver.path[:5] == [S.INITIALIZING, S.POLLING, S.REFRESHING, S.POLLING, S.ERROR]


def test_the_retry_does_not_delay_later_polls() -> None:
    driver = Driver()
    for _ in range(3):
        driver.answer(ev.NoUpdates(None))
        assert driver.wait() == 5.0
    driver.answer(ev.TokenExpired())
    driver.next()
    driver.receive(ev.TokenRefreshed())
    driver.answer(ev.NoUpdates(None))
    assert driver.wait() == 5.0
    driver.answer(ev.NoUpdates(None))
    assert driver.wait() == 5.0


def test_a_session_may_start_with_a_refresh() -> None:
    driver = Driver(token_valid=False)
    assert driver.session.state is S.REFRESHING
    assert driver.next() == Refresh()
    driver.receive(ev.TokenRefreshed())
    driver.answer(ev.TokenExpired())
    assert driver.session.failures == 1, "only one refresh per poll"


def test_a_refresh_that_fails_without_refusal_is_retried() -> None:
    driver = Driver()
    driver.answer(ev.TokenExpired())
    pauses = []
    for n in range(1, 5):
        assert driver.next() == Refresh()
        driver.receive(ev.RefreshFailed("503"))
        assert (driver.session.state, driver.session.failures) == (S.REFRESHING, n)
        pauses.append(driver.wait())
    assert pauses == [5.0, 7.5, 12.5, 22.5]
    assert driver.next() == Refresh()
    driver.receive(ev.RefreshFailed("429", 100.0))
    assert 100.0 <= driver.wait() <= 110.0
    assert driver.next() == Refresh()
    driver.receive(ev.TokenRefreshed())
    driver.answer(ev.NoUpdates(None))
    assert driver.session.failures == 0


def test_a_refused_refresh_ends_the_session() -> None:
    driver = Driver()
    driver.answer(ev.TokenExpired())
    assert driver.next() == Refresh()
    driver.receive(ev.RefreshRefused("INVALID_TOKEN"))
    assert driver.next() == Terminate(StopReason.REFRESH_REFUSED, "INVALID_TOKEN")
    assert driver.path[-2:] == [S.REFRESHING, S.TERMINATED]
    assert [alert.kind for alert in driver.session.take_alerts()] == ["refresh-refused"]


# --- the end -----------------------------------------------------------------------------------------------------

SITUATIONS: dict[str, Callable[[], Driver]] = {}


def situation(make: Callable[[], Driver]) -> Callable[[], Driver]:
    SITUATIONS[make.__name__] = make
    return make


@situation
def not_started() -> Driver:
    return Driver(start=False)


@situation
def polling() -> Driver:
    driver = Driver()
    driver.poll()
    return driver


@situation
def waiting() -> Driver:
    driver = Driver()
    driver.answer(ev.NoUpdates(None))
    assert isinstance(driver.next(), Wait)
    return driver


@situation
def delivering() -> Driver:
    driver = Driver()
    driver.answer(ev.Updates("c", SIGNALS, False))
    assert isinstance(driver.next(), Deliver)
    return driver


@situation
def acknowledging() -> Driver:
    driver = delivering()
    driver.deliver()
    assert driver.next() == FlushAcks()
    return driver


@situation
def refreshing() -> Driver:
    driver = Driver(token_valid=False)
    assert driver.next() == Refresh()
    return driver


@situation
def failing() -> Driver:
    driver = Driver()
    driver.fail()
    assert isinstance(driver.next(), Wait)
    return driver


@situation
def resyncing() -> Driver:
    driver = Driver(cursor="c")
    driver.answer(ev.CursorExpired())
    assert driver.next() == Resync()
    return driver


@pytest.mark.parametrize("make", SITUATIONS.values(), ids=SITUATIONS)
@pytest.mark.parametrize(
    ("event", "reason", "alert"),
    [
        (ev.DeviceRevoked("gone"), StopReason.REVOKED, "device-revoked"),
        (ev.RefreshRefused("gone"), StopReason.REFRESH_REFUSED, "refresh-refused"),
    ],
)
def test_a_session_can_end_in_every_state(
    make: Callable[[], Driver], event: ev.Event, reason: StopReason, alert: str
) -> None:
    driver = make()
    driver.receive(event)
    assert driver.session.state is S.TERMINATED
    assert driver.next() == Terminate(reason, "gone")
    assert [one.kind for one in driver.session.take_alerts()] == [alert]
    assert driver.session.take_alerts() == ()
    assert driver.session.next_poll_at is None
    for late in (ev.PollNow(), ev.NoUpdates("x"), ev.Delivered(), ev.Started(True), event):
        driver.receive(late)
        assert driver.next() == Terminate(reason, "gone")
    assert driver.session.take_alerts() == ()


def test_a_revoked_device_ends_through_error() -> None:
    driver = Driver()
    driver.answer(ev.DeviceRevoked("Device has been revoked"))
    assert driver.path[-2:] == [S.ERROR, S.TERMINATED]
    assert driver.session.last_poll_code == 403
