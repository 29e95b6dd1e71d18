"""Consecutive pages are requested as fast as the plane's token bucket allows, and never faster."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import CertctrlError
from certctrl.model.config import ApplicationConfig
from certctrl.plane.limits import Buckets, FreePages
from certctrl.protocol import steps
from certctrl.protocol.events import Updates
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


def test_the_poll_after_a_free_page_that_is_not_full_waits() -> None:
    schedule = Schedule(ApplicationConfig(), lambda: 0.5)
    schedule.note_poll(100.0)
    page = Updates(cursor="1-1", signals=(), full=False, free=True)
    schedule.after_success(steps.Poll(cursor="0-0", wait=0, limit=20), page, True, 100.0)
    assert schedule.due_at(poll=True) > 104.0
