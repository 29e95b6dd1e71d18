"""Limits of one process: token buckets for devices and addresses, connections; in memory, bounded.

They protect the process from load. Limits of what callers may achieve are shared by all planes (``shared_limits``).
Units of work use them in threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address

from certctrl import lean
from certctrl.plane.errors import rate_limited

_AUTHENTICATION_SECONDS = 5.0
"""Seconds in which a connection should have authenticated."""
MAX_CALLERS = 100_000
"""Callers remembered per limiter; the least recent are forgotten, with their bucket or lock-out."""


class Buckets:
    """One token bucket per caller."""

    def __init__(self, rate: float, burst: int, monotonic: Callable[[], float]) -> None:
        self.rate = rate
        self.burst = burst
        self._monotonic = monotonic
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Caller → (tokens left, time of that count)."""
        self._lock = threading.Lock()

    def take(self, caller: Hashable) -> None:
        """Take a token; ErrorResponse 429 with the seconds until the next one if there is none."""
        with self._lock:
            now = self._monotonic()
            tokens, since = self._levels.pop(caller, (float(self.burst), now))
            tokens = refilled(tokens, now - since, self.rate, self.burst)
            self._levels[caller] = (tokens, now)
            if len(self._levels) > MAX_CALLERS:
                self._levels.popitem(last=False)
            self._levels[caller] = (spent(tokens, self.rate, self.burst), now)


def refilled(tokens: float, seconds: float, rate: float, burst: int) -> float:
    """Return the tokens of a bucket after some seconds."""
    return min(float(burst), tokens + seconds * rate)


def spent(tokens: float, rate: float, burst: int) -> float:
    """Return the tokens after one is taken; ErrorResponse 429 with the seconds until the next one if there is none."""
    if tokens < 1 - 1e-9:  # tolerate rounding: a caller that has waited as requested is admitted
        raise rate_limited((1 - tokens) / rate, f"{rate:g} req/sec, burst {burst}")
    return tokens - 1


class FreePages:
    """The page that each device may poll without a token: the one after the full page that it just received.

    So a backlog is delivered at full speed. Repeating a request gains nothing: each page is free once.
    """

    def __init__(self) -> None:
        self._offers: OrderedDict[Hashable, str] = OrderedDict()
        self._lock = threading.Lock()

    def offer(self, caller: Hashable, cursor: str) -> None:
        """Make the page after this cursor free, in place of an earlier one."""
        with self._lock:
            self._offers.pop(caller, None)
            self._offers[caller] = cursor
            if len(self._offers) > MAX_CALLERS:
                self._offers.popitem(last=False)

    def redeem(self, caller: Hashable, cursor: str | None) -> bool:
        """Return whether the page after this cursor is free; the offer ends in any case."""
        return self._offers.pop(caller, None) == (cursor or object())


class UnauthenticatedConnections:
    """Connections that have not yet authenticated: at most ``per_address`` of one address, and ``total`` altogether.

    One above the limit replaces the oldest one that has had ``_AUTHENTICATION_SECONDS`` to authenticate; without such a
    one, it is refused. A connection that has authenticated no longer counts. So any number of devices behind one
    address stays connected, and a client that only opens connections cannot keep them out.
    """

    def __init__(self, per_address: int, total: int, monotonic: Callable[[], float]) -> None:
        self._per_address = per_address
        self._total = total
        self._monotonic = monotonic
        self._all: dict[UnauthenticatedConnection, None] = {}
        self._by_caller: dict[str, dict[UnauthenticatedConnection, None]] = {}
        """Caller -> its connections; both are in the order of arrival."""

    def admit(self, caller: str, close: Callable[[], None]) -> UnauthenticatedConnection | None:
        """Return a new connection of a caller, closed by ``close``; None if there are too many."""
        now = self._monotonic()
        for known, most in ((self._by_caller.get(caller, {}), self._per_address), (self._all, self._total)):
            if len(known) >= most:
                oldest = next(iter(known))
                if now - oldest.since < _AUTHENTICATION_SECONDS:
                    return None
                oldest.close()
                oldest.leave()
        connection = UnauthenticatedConnection(now, close, partial(self._leave, caller))
        self._all[connection] = self._by_caller.setdefault(caller, {})[connection] = None
        return connection

    def _leave(self, caller: str, connection: UnauthenticatedConnection) -> None:
        if connection in self._all:
            del self._all[connection], self._by_caller[caller][connection]
            if not self._by_caller[caller]:
                del self._by_caller[caller]


@lean.frozen(eq=False)
class UnauthenticatedConnection:
    """One connection until it authenticates or closes."""

    since: float
    close: Callable[[], None]
    _leave: Callable[[UnauthenticatedConnection], None]

    def leave(self) -> None:
        """Stop counting this connection; idempotent."""
        self._leave(self)


def plain_address(address: str) -> str:
    """Return an address as users know it: IPv4 as IPv4 on a listener for both protocols, IPv6 without its zone."""
    if ":" not in address:
        return address
    address = address.partition("%")[0]
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


@lru_cache(maxsize=4096)  # more than the pending grants, whose addresses each start of one compares
def caller_of(address: str) -> str:
    """Return the caller that an address belongs to: an IPv4 address, or an IPv6 /64, which one host may own."""
    address = plain_address(address)
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(IPv6Address(int(parsed) >> 64 << 64)) + "/64"
    return address
