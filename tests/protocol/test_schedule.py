"""Consecutive pages are requested as fast as the plane's token bucket allows, and never faster."""

from __future__ import annotations

import math
import tracemalloc

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import CertctrlError
from certctrl.model.config import ApplicationConfig, PollMode, Recovery
from certctrl.plane.limits import Buckets, FreePages
from certctrl.protocol import steps
from certctrl.protocol.events import NoUpdates, Updates
from certctrl.protocol.schedule import Schedule

SECONDS = st.floats(0, 0.9) | st.just(0.0)


def asked(
    schedule: Schedule, trips: list[tuple[float, float, float]], now: float = 100.0, free: list[bool] | None = None
) -> list[float]:
    """Request one full page after another; return when each poll reached the plane.

    ``trips``: seconds to the plane, at the plane, and back. ``free``: whether the page after this one is free.
    """
    bucket, offers = Buckets(1.0, 5, lambda: there), FreePages()
    found = []
    for number, (to, held, back) in enumerate(trips):
        if number:
            now = max(now, schedule.due_at(poll=True))
        schedule.note_poll(now)
        there = now + to
        if not offers.redeem("this device", f"{number - 1}-1"):
            bucket.take("this device")
        found.append(there)
        now = there + held + back
        page = Updates(cursor=f"{number}-1", signals=(), full=True, free=bool(free and free[number]))
        if page.free:
            offers.offer("this device", f"{number}-1")
        schedule.after_success(steps.Poll(cursor="0-0", wait=25, limit=20), page, True, now)
    return found


@given(st.lists(st.tuples(SECONDS, st.floats(0, 25) | st.just(0.0), SECONDS), min_size=1, max_size=40))
def test_the_plane_never_refuses_a_page(trips: list[tuple[float, float, float]]) -> None:
    try:
        asked(Schedule(ApplicationConfig(), lambda: 0.5), trips)
    except CertctrlError as error:
        raise AssertionError(f"refused: {error}") from None


def test_a_burst_of_five_pages_and_then_one_per_second() -> None:
    times = asked(Schedule(ApplicationConfig(), lambda: 0.5), [(0, 0, 0)] * 9)
    assert [round(one - times[0], 6) for one in times] == [0, 0, 0, 0, 0, 1, 2, 3, 4]


def test_the_bucket_refills_while_a_poll_is_held() -> None:
    times = asked(Schedule(ApplicationConfig(), lambda: 0.5), [(0, 20, 0), *[(0, 0, 0)] * 9])
    assert [round(one - times[1], 6) for one in times[1:]] == [0, 0, 0, 0, 0, 1, 2, 3, 4]


@given(st.data(), st.lists(st.tuples(SECONDS, st.floats(0, 25) | st.just(0.0), SECONDS), min_size=1, max_size=40))
def test_the_plane_never_refuses_a_page_if_some_are_free(
    data: st.DataObject, trips: list[tuple[float, float, float]]
) -> None:
    free = data.draw(st.lists(st.booleans(), min_size=len(trips), max_size=len(trips)))
    try:
        asked(Schedule(ApplicationConfig(), lambda: 0.5), trips, free=free)
    except CertctrlError as error:
        raise AssertionError(f"refused: {error}") from None


def test_free_pages_are_requested_immediately_and_take_no_token() -> None:
    times = asked(Schedule(ApplicationConfig(), lambda: 0.5), [(0, 0, 0)] * 30, free=[True] * 20 + [False] * 10)
    assert [round(one - times[0], 6) for one in times] == [0] * 21 + [0, 0, 0, 0, 1, 2, 3, 4, 5]


def test_an_abandoned_poll_takes_its_token() -> None:
    one = Schedule(ApplicationConfig(), lambda: 0.5)
    for _ in range(5):
        one.note_poll(100.0)
    one.after_success(HELD, page(full=True), True, 100.0)
    assert one.due_at(poll=True) == 101.0


def test_the_plane_s_tokens_are_assumed_to_return_as_fast_as_the_interval() -> None:
    one = Schedule(ApplicationConfig(poll_interval_ms=200), lambda: 0.5)
    for _ in range(5):
        one.note_poll(100.0)
    one.after_success(HELD, page(full=True), True, 100.0)
    assert round(one.due_at(poll=True), 6) == 100.2


def test_years_of_polls_need_constant_memory() -> None:
    one = Schedule(ApplicationConfig(), lambda: 0.5)
    tracemalloc.start()
    try:
        for number in range(20_000):
            one.note_poll(5.0 * number)
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_the_poll_after_a_free_page_that_is_not_full_waits() -> None:
    schedule = Schedule(ApplicationConfig(), lambda: 0.5)
    schedule.note_poll(100.0)
    page = Updates(cursor="1-1", signals=(), full=False, free=True)
    schedule.after_success(steps.Poll(cursor="0-0", wait=0, limit=20), page, True, 100.0)
    assert schedule.due_at(poll=True) > 104.0


# --- one request after another --------------------------------------------------------------------------------------

POLL = steps.Poll(cursor="0-0", wait=0, limit=20)
HELD = steps.Poll(cursor="0-0", wait=25, limit=20)


def schedule(**settings: object) -> Schedule:
    """Return a schedule with intervals of 5 s, after one poll at 100 s."""
    made = Schedule(ApplicationConfig(**settings), lambda: 0.5)
    made.note_poll(100.0)
    return made


def page(*, full: bool = False, free: bool = False, retry_after: float | None = None) -> Updates:
    return Updates(cursor="1-1", signals=(), full=full, free=free, retry_after=retry_after)


def test_nothing_is_due_before_it_is_planned() -> None:
    fresh = Schedule(ApplicationConfig(), lambda: 0.5)
    assert (fresh.due, fresh.why, fresh.due_at(poll=True)) == (math.inf, steps.WaitReason.START, math.inf)


def test_an_empty_page_is_followed_after_an_interval() -> None:
    one = schedule()
    one.after_success(POLL, NoUpdates("0-0"), False, 101.0)
    assert (one.due_at(poll=True), one.why) == (106.0, steps.WaitReason.INTERVAL)
    one.after_success(POLL, page(full=True), False, 101.0)
    assert one.due_at(poll=True) == 106.0, "a page that comes again does not count"
    one.after_success(POLL, page(), True, 101.0)
    assert one.due_at(poll=True) == 106.0, "nor one that is not full, unless it was held"
    one.after_success(HELD, page(), True, 101.0)
    assert (one.due_at(poll=True), one.why) == (101.0, steps.WaitReason.INTERVAL)


def test_the_interval_after_a_held_poll_counts_from_its_start() -> None:
    one = schedule()
    one.after_success(HELD, NoUpdates("0-0"), False, 102.0)
    assert one.due_at(poll=True) == 105.0
    one.after_success(HELD, NoUpdates("0-0"), False, 125.0)
    assert one.due_at(poll=True) == 125.0
    one.after_success(steps.Poll(cursor="0-0", wait=1, limit=20), NoUpdates("0-0"), False, 101.0)
    assert one.due_at(poll=True) == 105.0
    fresh = Schedule(ApplicationConfig(), lambda: 0.5)
    fresh.after_interval(7.0, held=True)
    assert fresh.due == 12.0


def test_a_server_that_asks_for_time_gets_it() -> None:
    one = schedule(poll_jitter=0.0)
    one.after_success(POLL, page(full=True, free=True, retry_after=40.0), True, 101.0)
    assert (one.due_at(poll=True), one.why) == (141.0, steps.WaitReason.SERVER)


def test_three_polls_need_two_intervals() -> None:
    one = schedule()
    for now in (101.0, 102.0):
        one.note_poll(now)
    one.plan(102.5, steps.WaitReason.INTERVAL)
    assert one.due_at(poll=True) == 110.0, "two intervals after the first of the last three"
    assert one.due_at(poll=False) == 102.5, "other requests are not limited"
    one.plan(120.0, steps.WaitReason.INTERVAL)
    assert one.due_at(poll=True) == 120.0
    two = schedule()
    two.note_poll(101.0)
    two.plan(102.5, steps.WaitReason.INTERVAL)
    assert two.due_at(poll=True) == 102.5


def test_an_operator_gets_one_poll_per_second_and_a_closed_breaker() -> None:
    one = schedule(breaker_failures=1)
    assert one.after_failure(None, 101.0) is True
    assert (one.why, one.breaker.is_open, one.after_failure(None, 101.0)) == (steps.WaitReason.BREAKER, True, False)
    one.poll_now()
    assert (one.due_at(poll=True), one.breaker.is_open) == (101.0, False)
    quick = schedule(poll_interval_ms=200)
    quick.poll_now()
    assert quick.due_at(poll=True) == 100.2, "but no slower than the interval"
    assert quick.due_at(poll=False) == 100.2
    quick.note_request(100.2)
    assert quick.due_at(poll=True) == math.inf, "once"


def test_failures_back_off() -> None:
    one = schedule(poll_jitter=0.0)
    assert one.after_failure(None, 101.0) is False
    assert (one.due, one.why) == (106.0, steps.WaitReason.BACKOFF)
    assert one.after_failure(20.0, 106.0) is False
    assert (one.due, one.why) == (126.0, steps.WaitReason.SERVER)


@pytest.mark.parametrize(
    ("mode", "expecting", "wait"),
    [("interval", True, 0), ("long-poll", False, 25), ("adaptive", False, 0), ("adaptive", True, 25)],
)
def test_the_mode_decides_whether_a_poll_is_held(mode: str, expecting: bool, wait: int) -> None:
    one = Schedule(ApplicationConfig(poll_mode=PollMode(mode), long_poll_wait_seconds=25), lambda: 0.5)
    if expecting:
        one.expect_updates(100.0)
    ends = 100.0 + one.config.adaptive_window_seconds
    assert one.note_poll(100.0) == (17 if wait else 0), "the first one has a random length"
    assert one.note_poll(100.5) == wait
    assert one.note_poll(ends - 0.1) == wait
    assert one.note_poll(ends) == (0 if mode == "adaptive" else wait)
    one.poll_now()
    assert [one.note_poll(101.0), one.note_poll(101.5)] == [0, wait], "an operator wants an answer now"
    one.after_failure(None, 102.0)
    assert one.note_poll(103.0) == wait, "a failed poll is repeated as it was"


def test_a_new_configuration_may_shorten_a_wait() -> None:
    faster = ApplicationConfig(poll_interval_ms=1000, poll_jitter=0.0)
    one = schedule()
    one.after_success(POLL, NoUpdates("0-0"), False, 101.0)
    one.reconfigure(faster, None)
    assert (one.due, one.config) == (106.0, faster), "without a clock, the present wait stays"
    one.reconfigure(faster, 102.0)
    assert one.due == 103.0
    one.reconfigure(ApplicationConfig(), 102.5)
    assert one.due == 103.0, "it does not become longer"


def test_a_new_configuration_may_end_the_wait_for_an_operator() -> None:
    manual = ApplicationConfig(breaker_failures=1, recovery=Recovery.MANUAL)
    one = Schedule(manual, lambda: 0.5)
    one.after_failure(None, 100.0)
    assert one.due == math.inf
    one.reconfigure(attrs.evolve(manual, poll_interval_ms=9000), 101.0)
    assert one.due == math.inf
    one.reconfigure(attrs.evolve(manual, recovery=Recovery.AUTO), 101.0)
    assert one.due == 161.0
    asked = schedule()
    asked.after_failure(500.0, 100.0)
    due = asked.due
    asked.reconfigure(ApplicationConfig(poll_interval_ms=100), 101.0)
    assert asked.due == due, "a server's request stays"
