"""The maintenance window opens and closes by the clock of its time zone."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import ConfigError
from certctrl.install.plan.window import in_window, life_left, may_switch_at, next_opening, window_text
from certctrl.model.certificate import CertFacts
from certctrl.model.policy import DAYS, MaintenanceWindow
from certctrl.model.records import CertRecord

SERVING = CertRecord(facts=CertFacts(cert_id=1, name="a", not_before=0.0, not_after=4e9), generation="g1")
NIGHT = MaintenanceWindow(days=("tue", "sat"), from_="22:30", to="02:00", timezone="Europe/Berlin")


def living(**facts: float) -> CertRecord:
    """Return the live certificate with other bounds of its validity."""
    return attrs.evolve(SERVING, facts=attrs.evolve(SERVING.facts, **facts))


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-24 21:29", False),  # Tuesday 22:29 in Berlin
        ("2026-11-24 21:30", True),
        ("2026-11-25 00:59", True),  # Wednesday 01:59: still Tuesday's night
        ("2026-11-25 01:00", False),
        ("2026-11-25 22:00", False),  # Wednesday night
        ("2026-11-24 00:30", False),  # Tuesday 01:30: Monday's night
        ("2026-07-07 20:30", True),  # summer time
        ("2026-07-07 21:30", True),
        ("2026-07-07 20:29", False),
    ],
)
def test_over_midnight_in_another_zone(moment: str, expected: bool) -> None:
    assert in_window(at(moment), NIGHT, SERVING) is expected


def test_plain_hours_and_the_whole_day() -> None:
    office = MaintenanceWindow(days=("mon",), from_="09:00", to="17:00")
    assert [in_window(at(f"2026-11-23 {t}"), office, SERVING) for t in ("08:59", "09:00", "16:59", "17:00")] == [
        False, True, True, False,
    ]  # fmt: skip
    whole = MaintenanceWindow(days=("mon",))
    assert in_window(at("2026-11-23 23:59"), whole, SERVING)
    assert not in_window(at("2026-11-24 00:00"), whole, SERVING)


def test_some_switches_ignore_the_window() -> None:
    closed = MaintenanceWindow(days=("mon",), from_="09:00", to="09:01", override_when_life_below=0.2)
    now = at("2026-11-24 12:00")
    assert in_window(now, None, SERVING)
    assert in_window(now, closed, None)
    assert in_window(now, closed, attrs.evolve(SERVING, generation=""))
    assert not in_window(now, closed, living(not_before=now - 79, not_after=now + 21))
    assert in_window(now, closed, living(not_before=now - 81, not_after=now + 19))
    assert not in_window(80.0, closed, living(not_before=0.0, not_after=100.0)), "exactly the bound"
    assert in_window(now, closed, living(not_before=0.0, not_after=0.0)), "unknown life is no reason to wait"


def test_the_end_of_waiting_is_known() -> None:
    monday = MaintenanceWindow(days=("mon",), from_="09:00", to="10:00", override_when_life_below=0.2)
    now = at("2026-11-24 12:00")
    assert may_switch_at(now, None, SERVING) == now
    assert may_switch_at(now, monday, SERVING) == next_opening(now, monday)
    assert may_switch_at(now, monday, living(not_before=now - 50, not_after=now + 50)) == now + 30
    assert may_switch_at(now, monday, living(not_before=now - 90, not_after=now + 10)) == now


def test_life_left_is_a_share() -> None:
    record = CertRecord(facts=CertFacts(cert_id=1, name="a", not_before=100.0, not_after=200.0))
    assert [life_left(now, record) for now in (50.0, 100.0, 150.0, 200.0, 300.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert life_left(0.5, living(not_before=0.0, not_after=1.0)) == 0.5
    assert life_left(0.5, living(not_before=1.0, not_after=1.0)) == 0.0, "its dates are unknown"


days = st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(tuple)
clock = st.integers(0, 24 * 60 - 1).map(lambda m: f"{m // 60:02}:{m % 60:02}")


@given(
    days=days,
    begins=clock,
    ends=clock,
    now=st.floats(1.6e9, 2.0e9),
    zone=st.sampled_from(["UTC", "Asia/Tokyo", "Europe/Berlin"]),
)
def test_the_next_opening_is_open_and_nothing_before_it_is(
    days: tuple[str, ...], begins: str, ends: str, now: float, zone: str
) -> None:
    window = MaintenanceWindow(days=days, from_=begins, to=ends, timezone=zone)
    moment = next_opening(now, window)
    assert moment >= now
    assert in_window(moment, window, SERVING)
    if moment > now:
        assert not in_window(now, window, SERVING)
        assert not in_window(moment - 1, window, SERVING)
        assert moment - now <= 8 * 86_400


# --- days on which the clocks are changed -----------------------------------------------------------------------------

CHANGES = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("Australia/Lord_Howe", "2026-10-04"),  # by half an hour
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Africa/Cairo", "2026-04-24"),  # the hour from midnight on
    ("America/Santiago", "2026-04-04"),  # the hour before midnight, twice
    ("America/St_Johns", "2010-11-07"),  # a minute after midnight, back to the day before
    ("Pacific/Apia", "2011-12-30"),  # a day that there was not
]
HOURS = ["02:15-02:45", "02:00-03:00", "01:30-02:30", "02:30-03:15", "23:00-02:30", "23:50-00:10", "00:15-00:45",
         "23:30-00:00", "00:00-24:00", "03:00-03:00"]  # fmt: skip


@pytest.mark.parametrize(("zone", "day"), CHANGES)
@pytest.mark.parametrize("one_day", [False, True])
def test_on_such_a_day_the_next_opening_is_the_next_open_minute(zone: str, day: str, one_day: bool) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    minutes = range(int(start.timestamp()) - 86_400, int(start.timestamp()) + 2 * 86_400, 300)
    for hours in HOURS:
        begins, ends = hours.split("-")
        days = (DAYS[start.weekday()],) if one_day else DAYS
        window = MaintenanceWindow(days=days, from_=begins, to=ends, timezone=zone)
        opens = [now for now in minutes if in_window(now, window, SERVING)]
        assert opens, "it opens across clock changes"
        opening = inf
        for now in reversed(minutes):
            opening = now if now in opens else opening
            if opening < inf:
                assert next_opening(now, window) == opening, (hours, datetime.fromtimestamp(now, start.tzinfo))


@pytest.mark.parametrize(
    ("hours", "opens", "minutes"),
    [
        ("02:15-02:45", "2026-03-29 01:00", 30),  # there is no such hour: right after it
        ("02:00-03:00", "2026-03-29 01:00", 60),
        ("02:30-03:15", "2026-03-29 01:00", 15),  # what is left of it
        ("01:30-02:30", "2026-03-29 00:30", 30),
        ("23:00-02:30", "2026-03-29 21:00", 210),  # the night after
        ("02:15-02:45", "2026-10-25 00:15", 30),  # that half hour comes twice: once is enough
        ("01:30-02:30", "2026-10-24 23:30", 60),
        ("02:30-04:00", "2026-10-25 00:30", 150),
    ],
)
def test_a_window_in_the_hour_that_is_skipped_or_comes_twice(hours: str, opens: str, minutes: int) -> None:
    begins, ends = hours.split("-")
    window = MaintenanceWindow(days=("sun",), from_=begins, to=ends, timezone="Europe/Berlin")
    first = next_opening(at(opens) - 3600, window)
    assert first == at(opens)
    length = next(n for n in range(1, 2000) if not in_window(first + 60 * n, window, SERVING))
    assert length == minutes
    assert next_opening(first + 60 * length, window) > first + 5 * 86_400


@pytest.mark.parametrize(
    ("wrong", "path", "fix"),
    [
        ({"from_": "9"}, "$.window", None),
        ({"to": "25:00"}, "$.window", None),
        ({"from_": "10:60"}, "$.window", None),
        ({"timezone": "Mars/Olympus"}, "$.window.timezone", "use UTC, or install the package tzdata"),
        ({"timezone": "../x"}, "$.window.timezone", "use UTC, or install the package tzdata"),
        ({"days": ()}, "$.window.days", None),
    ],
)
def test_a_senseless_window_is_a_configuration_error(wrong: dict[str, Any], path: str, fix: str | None) -> None:
    window = attrs.evolve(MaintenanceWindow(), **wrong)
    with pytest.raises(ConfigError, match="window") as caught:
        may_switch_at(at("2026-11-24 12:00"), window, SERVING)
    assert (caught.value.file, caught.value.path, caught.value.fix) == ("policy.json", path, fix)


@pytest.mark.parametrize(
    "wrong", [{"from_": "9"}, {"to": "25:00"}, {"from_": "10:60"}, {"timezone": "Mars/Olympus"}, {"timezone": "../x"}]
)
def test_an_invalid_window_never_counts_as_closed(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="window"):
        in_window(at("2026-11-24 12:00"), attrs.evolve(MaintenanceWindow(), **wrong), SERVING)


def test_a_window_without_days_never_opens() -> None:
    with pytest.raises(ConfigError, match="never opens"):
        next_opening(0.0, MaintenanceWindow(days=()))


def test_window_text() -> None:
    assert window_text(NIGHT) == "tue,sat 22:30-02:00 Europe/Berlin"
    assert window_text(MaintenanceWindow()) == "daily 00:00-24:00 UTC"
