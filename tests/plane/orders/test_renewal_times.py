"""When certificates are due: windows of the CA, shares of their lives, and the spread of those issued together."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.issuers.issuer import RenewalWindow
from certctrl.plane.orders.renewal_times import Life, ask_again_at, due_at, ending_at, late_at, spread

DAY = 86_400.0
HOUR = 3600.0
NOW = 1_790_000_000.0

TIMES = st.floats(min_value=0, max_value=4e9, allow_nan=False)
LIVES = st.tuples(TIMES, st.floats(min_value=1, max_value=400 * DAY)).map(lambda t: Life(t[0], t[0] + t[1]))
SERIALS = st.text(min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("days", "first", "last"),
    [(90, 52.5, 60), (398, 232.1, 265.34), (10, 5.83, 6.67), (6, 2.5, 3), (1, 0.41, 0.5)],
)
def test_shares_of_a_life(days: float, first: float, last: float) -> None:
    due = [due_at(Life(NOW, NOW + days * DAY), f"{number:x}") - NOW for number in range(2000)]
    assert first * DAY <= min(due) < max(due) <= last * DAY + 1


def test_ten_thousand_certificates_of_one_day_do_not_come_due_in_one_hour() -> None:
    """In no hour more than two percent, for the usual life and for a short one."""
    for days in (90, 6):
        serials = [f"{number:032x}" for number in range(10_000)]
        lives = [Life(NOW + number, NOW + number + days * DAY) for number in range(10_000)]
        hours = Counter(int(due_at(life, serial) // HOUR) for life, serial in zip(lives, serials, strict=True))
        assert max(hours.values()) < {90: 200, 6: 1200}[days]


def test_a_window_is_used_evenly() -> None:
    life, window = Life(NOW, NOW + 90 * DAY), RenewalWindow(NOW + 10 * DAY, NOW + 12 * DAY)
    due = [due_at(life, f"{number:x}", window) for number in range(2000)]
    assert window.start <= min(due) < window.start + HOUR
    assert window.end - HOUR < max(due) <= window.end
    assert Counter(int((moment - window.start) // DAY) for moment in due)[0] == pytest.approx(1000, abs=150)


def test_a_window_in_the_past_is_due_now() -> None:
    window = RenewalWindow(NOW - 10 * DAY, NOW - 9 * DAY, "https://ca.example/incident")
    assert due_at(Life(NOW - 11 * DAY, NOW + 79 * DAY), "01", window) < NOW


def test_a_window_near_the_end_or_beyond_it_is_not_waited_for() -> None:
    life = Life(NOW, NOW + 90 * DAY)
    for start in (89, 90, 400):
        assert due_at(life, "01", RenewalWindow(NOW + start * DAY, NOW + (start + 1) * DAY)) == NOW + 81 * DAY
    assert ending_at(life) == NOW + 81 * DAY


def test_a_window_of_one_moment_counts() -> None:
    assert due_at(Life(NOW, NOW + 90 * DAY), "01", RenewalWindow(NOW + DAY, NOW + DAY)) == NOW + DAY


def test_a_window_that_ends_backwards_is_ignored() -> None:
    life = Life(NOW, NOW + 90 * DAY)
    assert due_at(life, "01", RenewalWindow(NOW + 2, NOW + 1)) == due_at(life, "01")


@given(LIVES, SERIALS, st.none() | st.tuples(TIMES, TIMES).map(lambda t: RenewalWindow(*t)))
def test_every_certificate_is_due_before_its_last_tenth(life: Life, serial: str, window: RenewalWindow | None) -> None:
    due = due_at(life, serial, window)
    assert due <= ending_at(life) + 1e-3
    assert due == due_at(life, serial, window)
    if window is None:
        assert due <= late_at(life, is_imported=False) + 1e-3


@given(SERIALS)
def test_the_spread_is_a_share(serial: str) -> None:
    assert 0 <= spread(serial) < 1


def test_imported_certificates_are_reported_a_month_before_their_end() -> None:
    assert late_at(Life(NOW, NOW + 365 * DAY), is_imported=True) == NOW + 335 * DAY
    assert late_at(Life(NOW, NOW + 30 * DAY), is_imported=True) == NOW + 20 * DAY
    assert late_at(Life(NOW, NOW + 90 * DAY), is_imported=False) == NOW + 60 * DAY
    assert late_at(Life(NOW, NOW + 360 * DAY), is_imported=False) == NOW + 240 * DAY


@pytest.mark.parametrize(
    ("says", "waits"), [(None, 6 * HOUR), (0.0, 6 * HOUR), (1.0, 600.0), (7200.0, 7200.0), (1e7, DAY)]
)
def test_a_ca_is_asked_again_when_it_says(says: float | None, waits: float) -> None:
    window = None if says is None else RenewalWindow(NOW, NOW + DAY, "", NOW + says if says else 0)
    assert ask_again_at(window, NOW) - NOW == waits
