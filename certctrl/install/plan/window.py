"""When new material may be swapped in: the host's maintenance window as pure functions of the time."""

from __future__ import annotations

from bisect import bisect_left
from datetime import date, datetime, timedelta, tzinfo
from functools import lru_cache

from certctrl.errors import ConfigError
from certctrl.model.policy import MaintenanceWindow
from certctrl.model.records import CertRecord

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FULL_DAY = 24 * 60


def in_window(now: float, window: MaintenanceWindow | None, record: CertRecord | None = None) -> bool:
    """Return whether a certificate may be switched at ``now`` (wall-clock seconds).

    True without a window, for a certificate that serves nothing yet or something revoked, and when less than
    ``override_when_life_below`` of the served certificate's life is left. Raises ConfigError for a window that
    makes no sense.
    """
    if window is None or record is None or not record.generation or record.revoked:
        return True
    if life_left(now, record) < window.override_when_life_below:
        return True
    return _open(now, window)


def life_left(now: float, record: CertRecord) -> float:
    """Return the share of a certificate's life that is left, 0 to 1; 0 for one whose dates are unknown."""
    life = record.facts.not_after - record.facts.not_before
    if life <= 0:
        return 0.0
    return min(1.0, max(0.0, (record.facts.not_after - now) / life))


def next_opening(now: float, window: MaintenanceWindow | None) -> float:
    """Return the wall-clock second at which the window is open next; ``now`` when it is open."""
    if window is None or _open(now, window):
        return now
    later = [begins for begins, _ in _spells(now, window, ahead=8) if begins > now]
    if not later:
        raise ConfigError("the window never opens", file="policy.json", path="$.window.days")
    return min(later)


def may_switch_at(now: float, window: MaintenanceWindow | None, record: CertRecord) -> float:
    """Return the wall-clock second from which staged material may take a certificate's place.

    The next opening of the window, or the moment at which too little of the served certificate's life is left.
    """
    if window is None or in_window(now, window, record):
        return now
    short = record.facts.not_after - window.override_when_life_below * (
        record.facts.not_after - record.facts.not_before
    )
    return min(next_opening(now, window), max(now, short))


def window_text(window: MaintenanceWindow) -> str:
    """Return the window in a few words for a person."""
    days = "daily" if set(window.days) >= set(DAYS) else ",".join(window.days)
    return f"{days} {window.from_}-{window.to} {window.timezone}"


def _open(now: float, window: MaintenanceWindow) -> bool:
    return any(begins <= now < ends for begins, ends in _spells(now, window, ahead=1))


def _spells(now: float, window: MaintenanceWindow, *, ahead: int) -> list[tuple[float, float]]:
    """Return from when to when the window is open, from what may have begun two days ago to some days ahead.

    Whether it is open and when it opens are both read from here, so that they agree whatever the clocks do.
    """
    begins, ends = _minutes(window.from_), _minutes(window.to)
    today = datetime.fromtimestamp(now, _zone(window.timezone)).date()
    days = [today + timedelta(days=number) for number in range(-2, ahead + 1)]
    return [_spell(day, begins, ends, window.timezone) for day in days if DAYS[day.weekday()] in window.days]


@lru_cache(maxsize=64)  # thousands of certificates may ask in one go
def _spell(day: date, begins: int, ends: int, timezone: str) -> tuple[float, float]:
    """Return from when to when the window that begins on a day is open.

    One within the hour that the clocks skip is moved to the moment after it; one that begins or ends there has what
    is left. Times that come twice count when they come first.
    """
    if ends <= begins:  # over midnight: the night belongs to the day on which it began
        ends += _FULL_DAY
    opens, closes = _reached(day, begins, timezone), _reached(day, ends, timezone)
    return opens, closes if closes > opens else opens + 60 * (ends - begins)


def _reached(day: date, minutes: int, timezone: str) -> float:
    """Return the first moment at which the clocks of a zone show this time of a day, or skip it."""
    zone = _zone(timezone)
    shown = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)
    moment = shown.replace(tzinfo=zone).timestamp()
    if datetime.fromtimestamp(moment, zone).replace(tzinfo=None) == shown:
        return moment
    # skipped: reckoned with the offset before it, it comes after the change, and with the one after it, before
    before, after = int(shown.replace(tzinfo=zone, fold=1).timestamp()), int(moment)
    offset = datetime.fromtimestamp(before, zone).utcoffset()

    def changed(second: int) -> bool:
        return datetime.fromtimestamp(second, zone).utcoffset() != offset

    return before + bisect_left(range(before, after + 1), True, key=changed)


def _minutes(text: str) -> int:
    hours, _, minutes = text.partition(":")
    if hours.isdecimal() and minutes.isdecimal() and len(minutes) == 2:
        total = int(hours) * 60 + int(minutes)
        if int(minutes) < 60 and total <= _FULL_DAY:
            return total
    raise ConfigError(f"expected HH:MM, 00:00 to 24:00, got {text!r}", file="policy.json", path="$.window")


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # here: few hosts have a window

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"there is no time zone {name!r} on this host",
            file="policy.json",
            path="$.window.timezone",
            fix="use UTC, or install the package tzdata",
        ) from None
