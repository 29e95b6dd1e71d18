"""Compute when the host's maintenance window allows a switch to new material. Pure."""

from __future__ import annotations

from bisect import bisect_left
from datetime import date, datetime, timedelta, tzinfo
from functools import lru_cache

from certctrl.errors import ConfigError
from certctrl.model.policy import DAYS, FULL_DAY, MaintenanceWindow, minutes_of
from certctrl.model.records import CertRecord


def in_window(now: float, window: MaintenanceWindow | None, record: CertRecord | None = None) -> bool:
    """Return whether a certificate may be switched at ``now`` (wall-clock seconds).

    True without a window, for a certificate that is not served yet or was revoked, and if less than
    ``override_when_life_below`` of the served certificate's lifetime is left. Raises ConfigError for an invalid
    window.
    """
    if window is None or record is None or not record.generation or record.revoked:
        return True
    if life_left(now, record) < window.override_when_life_below:
        return True
    return _open(now, window)


def life_left(now: float, record: CertRecord) -> float:
    """Return the remaining share of a certificate's lifetime, 0 to 1; 0 if its dates are unknown."""
    life = record.facts.not_after - record.facts.not_before
    if life <= 0:
        return 0.0
    return min(1.0, max(0.0, (record.facts.not_after - now) / life))


def next_opening(now: float, window: MaintenanceWindow | None) -> float:
    """Return when the window opens next, in wall-clock seconds; ``now`` if it is open."""
    if window is None or _open(now, window):
        return now
    later = [begins for begins, _ in _intervals(now, window, ahead=8) if begins > now]
    if not later:
        raise ConfigError("the window never opens", file="policy.json", path="$.window.days")
    return min(later)


def may_switch_at(now: float, window: MaintenanceWindow | None, record: CertRecord) -> float:
    """Return when staged material may replace a certificate, in wall-clock seconds.

    This is the next opening of the window, or the time when too little of the served certificate's life is left.
    """
    if window is None or in_window(now, window, record):
        return now
    short = record.facts.not_after - window.override_when_life_below * (
        record.facts.not_after - record.facts.not_before
    )
    return min(next_opening(now, window), max(now, short))


def window_text(window: MaintenanceWindow) -> str:
    """Return the window as text (``mon,tue 22:00-04:00 UTC``)."""
    days = "daily" if set(window.days) >= set(DAYS) else ",".join(window.days)
    return f"{days} {window.from_}-{window.to} {window.timezone}"


def _open(now: float, window: MaintenanceWindow) -> bool:
    return any(begins <= now < ends for begins, ends in _intervals(now, window, ahead=1))


def _intervals(now: float, window: MaintenanceWindow, *, ahead: int) -> list[tuple[float, float]]:
    """Return the intervals in which the window is open, from two days ago to ``ahead`` days from now.

    Whether it is open and when it opens are both computed from these, so they agree across clock changes.
    """
    begins, ends = _minutes(window.from_), _minutes(window.to)
    today = datetime.fromtimestamp(now, _zone(window.timezone)).date()
    days = [today + timedelta(days=number) for number in range(-2, ahead + 1)]
    return [_interval(day, begins, ends, window.timezone) for day in days if DAYS[day.weekday()] in window.days]


@lru_cache(maxsize=64)  # one plan may ask for thousands of certificates
def _interval(day: date, begins: int, ends: int, timezone: str) -> tuple[float, float]:
    """Return start and end of the window that begins on a day.

    A window within the hour that the clocks skip moves to the end of that hour; one that begins or ends in it keeps
    the rest. Of times that occur twice, the first counts.
    """
    if ends <= begins:  # past midnight: the window belongs to the day on which it began
        ends += FULL_DAY
    opens, closes = _first_time(day, begins, timezone), _first_time(day, ends, timezone)
    return opens, closes if closes > opens else opens + 60 * (ends - begins)


def _first_time(day: date, minutes: int, timezone: str) -> float:
    """Return when the clocks of a zone first show this time of a day, or skip it."""
    zone = _zone(timezone)
    shown = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)
    moment = shown.replace(tzinfo=zone).timestamp()
    if datetime.fromtimestamp(moment, zone).replace(tzinfo=None) == shown:
        return moment
    # skipped: the old offset puts it after the change, the new one before
    before, after = int(shown.replace(tzinfo=zone, fold=1).timestamp()), int(moment)
    offset = datetime.fromtimestamp(before, zone).utcoffset()

    def changed(second: int) -> bool:
        return datetime.fromtimestamp(second, zone).utcoffset() != offset

    return before + bisect_left(range(before, after + 1), True, key=changed)


def _minutes(text: str) -> int:
    if (found := minutes_of(text)) is None:
        raise ConfigError(f"expected HH:MM, 00:00 to 24:00, got {text!r}", file="policy.json", path="$.window")
    return found


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # imported late: few hosts have a window

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"there is no time zone {name!r} on this host",
            file="policy.json",
            path="$.window.timezone",
            fix="use UTC, or install the package tzdata",
        ) from None
