"""Who may ask how often: token buckets for devices and addresses, lock-outs for wrong keys. In memory, bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from ipaddress import IPv6Address, ip_address

from certctrl.plane.errors import rate_limited

_MOST = 100_000
"""Callers remembered per limiter; the ones asking longest ago are forgotten (a full bucket, or a lock-out, lost)."""


class Buckets:
    """One token bucket per caller."""

    def __init__(self, rate: float, burst: int, monotonic: Callable[[], float]) -> None:
        self.rate = rate
        self.burst = burst
        self._monotonic = monotonic
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Caller → (tokens left, when that was)."""

    def take(self, caller: Hashable) -> None:
        """Let the caller in, or raise 429 with the seconds until the next token."""
        now = self._monotonic()
        tokens, since = self._levels.pop(caller, (float(self.burst), now))
        tokens = min(float(self.burst), tokens + (now - since) * self.rate)
        allowed = tokens >= 1 - 1e-9  # a caller that waited exactly as told is let in, whatever floats make of it
        self._levels[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._levels) > _MOST:
            self._levels.popitem(last=False)
        if not allowed:
            raise rate_limited((1 - tokens) / self.rate, f"{self.rate:g} req/sec, burst {self.burst}")


class FreePages:
    """Which page each device may ask for without a token: the one behind the full page that it just got.

    So a backlog goes out as fast as it is taken, and nothing is gained by asking again: each page is free once, and
    each leads on by a whole page.
    """

    def __init__(self) -> None:
        self._offers: OrderedDict[Hashable, str] = OrderedDict()

    def offer(self, caller: Hashable, cursor: str) -> None:
        """Give the page behind this cursor free; an earlier offer ends."""
        self._offers.pop(caller, None)
        self._offers[caller] = cursor
        if len(self._offers) > _MOST:
            self._offers.popitem(last=False)

    def redeem(self, caller: Hashable, cursor: str | None) -> bool:
        """Return whether this page was on offer; the offer ends, whatever was asked for."""
        return self._offers.pop(caller, None) == (cursor or object())


class Attempts:
    """Wrong guesses per caller: after ``limit`` of them the caller is locked out for a while."""

    def __init__(self, limit: int, lock_out_seconds: float, monotonic: Callable[[], float]) -> None:
        self._limit = limit
        self._seconds = lock_out_seconds
        self._monotonic = monotonic
        self._failures: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()
        """Caller → (failures, the last one's time)."""

    def check(self, caller: Hashable) -> None:
        """Raise 429 while the caller is locked out."""
        failures, since = self._failures.get(caller, (0, 0.0))
        left = since + self._seconds - self._monotonic()
        if failures and left <= 0:
            del self._failures[caller]
        elif failures >= self._limit:
            raise rate_limited(left, f"{self._limit} attempts", "Too many wrong attempts")

    def failed(self, caller: Hashable) -> None:
        """Count one wrong guess; the last one allowed starts the lock-out."""
        failures, _ = self._failures.pop(caller, (0, 0.0))
        self._failures[caller] = (failures + 1, self._monotonic())
        if len(self._failures) > _MOST:
            self._failures.popitem(last=False)

    def succeeded(self, caller: Hashable) -> None:
        """Forget the caller's failures."""
        self._failures.pop(caller, None)


def caller_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, or the /64 that one host has of IPv6."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> 64 << 64)) + "/64"
    return address
