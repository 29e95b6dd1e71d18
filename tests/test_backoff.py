"""Exponential backoff (``certctrl/backoff.py``)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from certctrl.backoff import grown, jittered


def test_the_pause_doubles_up_to_its_bound() -> None:
    assert [grown(5, 60, failures) for failures in (0, 1, 2, 3, 4, 5, 6)] == [5, 5, 10, 20, 40, 60, 60]


@given(st.floats(0.1, 1e3), st.floats(0.1, 1e6), st.integers(0, 10**9))
def test_never_beyond_the_bound(first: float, last: float, failures: int) -> None:
    assert 0 < grown(first, last, failures) <= last


@given(st.floats(0.1, 1e6), st.floats(0, 1, exclude_max=True))
def test_jitter_takes_at_most_half(pause: float, random: float) -> None:
    assert pause / 2 <= jittered(pause, random) <= pause
