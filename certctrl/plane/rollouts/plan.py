"""The plan of a rollout: its waves, serial groups and windows. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from certctrl import lean

MAX_WAVES = 20
DEFAULT_WAVES = ("1", "10%")
DAY_SECONDS = 86_400
FROZEN = "rollouts_frozen:"
"""Start of the name of a setting for each user: why nothing is released."""
RENEWAL_PLAN = "renewal_rollouts:"
"""Start of the name of a setting for each user: the plan of renewals that are due."""
_WAVE = re.compile(r"([1-9]\d{0,5})(%?)", re.ASCII)
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


class RulesError(ValueError):
    """A rule of a rollout is not valid."""


@lean.frozen
class WaveSize:
    """The size of a wave: a number of devices, or a share of all."""

    number: int
    is_percent: bool

    def of(self, total: int) -> int:
        """Return the number of devices of so many, rounded up."""
        return math.ceil(total * self.number / 100) if self.is_percent else self.number


def wave_sizes(texts: Sequence[str]) -> tuple[WaveSize, ...]:
    """Return sizes such as ``1`` and ``10%``; all devices that are left are the last wave. Raises RulesError."""
    found = []
    for text in texts:
        match = _WAVE.fullmatch(text.strip())
        if match is None or (match[2] and int(match[1]) > 100):
            raise RulesError(f"{text[:20]!r} is not the size of a wave: use a number of devices, or 1% to 100%")
        found.append(WaveSize(int(match[1]), bool(match[2])))
    if len(found) >= MAX_WAVES:
        raise RulesError(f"{len(found)} waves and the rest are more than {MAX_WAVES}")
    return tuple(found)


def waves_of(devices: Sequence[int], sizes: Sequence[WaveSize], canaries: Collection[int] = ()) -> dict[int, int]:
    """Return the wave of each device, from 1: first the canaries, if any, then waves of these sizes, then the rest."""
    first = [one for one in devices if one in canaries]
    others = [one for one in devices if one not in canaries]
    counts = ([len(first)] if first else []) + [size.of(len(devices)) for size in sizes]
    waves, wave, left = {}, 1, counts[0] if counts else len(devices)
    for one in first + others:
        while left == 0:
            wave += 1
            left = counts[wave - 1] if wave <= len(counts) else len(devices)
        waves[one] = wave
        left -= 1
    return waves


def serial_group(rule: str, tags: Collection[str]) -> str:
    """Return the serial group of a device: its tag ``rule``, or its value of the key ``rule=``; empty: none."""
    if not rule:
        return ""
    if rule.endswith("="):
        return next((tag for tag in sorted(tags) if tag.startswith(rule)), "")
    return rule if rule in tags else ""


@lean.frozen
class Window:
    """A time of the day, in UTC, in seconds after midnight; it may span midnight."""

    begin: int
    end: int

    def contains(self, now: float) -> bool:
        """Return whether a time (seconds since the epoch) is in it."""
        second = now % DAY_SECONDS
        if self.begin <= self.end:
            return self.begin <= second < self.end
        return second >= self.begin or second < self.end


def windows_of(texts: Sequence[str]) -> tuple[Window, ...]:
    """Return windows such as ``22:00-06:00``. Raises RulesError."""
    found = []
    for text in texts:
        match = _WINDOW.fullmatch(text.strip())
        if match is None or text.strip()[:5] == text.strip()[6:]:
            raise RulesError(f"{text[:20]!r} is not a window: use HH:MM-HH:MM in UTC, such as 22:00-06:00")
        hours = [int(one) for one in match.groups()]
        found.append(Window(hours[0] * 3600 + hours[1] * 60, hours[2] * 3600 + hours[3] * 60))
    return tuple(found)


def closed(windows: Sequence[Window], now: float) -> bool:
    """Return whether there are windows, and none is open."""
    return bool(windows) and not any(one.contains(now) for one in windows)
