"""Delays between requests: interval, Retry-After, backoff, breaker."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.model.config import ApplicationConfig
from certctrl.protocol.breaker import BACKOFF_CAP, MAX_PROBE_PAUSE, SERVER_CAP, CircuitBreaker

CHANCE = st.floats(0, 1, exclude_max=True)
CONFIGS = st.builds(
    ApplicationConfig,
    poll_interval_ms=st.integers(10, 3_600_000),
    poll_jitter=st.floats(0, 0.5),
    breaker_failures=st.integers(1, 30),
    recovery=st.sampled_from(["auto", "manual"]),
    first_poll_spread_seconds=st.floats(0, 300),
)
NEARLY_ONE = 1 - 1e-9


def breaker(chance: float = 0.5, **settings: object) -> CircuitBreaker:
    return CircuitBreaker(attrs.evolve(ApplicationConfig(), **settings), lambda: chance)


def constant(chance: float) -> Callable[[], float]:
    return lambda: chance


def test_the_default_interval() -> None:
    assert breaker().interval() == 5.0
    assert breaker(0.0).interval() == pytest.approx(4.5)
    assert breaker(NEARLY_ONE).interval() == pytest.approx(5.5, abs=0.01)
    assert breaker(0.0, poll_jitter=0.0).interval() == 5.0


def test_the_interval_is_at_least_ten_milliseconds() -> None:
    assert breaker(poll_interval_ms=1).base == 0.01


@pytest.mark.parametrize(
    ("asked", "given_"),
    [
        (30.0, 30.0),
        (0.0, 5.0),
        (-1.0, 5.0),
        (4.9, 5.0),
        (3600.0, 3600.0),
        (1e9, 3600.0),
        (math.inf, 3600.0),
        (-math.inf, 5.0),
    ],
)
def test_retry_after_is_clamped(asked: float, given_: float) -> None:
    one = breaker(0.0)
    assert one.server_delay(asked) == one.last_retry_after == given_
    assert breaker(NEARLY_ONE).server_delay(asked) >= given_, "jitter never shortens the delay"


def test_backoff_grows_to_its_cap() -> None:
    grown = [breaker(NEARLY_ONE).backoff(n) for n in range(1, 12)]
    assert [round(delay) for delay in grown] == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
    assert breaker(0.5).backoff(9) == pytest.approx(152.5), "random below the cap, so that a fleet spreads out"
    assert breaker(0.0).backoff(9) == breaker(0.0).backoff(2) == 5.0
    assert breaker(0.0).backoff(1) == pytest.approx(4.5), "after one failure, the usual interval"
    assert breaker(NEARLY_ONE).backoff(10**9) <= BACKOFF_CAP


def test_the_breaker_opens_at_the_tenth_failure_and_probes() -> None:
    one = breaker(NEARLY_ONE)
    for n in range(1, 10):
        one.failed()
        assert (one.failures, one.is_open) == (n, False)
    probes = [one.failed() for _ in range(7)]
    assert one.is_open
    assert [round(delay) for delay in probes] == [60, 120, 240, 480, 900, 900, 900]
    one.reset()
    assert (one.failures, one.is_open) == (0, False)
    for _ in range(9):
        one.failed()
    assert not one.is_open
    assert round(one.failed()) == 60, "the next outage starts from the first delay"


def test_manual_recovery_never_probes() -> None:
    one = breaker(recovery="manual", breaker_failures=2)
    assert one.failed() < math.inf
    assert one.failed() == one.failed(1.0) == math.inf


def test_retry_after_replaces_the_backoff_but_not_the_probe_delay() -> None:
    one = breaker(0.0, breaker_failures=6)
    assert [one.failed(7.0) for _ in range(5)] == [7.0] * 5
    assert one.failed(7.0) == 30.0, "the minimum for an open breaker"
    assert one.failed(2000.0) == 2000.0


@given(CONFIGS, CHANCE, st.lists(st.none() | st.floats(-10, 1e9), max_size=60))
def test_bounds_of_every_delay(config: ApplicationConfig, chance: float, delays: list[float | None]) -> None:
    one = CircuitBreaker(config, constant(chance))
    least = one.base * (1 - config.poll_jitter) - 1e-9
    most = max(MAX_PROBE_PAUSE, SERVER_CAP, one.base * (1 + config.poll_jitter)) + 1e-9
    assert 0 <= one.first_delay() <= config.first_poll_spread_seconds
    assert least <= one.interval() <= one.base * (1 + config.poll_jitter) + 1e-9
    for count, retry_after in enumerate(delays, start=1):
        delay = one.failed(retry_after)
        assert one.failures == count
        assert one.is_open == (count >= config.breaker_failures)
        if one.is_open and config.recovery == "manual":
            assert delay == math.inf
        else:
            assert least <= delay <= most
            if retry_after is not None and not one.is_open:
                assert delay >= min(max(retry_after, one.base), SERVER_CAP) - 1e-9
                assert delay <= SERVER_CAP + 1e-9


@given(CONFIGS, CHANCE, st.floats(allow_nan=False))
def test_bounds_of_retry_after(config: ApplicationConfig, chance: float, retry_after: float) -> None:
    one = CircuitBreaker(config, constant(chance))
    assert one.base - 1e-9 <= one.server_delay(retry_after) <= SERVER_CAP
    assert one.last_retry_after is not None
    assert one.base <= one.last_retry_after <= SERVER_CAP
