"""The budget of an ACME account, counted in the database for all planes, on both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_plane import plane_on
from hypothesis import given, settings
from hypothesis import strategies as st

from certctrl.errors import ConfigError
from certctrl.plane.core import Plane
from certctrl.plane.issuers.acme_budget import Budget, SharedBudget, read_budget
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

NOW = 1_790_000_000.0


async def take(plane: Plane, budget: SharedBudget, now: float) -> float | None:
    """Take an order; return the pause if there is none left."""
    try:
        await plane.work(budget.take, now)
    except IssuerError as error:
        assert not error.is_permanent and error.retry_after is not None
        return error.retry_after
    return None


async def test_all_planes_share_a_budget_and_issuers_do_not(open_database: Callable[[], Database]) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring) for _ in range(2)]
    limit = Budget(3, 3600)
    budgets = [SharedBudget(plane.database, "le", limit) for plane in planes]
    for number in range(3):
        assert await take(planes[number % 2], budgets[number % 2], NOW + number) is None
    for plane, budget in zip(planes, budgets, strict=True):
        assert await plane.work(budget.left, NOW + 3) == 0
        pause = await take(plane, budget, NOW + 3)
        assert pause is not None and 3590 <= pause <= 3600
    assert await take(planes[0], SharedBudget(planes[0].database, "other", limit), NOW + 3) is None
    assert await take(planes[0], budgets[0], NOW + 3 + 3600) is None


async def test_no_budget(open_database: Callable[[], Database]) -> None:
    plane = plane_on(open_database())
    budget = SharedBudget(plane.database, "le", None)
    assert [await take(plane, budget, NOW) for _ in range(5)] == [None] * 5
    assert await plane.work(budget.left, NOW) is None


async def test_a_clock_that_was_set_back_does_not_stop_orders_for_longer(open_database: Callable[[], Database]) -> None:
    plane = plane_on(open_database())
    budget = SharedBudget(plane.database, "le", Budget(1, 3600))
    assert await take(plane, budget, NOW) is None
    pause = await take(plane, budget, NOW - 1000)
    assert pause is not None and pause <= 3600
    assert await take(plane, budget, NOW - 90_000) is None


@settings(max_examples=25)
@given(
    orders=st.integers(1, 6),
    seconds=st.sampled_from([60, 3600, 10_800]),
    steps=st.lists(st.floats(0.0, 0.4), min_size=1, max_size=40),
)
async def test_no_window_has_more_orders_than_the_budget(orders: int, seconds: int, steps: list[float]) -> None:
    """Whenever orders are wanted; and a pause that was waited for suffices."""
    with Plane.open() as plane:
        budget = SharedBudget(plane.database, "le", Budget(orders, seconds))
        now, taken = NOW, []
        for step in steps:
            now += step * seconds
            pause = await take(plane, budget, now)
            if pause is None:
                taken.append(now)
            elif len(taken) % 2:
                now += pause
                assert await take(plane, budget, now) is None
                taken.append(now)
        for index, at in enumerate(taken):
            assert sum(1 for other in taken[index:] if other - at < seconds) <= orders


@pytest.mark.parametrize(
    ("text", "orders", "seconds", "shown"),
    [
        ("300/3h", 300, 10_800, "300 orders per 3h"),
        ("5/m", 5, 60, "5 orders per 1m"),
        ("50 / 7 d", 50, 604_800, "50 orders per 1w"),
        ("10/90m", 10, 5400, "10 orders per 90m"),
    ],
)
def test_budgets(text: str, orders: int, seconds: int, shown: str) -> None:
    assert read_budget(text) == Budget(orders, seconds)
    assert str(read_budget(text)) == shown


def test_an_unlimited_budget_and_one_that_is_none() -> None:
    assert read_budget("unlimited") is None
    with pytest.raises(ConfigError, match=r"^budget: expected orders per time"):
        read_budget("many")
