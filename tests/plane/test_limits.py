"""Limits of one process: token buckets and connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.errors import ErrorResponse
from certctrl.plane.limits import Buckets, FreePages, UnauthenticatedConnections, caller_of, plain_address


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(buckets: Buckets, caller: int = 1) -> ErrorResponse | None:
    try:
        buckets.take(caller)
    except ErrorResponse as error:
        return error
    return None


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    buckets = Buckets(1.0, 5, clock)
    assert [refused(buckets) for _ in range(5)] == [None] * 5
    error = refused(buckets)
    assert error is not None
    assert (error.status, error.key, error.retry_after) == (429, "RATE_LIMITED", 1)
    assert error.params["retry_after"] == 1
    assert refused(buckets, 2) is None, "each caller has its own bucket"
    clock.now += 1
    assert refused(buckets) is None
    assert refused(buckets) is not None


@given(st.floats(0.01, 50), st.integers(1, 10), st.lists(st.floats(0, 20), max_size=30))
def test_waiting_as_requested_suffices(rate: float, burst: int, pauses: list[float]) -> None:
    clock = Clock()
    buckets = Buckets(rate, burst, clock)
    for pause in pauses:
        clock.now += pause
        error = refused(buckets)
        if error is not None:
            assert error.retry_after is not None
            clock.now += error.retry_after
            assert refused(buckets) is None


@given(st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_never_more_than_burst_plus_rate(pauses: list[float]) -> None:
    clock = Clock()
    buckets = Buckets(1.0, 5, clock)
    let_in = 0
    for pause in pauses:
        clock.now += pause
        let_in += refused(buckets) is None
    assert let_in <= 5 + (clock.now - 100.0) + 1e-6


def test_refused_requests_cost_nothing() -> None:
    clock = Clock()
    buckets = Buckets(1.0, 1, clock)
    buckets.take(1)
    assert all(refused(buckets) for _ in range(100))
    clock.now += 1
    assert refused(buckets) is None


def test_the_delay_is_until_the_next_token() -> None:
    clock = Clock()
    buckets = Buckets(0.5, 1, clock)
    assert refused(buckets) is None
    delays = []
    for _ in range(3):
        error = refused(buckets)
        delays.append(None if error is None else error.retry_after)
        clock.now += 1
    assert delays == [2, 1, None]


def test_the_callers_that_were_seen_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.limits.MAX_CALLERS", 2)
    buckets, pages = Buckets(0.001, 1, Clock()), FreePages()
    assert [refused(buckets, caller) for caller in (1, 2)] == [None, None]
    assert all(refused(buckets, caller) for caller in (1, 2)), "both are remembered"
    assert refused(buckets, 3) is None
    assert refused(buckets, 3) and refused(buckets, 2)
    assert refused(buckets, 1) is None, "the least recent is forgotten, and is full again"
    for caller in (1, 2, 1, 3):
        pages.offer(caller, f"{caller}")
    assert [pages.redeem(caller, f"{caller}") for caller in (1, 2, 3)] == [True, False, True]


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("no:address", "no:address"),
        ("", ""),
    ],
)
def test_an_address_as_users_know_it(address: str, plain: str) -> None:
    assert plain_address(address) == plain


def test_a_free_page_is_free_once_and_for_its_cursor_only() -> None:
    pages = FreePages()
    assert not pages.redeem(1, None)
    pages.offer(1, "1-1")
    assert not pages.redeem(2, "1-1"), "offered to another caller"
    assert pages.redeem(1, "1-1")
    assert not pages.redeem(1, "1-1"), "each page is free once"
    pages.offer(1, "2-1")
    assert not pages.redeem(1, "1-1"), "an earlier page is not free, and ends the offer"
    assert not pages.redeem(1, "2-1")


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("", ""),
        ("not an address", "not an address"),
    ],
)
def test_what_counts_as_one_caller(address: str, caller: str) -> None:
    assert caller_of(address) == caller


# --- connections ---------------------------------------------------------------------------------------------------


def unauthenticated(
    per_address: int, total: int
) -> tuple[UnauthenticatedConnections, Clock, list[str], Callable[[str, str], Any]]:
    """Return the limiter, its clock, the names of closed connections, and ``admit(caller, name)``."""
    clock, closed = Clock(), list[str]()
    found = UnauthenticatedConnections(per_address, total, clock)
    return found, clock, closed, lambda caller, name: found.admit(caller, lambda: closed.append(name))


def test_connections_of_one_address_and_of_all_are_limited() -> None:
    _, _, closed, admit = unauthenticated(2, 3)
    assert admit("a", "a1") and admit("a", "a2")
    assert admit("a", "a3") is None
    assert admit("b", "b1")
    assert admit("c", "c1") is None
    assert closed == [], "they may still authenticate"


def test_a_connection_that_authenticated_or_closed_no_longer_counts() -> None:
    found, _, _, admit = unauthenticated(1, 2)
    for _ in range(3):
        connection = admit("a", "a1")
        assert connection is not None
        connection.leave()
        connection.leave()
    first = admit("a", "a1")
    assert admit("a", "a2") is None
    assert first is not None
    first.leave()
    assert admit("a", "a2")
    assert len(found._all) == len(found._by_caller) == 1, "nothing is kept"


def test_the_oldest_connection_makes_room_once_it_has_had_its_time() -> None:
    """So a client cannot keep others behind its address out by opening connections."""
    _, clock, closed, admit = unauthenticated(2, 3)
    admit("a", "a1")
    clock.now += 4
    admit("a", "a2")
    assert admit("a", "a3") is None
    clock.now += 1
    assert admit("a", "a3")
    assert closed == ["a1"]
    assert admit("a", "a4") is None
    assert admit("b", "b1")
    clock.now += 4
    assert admit("c", "c1"), "the oldest of all addresses"
    assert closed == ["a1", "a2"]
