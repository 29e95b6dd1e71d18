"""Limits that are counted in the database, on both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_plane import plane_on
from plane_world import Clock

from certctrl.plane import shared_limits
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.shared_limits import SharedAttempts, SharedBuckets
from certctrl.plane.storage.database import Database


@pytest.fixture
def plane(open_database: Callable[[], Database], clock: Clock) -> Plane:
    return plane_on(open_database(), wall_now=lambda: clock.wall)


@pytest.fixture
def attempts(plane: Plane, clock: Clock) -> SharedAttempts:
    return SharedAttempts(plane.database, "test", 3, 900, lambda: clock.wall)


@pytest.fixture
def buckets(plane: Plane, clock: Clock) -> SharedBuckets:
    return SharedBuckets(plane.database, "test", 0.5, 3, lambda: clock.wall)


async def delay(plane: Plane, method: Callable[[str], None], caller: str = "a") -> float | None:
    """Call a limit; return the delay that it answers, None if it lets the caller pass."""
    try:
        await plane.work(method, caller)
    except ErrorResponse as error:
        assert (error.status, error.key) == (429, "RATE_LIMITED")
        return error.retry_after
    return None


async def rows(plane: Plane) -> int:
    found = await plane.work(plane.database.one, "SELECT count(*) AS n FROM limits")
    assert found is not None
    return int(found["n"])


async def test_failures_lock_their_caller_out_for_a_while(plane: Plane, attempts: SharedAttempts, clock: Clock) -> None:
    for _ in range(3):
        assert await delay(plane, attempts.check) is None
        await plane.work(attempts.failed, "a")
        clock.wall += 1
    assert await delay(plane, attempts.check) == 899
    assert await delay(plane, attempts.check, "b") is None
    clock.wall += 899
    assert await delay(plane, attempts.check) is None
    await plane.work(attempts.failed, "a")
    assert await delay(plane, attempts.check) is None, "earlier failures are forgotten"


async def test_a_success_clears_the_failures(plane: Plane, attempts: SharedAttempts) -> None:
    for _ in range(3):
        await plane.work(attempts.failed, "a")
    await plane.work(attempts.succeeded, "a")
    await plane.work(attempts.failed, "a")
    assert await delay(plane, attempts.check) is None


async def test_a_clock_that_was_set_back_does_not_lock_out_for_longer(
    plane: Plane, attempts: SharedAttempts, clock: Clock
) -> None:
    for _ in range(3):
        await plane.work(attempts.failed, "a")
    clock.wall -= 100
    assert await delay(plane, attempts.check) == 900
    clock.wall -= 800
    assert await delay(plane, attempts.check) is None


async def test_a_bucket_allows_a_burst_then_the_rate(plane: Plane, buckets: SharedBuckets, clock: Clock) -> None:
    assert [await delay(plane, buckets.take) for _ in range(4)] == [None, None, None, 2]
    assert await delay(plane, buckets.take, "b") is None, "each caller has its own bucket"
    clock.wall += 1
    assert await delay(plane, buckets.take) == 1, "a refused request costs nothing"
    clock.wall += 1
    assert [await delay(plane, buckets.take) for _ in range(2)] == [None, 2]
    clock.wall -= 3600
    assert await delay(plane, buckets.take) is None, "nor does a clock that was set back"


async def test_what_no_longer_counts_is_deleted(
    plane: Plane, attempts: SharedAttempts, buckets: SharedBuckets, clock: Clock
) -> None:
    await plane.work(attempts.failed, "a")
    await plane.work(plane.grants._starts.take, "a")
    await plane.work(plane.certificates._requests.take, "1")
    for wrong in ("a", "b"):
        with pytest.raises(ErrorResponse, match="not the operator key"):
            await plane.operators.sign_in("ok_wrong", wrong)
    await plane.work(plane.operators.wrong_code, "session")
    await plane.work(plane.housekeeping.tidy)
    assert await rows(plane) == 6
    clock.wall += 900
    await plane.work(plane.housekeeping.tidy)
    assert await rows(plane) == 1, "of a kind that this plane does not know"
    await plane.work(attempts.delete_expired)
    assert await rows(plane) == 0


async def test_a_bucket_that_is_not_full_is_kept(plane: Plane, buckets: SharedBuckets, clock: Clock) -> None:
    for _ in range(3):
        await plane.work(buckets.take, "a")
    clock.wall += 5.9
    await plane.work(buckets.delete_expired)
    assert await rows(plane) == 1
    clock.wall += 0.2
    await plane.work(buckets.delete_expired)
    assert await rows(plane) == 0


async def test_only_the_most_recent_callers_are_remembered(
    plane: Plane, attempts: SharedAttempts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "MAX_CALLERS", 2)
    for caller in "abcd":
        await plane.work(attempts.failed, caller)
        clock.wall += 1
    await plane.work(attempts.delete_expired)
    left = await plane.work(plane.database.all, "SELECT caller FROM limits ORDER BY caller")
    assert [row["caller"] for row in left] == ["c", "d"]
