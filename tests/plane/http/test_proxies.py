"""PROXY headers and X-Forwarded-For: what names a client, and whose word counts."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import ip_address
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.http.proxies import ForwardedFor, Proxies, ProxyHeaderError, networks, read_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(source: str, target: str, port: int = 1, *, command: int = 0x21, extra: bytes = b"") -> bytes:
    addresses = ip_address(source).packed + ip_address(target).packed
    rest = addresses + struct.pack("!HH", port, 443) + extra
    return SIGNATURE + struct.pack("!BBH", command, 0x11 if len(addresses) == 8 else 0x21, len(rest)) + rest


async def parsed(data: bytes, after: bytes = b"") -> Any:
    """Return the client of a connection that sends this header; what follows it must stay unread."""
    sender, receiver = trio.testing.memory_stream_one_way_pair()
    await sender.send_all(data + after)
    await sender.aclose()
    client = await read_header(receiver)
    rest = bytearray()
    while part := await receiver.receive_some():
        rest += part
    assert rest == after
    return client


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", ("192.0.2.1", 56324)),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", ("2001:db8::1", 1)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("192.0.2.1", 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        (v2("192.0.2.1", "192.0.2.2", 56324), ("192.0.2.1", 56324)),
        (v2("2001:db8::1", "::1", 7, extra=b"\x04\0\x02xx"), ("2001:db8::1", 7)),
        (v2("192.0.2.1", "192.0.2.2", command=0x20), None),
        (SIGNATURE + b"\x20\0\0\0", None),
        (SIGNATURE + b"\x21\x31\0\x03abc", None),
    ],
)
async def test_a_header_names_the_client_and_leaves_the_rest(header: bytes, client: object) -> None:
    assert await parsed(header, b"\x16\x03\x01TLS") == client


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x16\x03\x01" + bytes(60), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PROXY TCP4 192.0.2.1",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        SIGNATURE, SIGNATURE + b"\x11\x11\0\x0c" + bytes(12), SIGNATURE + b"\x22\x11\0\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\0\x0b" + bytes(11), SIGNATURE + b"\x21\x21\0\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(70_000), v2("192.0.2.1", "192.0.2.2")[:-1],
    ],
)  # fmt: skip
async def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        await parsed(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_bytes_are_a_client_or_refused(data: bytes, start: bytes) -> None:
    async def read() -> None:
        sender, receiver = trio.testing.memory_stream_one_way_pair()
        await sender.send_all(start + data)
        await sender.aclose()
        with contextlib.suppress(ProxyHeaderError):
            client = await read_header(receiver)
            assert client is None or (ip_address(client[0]) and 0 <= client[1] <= 65_535)

    trio.run(read)


PROXIES = Proxies(http=networks(["10.0.0.0/8", "2001:db8::/64"]))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.7, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.7, 192.0.2.1, 10.9.9.9", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1:5000", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8:1::1]:443", "2001:db8:1::1"),
        ("10.0.0.1", "2001:db8:1::1", "2001:db8:1::1"),
        ("10.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::5", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1, ", "10.0.0.1"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("192.0.2.9", "198.51.100.7", "192.0.2.9"),
        ("", "198.51.100.7", ""),
    ],
)
async def test_the_last_address_that_is_not_a_listed_proxy_is_the_client(
    peer: str, forwarded: str, client: str
) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"])

    scope = {"type": "http", "client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
    await ForwardedFor(app, PROXIES)(scope, None, None)  # type: ignore[arg-type]
    assert seen == [(client, 1)]


async def test_several_header_lines_are_one_list() -> None:
    scope: Any = {
        "type": "http", "client": ("10.0.0.1", 1),
        "headers": [(b"x-forwarded-for", b"192.0.2.1"), (b"x-forwarded-for", b"10.0.0.7")],
    }  # fmt: skip

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["client"] == ("192.0.2.1", 1)

    await ForwardedFor(app, PROXIES)(scope, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "10.0.0.1/8", "10.0.0.0/33", "example.com"])
def test_what_is_not_a_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        networks([text])
