"""When the next poll is sent: by mode and configuration, or immediately for an operator."""

from __future__ import annotations

import itertools

import attrs
import pytest
from session_driver import SIGNALS, Driver

from certctrl.model.config import ApplicationConfig
from certctrl.protocol import events as ev
from certctrl.protocol.steps import FlushAcks, Poll, Refresh, Wait

# --- poll-now --------------------------------------------------------------------------------------------------------


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
    driver = Driver()
    driver.answer(event)
    assert isinstance(driver.next(), Wait)
    driver.now += 1.5
    driver.receive(ev.PollNow())
    assert isinstance(driver.poll(), Poll)


def test_poll_now_ends_the_wait_for_the_first_poll() -> None:
    driver = Driver(first_poll_spread_seconds=60.0)
    assert isinstance(driver.next(), Wait)
    driver.receive(ev.PollNow())
    assert isinstance(driver.poll(), Poll)


def test_poll_now_is_limited_to_one_per_second() -> None:
    driver = Driver()
    polls = []
    for _ in range(40):
        driver.receive(ev.PollNow())
        step = driver.next()
        if isinstance(step, Wait):
            assert step.until > driver.now
            driver.now = min(step.until, driver.now + 0.25)
        elif isinstance(step, FlushAcks):
            driver.receive(ev.AcksSent())
        else:
            polls.append(driver.now)
            driver.receive(ev.NoUpdates(None))
    assert len(polls) > 3
    assert all(b - a >= 1.0 for a, b in itertools.pairwise(polls))


def test_poll_now_replaces_a_long_poll() -> None:
    driver = Driver(poll_mode="long-poll")
    assert driver.poll().wait == 17
    driver.now += 10
    driver.receive(ev.PollNow())
    assert driver.poll().wait == 0
    driver.receive(ev.NoUpdates(None))
    driver.wait()
    assert driver.poll().wait == 25


def test_poll_now_during_a_refresh_that_backs_off() -> None:
    driver = Driver(token_valid=False)
    assert driver.next() == Refresh()
    driver.receive(ev.RefreshFailed("503", 600.0))
    driver.receive(ev.PollNow())
    assert driver.wait() == 1.0
    assert driver.next() == Refresh()
    driver.receive(ev.RefreshFailed("503", 600.0))
    assert driver.wait() >= 600.0, "one attempt per request"


def test_poll_now_while_a_page_is_delivered_is_kept() -> None:
    driver = Driver()
    driver.answer(ev.Updates("c1", SIGNALS, False))
    page = driver.next()
    driver.now += 2
    driver.receive(ev.PollNow())
    assert driver.next() is page
    driver.receive(ev.Delivered())
    driver.flush()
    assert driver.next() == Poll("c1", 20, 0)


def test_a_page_that_is_being_delivered_counts_after_poll_now() -> None:
    driver = Driver()
    driver.answer(ev.Updates("c1", SIGNALS, False))
    driver.next()
    driver.receive(ev.PollNow())
    driver.receive(ev.Delivered())
    assert driver.session.committed_cursor == "c1"


# --- modes -----------------------------------------------------------------------------------------------------------


def test_a_long_poll_counts_as_the_interval() -> None:
    driver = Driver(poll_mode="long-poll", cursor="c0")
    assert driver.poll().wait == 17
    driver.now += 17
    driver.receive(ev.NoUpdates(None))
    assert driver.poll().wait == 25
    driver.now += 1
    driver.receive(ev.NoUpdates(None))
    assert driver.wait() == 4.0, "a plane that does not hold polls is polled at the interval"


def test_the_poll_after_long_polled_signals_is_immediate_within_the_limit() -> None:
    driver = Driver(poll_mode="long-poll")
    starts = []
    for n in range(30):
        if isinstance(driver.next(), Wait):
            driver.wait()
        driver.page(f"c{n}")
        starts.append(driver.session.last_poll_at or 0.0)
    assert starts[4] == starts[0]
    assert [round(one - starts[0], 6) for one in starts[5:9]] == [1, 2, 3, 4], "a burst of five, then one per second"


def test_the_poll_after_signals_with_the_same_cursor_waits() -> None:
    driver = Driver(poll_mode="long-poll", cursor="c1")
    driver.page("c1")
    assert driver.wait() == 5.0


def test_a_failed_poll_is_repeated_as_it_was() -> None:
    """Otherwise each host polls twice after an outage: once briefly, once to be held."""
    driver = Driver(poll_mode="long-poll", cursor="c0")
    driver.answer(ev.NoUpdates(None))
    driver.wait()
    for event in (ev.TransportFailed("reset"), ev.ServerBusy(503), ev.TransportFailed("refused")):
        assert driver.poll().wait == 25
        driver.receive(event)
        driver.wait()
    assert driver.poll().wait == 25


def test_a_gateway_that_ends_held_polls_gets_short_ones_in_between() -> None:
    driver = Driver(poll_mode="long-poll", cursor="c0")
    waits = []
    for number in range(8):
        poll = driver.poll()
        waits.append(poll.wait)
        driver.now += min(poll.wait, 12)
        driver.receive(ev.ServerBusy(504) if poll.wait > 12 else ev.NoUpdates(None))
        if number < 7:
            driver.wait()
    assert waits == [17, 25, 0, 25, 0, 25, 0, 25]
    assert driver.session.failures == 1, "the breaker does not open"


def test_slow_attempts_to_connect_are_no_held_polls() -> None:
    driver = Driver(poll_mode="long-poll", cursor="c0")
    driver.answer(ev.NoUpdates(None))
    for _ in range(4):
        driver.wait()
        assert driver.poll().wait == 25
        driver.now += 10
        driver.receive(ev.TransportFailed("no route", sent=False))


def test_a_held_poll_that_ends_well_ends_the_doubt() -> None:
    driver = Driver(poll_mode="long-poll", cursor="c0")
    for event in (ev.TransportFailed("reset"), ev.NoUpdates(None), ev.TransportFailed("reset")):
        driver.poll()
        driver.now += 20
        driver.receive(event)
        if isinstance(driver.next(), Wait):
            driver.wait()
    assert driver.poll().wait == 25


@pytest.mark.parametrize(
    ("settings", "chance", "delay"),
    [
        ({"poll_mode": "long-poll"}, 0.0, 0.5),
        ({"poll_mode": "long-poll"}, 0.999999, 25.0),
        ({"poll_mode": "long-poll", "long_poll_wait_seconds": 10}, 0.999999, 10.0),
        ({"poll_mode": "interval"}, 0.0, 0.5),
        ({"poll_mode": "interval"}, 0.999999, 25.0),
        ({"poll_mode": "interval", "poll_interval_ms": 60_000}, 0.999999, 60.0),
        ({"poll_mode": "adaptive"}, 0.999999, 25.0),
    ],
)
def test_the_first_retry_after_a_lost_connection_is_spread(
    settings: dict[str, object], chance: float, delay: float
) -> None:
    driver = Driver(**settings)
    driver.session._schedule.breaker._random = lambda: chance
    driver.fail()
    assert driver.wait() == pytest.approx(delay, abs=0.001)
    assert driver.poll().wait == (
        0 if settings["poll_mode"] != "long-poll" else driver.session._schedule.config.long_poll_wait_seconds
    )


@pytest.mark.parametrize("event", [ev.RefreshFailed("down", lost=True), ev.RefreshFailed("down")])
def test_a_refresh_that_gets_no_answer_is_spread_like_a_poll(event: ev.RefreshFailed) -> None:
    driver = Driver(token_valid=False)
    assert driver.next() == Refresh()
    driver.receive(event)
    assert driver.wait() == (12.75 if event.lost else 5.0)


def test_only_the_first_long_poll_and_those_after_signals_have_a_random_length() -> None:
    driver = Driver(poll_mode="long-poll", cursor="c0")
    waits = []
    for event in (ev.NoUpdates(None), ev.NoUpdates(None), ev.Updates("c1", SIGNALS, False), ev.NoUpdates(None)):
        waits.append(driver.poll().wait)
        driver.now += 20
        driver.receive(event)
        if isinstance(event, ev.Updates):
            driver.deliver()
            driver.flush()
    assert waits == [17, 25, 25, 17]
    assert driver.poll().wait == 25


def test_adaptive_mode_long_polls_after_signals() -> None:
    driver = Driver(poll_mode="adaptive", adaptive_window_seconds=60, long_poll_wait_seconds=20)
    assert driver.poll().wait == 0
    driver.receive(ev.Updates("c1", SIGNALS, False))
    driver.deliver()
    driver.flush()
    began, held = driver.now, 0
    while True:
        if isinstance(driver.next(), Wait):
            driver.wait()
        poll = driver.poll()
        if poll.wait == 0:
            break
        assert poll.wait == (20 if held else 14)
        held += 1
        driver.now += 20
        driver.receive(ev.NoUpdates(None))
    assert held == 3
    assert 60 <= driver.now - began <= 70


def test_signals_make_adaptive_mode_long_poll_and_leave_interval_mode_alone() -> None:
    for mode, wait in (("adaptive", 17), ("interval", 0)):
        driver = Driver(poll_mode=mode, adaptive_window_seconds=30)
        driver.page("c1")
        if isinstance(driver.next(), Wait):
            driver.wait()
        assert driver.poll().wait == wait
        driver.now += 31
        driver.receive(ev.NoUpdates(None))
        if isinstance(driver.next(), Wait):
            driver.wait()
        assert driver.poll().wait == 0


def test_limits_and_intervals_come_from_the_configuration() -> None:
    driver = Driver(poll_limit=100, poll_interval_ms=250)
    assert driver.poll().limit == 100
    driver.receive(ev.NoUpdates(None))
    assert driver.wait() == 0.25


def test_a_new_configuration_at_a_step_boundary() -> None:
    driver = Driver(poll_interval_ms=60_000)
    driver.answer(ev.NoUpdates(None))
    driver.next()
    fresh = attrs.evolve(ApplicationConfig(), poll_interval_ms=2000, poll_mode="long-poll")
    driver.session.reconfigure(fresh, driver.now)
    assert driver.wait() == 2.0
    assert driver.poll().wait == 15
    driver.receive(ev.ServerBusy(503, 600.0))
    driver.session.reconfigure(fresh, driver.now)
    assert driver.wait() >= 600.0, "a reload does not shorten a Retry-After"
    driver.answer(ev.NoUpdates(None))
    driver.session.reconfigure(attrs.evolve(fresh, poll_interval_ms=9000))
    assert driver.wait() == 2.0, "without the time, only the next interval changes"
