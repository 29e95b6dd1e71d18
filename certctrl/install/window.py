"""When new material may be swapped in: the host's maintenance window as pure functions of the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

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
    life = record.not_after - record.not_before
    if life <= 0:
        return 0.0
    return min(1.0, max(0.0, (record.not_after - now) / life))


def next_opening(now: float, window: MaintenanceWindow | None) -> float:
    """Return the wall-clock second at which the window is open next; ``now`` when it is open."""
    if window is None or _open(now, window):
        return now
    zone = _zone(window)
    begins = _minutes(window.from_)
    today = datetime.fromtimestamp(now, zone).date()
    for ahead in range(9):
        day = today + timedelta(days=ahead)
        if DAYS[day.weekday()] not in window.days:
            continue
        local = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(minutes=begins)
        moment = local.astimezone(UTC).timestamp()
        if moment > now:
            return moment
    raise ConfigError("the window never opens", file="policy.json", path="$.window.days")


def may_switch_at(now: float, window: MaintenanceWindow | None, record: CertRecord) -> float:
    """Return the wall-clock second from which staged material may take a certificate's place.

    The next opening of the window, or the moment at which too little of the served certificate's life is left.
    """
    if window is None or in_window(now, window, record):
        return now
    short = record.not_after - window.override_when_life_below * (record.not_after - record.not_before)
    return min(next_opening(now, window), max(now, short))


def window_text(window: MaintenanceWindow) -> str:
    """Return the window in a few words for a person."""
    days = "daily" if set(window.days) >= set(DAYS) else ",".join(window.days)
    return f"{days} {window.from_}-{window.to} {window.timezone}"


def _open(now: float, window: MaintenanceWindow) -> bool:
    local = datetime.fromtimestamp(now, _zone(window))
    minute = local.hour * 60 + local.minute
    begins, ends = _minutes(window.from_), _minutes(window.to)
    today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
    if begins < ends:
        return today in window.days and begins <= minute < ends
    # over midnight (or the whole day when both are equal): the night belongs to the day on which it began
    return (today in window.days and minute >= begins) or (yesterday in window.days and minute < ends)


def _minutes(text: str) -> int:
    hours, _, minutes = text.partition(":")
    if hours.isdecimal() and minutes.isdecimal() and len(minutes) == 2:
        total = int(hours) * 60 + int(minutes)
        if int(minutes) < 60 and total <= _FULL_DAY:
            return total
    raise ConfigError(f"expected HH:MM, 00:00 to 24:00, got {text!r}", file="policy.json", path="$.window")


def _zone(window: MaintenanceWindow) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # here: few hosts have a window

    try:
        return ZoneInfo(window.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"there is no time zone {window.timezone!r} on this host",
            file="policy.json", path="$.window.timezone", fix="use UTC, or install the package tzdata",
        ) from None  # fmt: skip
