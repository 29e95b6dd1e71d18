"""Admission: which connections a small public listener keeps, so that no client keeps others out.

A connection without a request makes room for the next one, the oldest first: an authority sends its request within a
moment, a client that only holds connections open does not. One address has fewer places than there are, and closes its own first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address

import trio


class Place:
    """A connection that was let in; cancelling ``scope`` ends it."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.scope = trio.CancelScope()
        self.is_idle = True
        """Whether no request of the client is being answered."""


class Admission:
    """The places of one listener."""

    def __init__(self, connections: int, per_address: int) -> None:
        """An IPv6 address counts with its /64, which one host may own."""
        self._connections = connections
        self._per_address = per_address
        self._places: list[Place] = []
        """The oldest first."""

    @contextmanager
    def admitted(self, address: str) -> Iterator[Place | None]:
        """Give a connection a place for the block, which ends when the place is needed; None: there is none."""
        place = Place(caller_of(address))
        if not self._make_room(place.caller):
            yield None
            return
        self._places.append(place)
        try:
            with place.scope:
                yield place
        finally:
            if place in self._places:
                self._places.remove(place)

    def _make_room(self, caller: str) -> bool:
        """End the oldest idle connection if there are too many, of this caller or in all; False if none is idle."""
        own = [place for place in self._places if place.caller == caller]
        for places, most in ((own, self._per_address), (self._places, self._connections)):
            if len(places) < most:
                continue
            oldest = next((place for place in places if place.is_idle), None)
            if oldest is None:
                return False
            self._places.remove(oldest)
            oldest.scope.cancel()
        return True


def peer_of(stream: trio.SocketStream) -> str:
    """Return the address of the other side; empty if it is gone already."""
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return ""


def caller_of(address: str) -> str:
    """Return the caller that an address belongs to: an IPv4 address, also as IPv6 shows it, or an IPv6 /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
