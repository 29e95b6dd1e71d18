"""Failures back off; ten consecutive ones open the breaker, which raises one alert."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from session_driver import Driver, S

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
    driver = Driver(cursor="c1")
    pauses = []
    for n in range(1, 6):
        driver.answer(event)
        assert (driver.session.state, driver.session.failures) == (S.ERROR, n)
        pauses.append(driver.wait())
    lost = isinstance(event, ev.TransportFailed)
    assert pauses == ([12.75, 15.0, 15.0, 22.5, 42.5] if lost else [5.0, 7.5, 12.5, 22.5, 42.5])
    assert driver.poll().cursor == "c1"
    driver.receive(ev.NoUpdates(None))
    assert driver.session.failures == 0
    assert driver.wait() == 5.0


@pytest.mark.parametrize(
    "make", [ev.ServerBusy, lambda status, retry_after: ev.BadAnswer("HTML", status=status, retry_after=retry_after)]
)
@pytest.mark.parametrize(("retry_after", "least"), [(30.0, 30.0), (0.0, 5.0), (3600.0, 3600.0)])
def test_a_busy_server_sets_the_delay(make: Callable[[int, float], ev.Event], retry_after: float, least: float) -> None:
    driver = Driver()
    driver.answer(make(503, retry_after))
    assert least <= driver.wait() <= min(least * 1.1, 3600.0)
    assert driver.session.last_retry_after == least


def open_breaker(**settings: object) -> Driver:
    driver = Driver(**settings)
    for _ in range(9):
        driver.fail()
        assert not driver.session.breaker_open
        driver.wait()
    assert driver.session.take_alerts() == ()
    driver.fail()
    assert driver.session.breaker_open
    return driver


def test_the_breaker_opens_once_probes_and_closes() -> None:
    driver = open_breaker()
    (alert,) = driver.session.take_alerts()
    assert (alert.kind, alert.resolved) == ("breaker-open", False)
    assert "10 times" in alert.text
    pauses = []
    for _ in range(6):
        step = driver.next()
        assert isinstance(step, Wait)
        assert step.why == "breaker"
        pauses.append(driver.wait())
        driver.fail()
    assert pauses == [45.0, 75.0, 135.0, 255.0, 465.0, 465.0]
    assert driver.session.take_alerts() == (), "the alert is raised once"
    driver.wait()
    driver.answer(ev.NoUpdates(None))
    assert not driver.session.breaker_open
    (alert,) = driver.session.take_alerts()
    assert (alert.kind, alert.resolved) == ("breaker-open", True)
    assert driver.wait() == 5.0
    driver.answer(ev.NoUpdates(None))
    assert driver.session.take_alerts() == ()


def test_a_manual_breaker_waits_for_poll_now() -> None:
    driver = open_breaker(recovery="manual")
    assert driver.next() == Wait(math.inf, "breaker")
    assert driver.session.next_poll_at is None
    driver.now += 1e6
    assert driver.next() == Wait(math.inf, "breaker")
    driver.receive(ev.PollNow())
    assert not driver.session.breaker_open
    driver.fail()
    assert driver.session.failures == 1
    assert driver.wait() == 12.75, "closed: only ten more failures open it"


def test_failing_refreshes_open_the_breaker() -> None:
    driver = Driver(token_valid=False)
    for _ in range(10):
        if isinstance(driver.next(), Wait):
            driver.wait()
        assert driver.next() == Refresh()
        driver.receive(ev.RefreshFailed("down"))
    assert driver.session.breaker_open
    assert driver.session.state is S.REFRESHING
    assert [alert.kind for alert in driver.session.take_alerts()] == ["breaker-open"]


def test_the_last_poll_text_shows_the_failed_refresh() -> None:
    driver = Driver(token_valid=False)
    if isinstance(driver.next(), Wait):
        driver.wait()
    assert driver.next() == Refresh()
    driver.receive(ev.RefreshFailed("nothing listens"))
    assert driver.session.last_poll_text == "token refresh failed: nothing listens"


def test_a_reload_may_end_manual_recovery() -> None:
    driver = open_breaker(recovery="manual")
    driver.session.reconfigure(ApplicationConfig(recovery="auto"), driver.now)
    assert driver.wait() == 60.0
    assert isinstance(driver.poll(), Poll)
