"""Load balancers that name the client of a connection or request: the PROXY protocol and ``X-Forwarded-For``.

Both count only from addresses that the operator lists. A listed TCP proxy must send a PROXY header, version 1 or 2, at
the start of each connection (haproxy.org, proxy-protocol.txt §2): guessing would let clients send their own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import trio

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.plane.http.middleware import App, Receive, Scope, Send
from certctrl.plane.limits import plain_address

Network = IPv4Network | IPv6Network
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_MOST_V1 = 107
_MOST_V2 = 2048
"""Bytes after the first 16; proxies add at most a few hundred of their own."""
_V2_PROXY = 0x21
_V2_LOCAL = 0x20
_V2_ADDRESSES = {0x11: ("!4s4sHH", IPv4Address), 0x21: ("!16s16sHH", IPv6Address)}
_V1_ADDRESSES = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}
_FORWARDED_FOR = b"x-forwarded-for"
_MAX_FORWARDED = 64
"""Addresses of ``X-Forwarded-For`` that are read, from the end."""

Address = tuple[str, int]


class ProxyHeaderError(CertctrlError):
    """A connection of a listed proxy has no valid PROXY header."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return addresses and CIDR networks; ValueError for other texts, also for a network with host bits."""
    return tuple(ip_network(text) for text in texts)


@lean.frozen
class Proxies:
    """The proxies that an operator has listed."""

    tcp: tuple[Network, ...] = ()
    """Those that begin each connection with a PROXY header."""
    http: tuple[Network, ...] = ()
    """Those whose ``X-Forwarded-For`` is trusted."""

    def sends_header(self, address: str) -> bool:
        """Return whether connections of an address begin with a PROXY header."""
        return _is_in(address, self.tcp)

    def forwards(self, address: str) -> bool:
        """Return whether ``X-Forwarded-For`` of an address is trusted."""
        return _is_in(address, self.http)

    def client_of(self, peer: str, forwarded_for: str) -> str:
        """Return the client of a request: the last address that is not a listed proxy's.

        Addresses before it in ``forwarded_for`` come from the client and are not trusted.
        """
        client = peer
        for text in reversed(forwarded_for.split(",")[-_MAX_FORWARDED:]):
            if not self.forwards(client):
                break
            address = _without_port(text.strip())
            if address is None:
                break
            client = address
        return client


class ForwardedFor:
    """An ASGI application that sees the clients of listed HTTP proxies instead of the proxies."""

    def __init__(self, inner: App, proxies: Proxies) -> None:
        self._inner = inner
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("client") is not None and scope["type"] in ("http", "websocket"):
            values = [value.decode("latin-1") for name, value in scope["headers"] if name == _FORWARDED_FOR]
            host, port = scope["client"]
            if values:
                scope["client"] = (self._proxies.client_of(host, ",".join(values)), port)
        await self._inner(scope, receive, send)


async def read_header(stream: trio.abc.ReceiveStream) -> Address | None:
    """Read the PROXY header of a connection and nothing after it; return the client's address and port.

    None if the proxy names no client: its own health check, or an unknown or local protocol. Raises ProxyHeaderError.
    """
    start = await _exactly(stream, len(_SIGNATURE))
    if start == _SIGNATURE:
        return await _read_v2(stream)
    if not start.startswith(b"PROXY "):
        raise ProxyHeaderError("the connection does not begin with a PROXY header")
    line = bytearray(start)
    while not line.endswith(b"\r\n"):  # byte by byte: what follows belongs to TLS
        if len(line) >= _MOST_V1:
            raise ProxyHeaderError("the PROXY header is too long")
        line += await _exactly(stream, 1)
    return _parsed_v1(bytes(line[:-2]))


def _parsed_v1(line: bytes) -> Address | None:
    words = line.split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        return None
    try:
        _, protocol, source, target, port, target_port = words
        kind = _V1_ADDRESSES[protocol]
        client, _ = kind(source.decode("ascii")), kind(target.decode("ascii"))
        numbers = [int(text) for text in (port, target_port) if text.isdigit() and len(text) <= 5]
        if len(numbers) != 2 or max(numbers) > 65_535:
            raise ValueError
    except (ValueError, KeyError):
        raise ProxyHeaderError("the PROXY header is not valid") from None
    return plain_address(str(client)), numbers[0]


async def _read_v2(stream: trio.abc.ReceiveStream) -> Address | None:
    command, family, length = struct.unpack("!BBH", await _exactly(stream, 4))
    if command not in (_V2_PROXY, _V2_LOCAL) or length > _MOST_V2:
        raise ProxyHeaderError("the PROXY header is not valid")
    rest = await _exactly(stream, length)
    if command == _V2_LOCAL or family not in _V2_ADDRESSES:
        return None
    form, kind = _V2_ADDRESSES[family]
    if length < struct.calcsize(form):
        raise ProxyHeaderError("the PROXY header is not valid")
    source, _, port, _ = struct.unpack_from(form, rest)
    return plain_address(str(kind(source))), port


async def _exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise ProxyHeaderError("the connection ended within its PROXY header")
        data += part
    return bytes(data)


def _is_in(address: str, listed: tuple[Network, ...]) -> bool:
    if not listed:
        return False
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(parsed in network for network in listed)


def _without_port(text: str) -> str | None:
    """Return the address of an entry of ``X-Forwarded-For``, such as ``[::1]:80``; None for another text."""
    candidates = [text, text.partition("]")[0].removeprefix("["), text.rpartition(":")[0]]
    for candidate in candidates:
        with suppress(ValueError):
            return plain_address(str(ip_address(candidate)))
    return None
