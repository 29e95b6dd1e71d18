"""Connections before they authenticate: their number, the time of a request head, and the proxies in between."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from plane_socket import FAST, UPDATES, Connection, connected, enrolled, operator_key, port_of

from certctrl.plane.http.proxies import Proxies, networks
from certctrl.plane.http.server import Server
from certctrl.plane.serve import PlaneAddress, serve_plane

pytestmark = pytest.mark.integration
LOOPBACK = networks(["127.0.0.0/8"])
Serve = Callable[..., Awaitable[PlaneAddress]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Return a function that serves a plane until the test ends."""
    async with trio.open_nursery() as nursery:

        async def start(**options: Any) -> PlaneAddress:
            address: PlaneAddress = await nursery.start(
                partial(serve_plane, tmp_path / "plane", settings=FAST, **options)
            )
            return address

        yield start
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def announced(address: PlaneAddress, header: bytes, token: str = "") -> AsyncIterator[Connection]:
    """Connect as a proxy that sends these bytes first."""
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(address))
    await stream.send_all(header)
    context = ssl.create_default_context(cafile=str(address.ca_file))
    secure = trio.SSLStream(stream, context, server_hostname="127.0.0.1", https_compatible=True)
    try:
        yield Connection(secure, token)
    finally:
        await trio.aclose_forcefully(secure)


async def nothing(scope: object, receive: object, send: object) -> None:
    """Answer nothing."""


async def is_refused(client: Connection) -> bool:
    """Return whether the plane ends a connection without an answer."""
    with trio.fail_after(60):
        try:
            await client.ask("GET", "/health")
        except (trio.BrokenResourceError, EOFError):
            return True
    return False


async def last_address(operator: Connection) -> str:
    (device,) = (await operator.ask("GET", "/apiv1/users/1/devices")).data
    return str(device["last_address"])


def test_both_servers_together_leave_files_to_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by review: each of them could take half of the files, which a flood of both ports did."""
    files = 400
    monkeypatch.setattr("certctrl.plane.http.server.resource.getrlimit", lambda _: (files, files))
    monkeypatch.setattr("certctrl.plane.http.server.trio.current_time", lambda: 0.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with socket.socket() as sock:
        servers = [Server(nothing, sock, given) for given in (context, None)]
    most = [sum(_admits(server, f"192.0.2.{number}") for number in range(files)) for server in servers]
    assert most[0] == files // 2
    assert 0 < most[1] <= files // 8


def _admits(server: Server, caller: str) -> bool:
    return server._unauthenticated.admit(caller, lambda: None) is not None


# --- numbers and times ------------------------------------------------------------------------------------------------


async def test_connections_above_the_total_are_refused_until_one_ends(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("certctrl.plane.http.server.CONNECTIONS", 2)
    address = await serve()
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(connected(address)) for _ in range(2)]
        assert [(await client.ask("GET", "/health")).status for client in (first, second)] == [200, 200]
        with caplog.at_level(logging.WARNING):
            async with connected(address) as third:
                assert await is_refused(third)
            async with connected(address) as fourth:
                assert await is_refused(fourth)
        warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == ["connections refused: 1; 2 connections are open"]
        await trio.aclose_forcefully(first.stream)
        with trio.fail_after(60):
            while True:
                async with connected(address) as fifth:
                    if not await is_refused(fifth):
                        break
                await trio.sleep(0.05)
        assert (await second.ask("GET", "/health")).status == 200


async def test_a_request_head_has_to_arrive_in_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    address = await serve()
    async with connected(address) as client:
        assert (await client.ask("GET", "/health")).status == 200
        monkeypatch.setattr("certctrl.plane.http.connection.HEAD_SECONDS", 0.2)
        await client.stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        with trio.fail_after(60):
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"], answer.body) == (408, "close", b"")
            with pytest.raises(EOFError):
                await client.answer()


async def test_a_head_that_began_during_a_response_has_to_arrive_in_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await serve()
    async with connected(address) as client:
        assert (await client.ask("GET", "/health")).status == 200
        monkeypatch.setattr("certctrl.plane.http.connection.HEAD_SECONDS", 0.2)
        request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        await client.stream.send_all(request + request + request[:10])
        with trio.fail_after(60):
            assert [(await client.answer()).status for _ in range(3)] == [200, 200, 408]


@pytest.mark.parametrize("data", [b"", b"G"])
async def test_the_first_request_has_to_arrive_in_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    address = await serve()
    monkeypatch.setattr("certctrl.plane.http.connection.HEAD_SECONDS", 0.2)
    async with connected(address) as client:
        with trio.fail_after(60):
            await client.stream.do_handshake()
            if data:
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.stream.send_all(data)
            with contextlib.suppress(EOFError, trio.BrokenResourceError):
                assert (await client.answer()).status == 408


async def test_time_between_requests_does_not_count(serve: Serve, monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    """A held poll and the pause after it may be longer than a request head."""
    address = await serve()
    async with connected(address, operator_key(address)) as operator:
        session = (await enrolled(operator, form))["session"]
        async with connected(address, session["access_token"]) as device:
            assert (await device.ask("GET", UPDATES)).status == 204
            monkeypatch.setattr("certctrl.plane.http.connection.HEAD_SECONDS", 0.0)
            assert (await device.ask("GET", f"{UPDATES}?wait=1")).status == 204
            assert (await device.ask("GET", UPDATES)).status == 204


# --- proxies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 5000 443\r\n", "192.0.2.7"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 5000 443\r\n", "192.0.2.7"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x13\x88\x01\xbb", "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    ],
)
async def test_a_listed_proxy_names_the_client(serve: Serve, form: Any, header: bytes, shown: str) -> None:
    address = await serve(proxies=Proxies(tcp=LOOPBACK))
    async with announced(address, b"PROXY UNKNOWN\r\n", operator_key(address)) as operator:
        session = (await enrolled(operator, form))["session"]
        async with announced(address, header, session["access_token"]) as device:
            assert (await device.ask("GET", UPDATES)).status == 204
            assert (await device.ask("GET", UPDATES, X_Forwarded_For="198.51.100.1")).status == 204
        assert await last_address(operator) == shown


async def test_a_listed_proxy_without_header_is_refused(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    address = await serve(proxies=Proxies(tcp=LOOPBACK))
    async with connected(address) as client:
        assert await is_refused(client)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "does not begin with a PROXY header; its proxy 127.0.0.1 is listed in --proxy" in record.message


async def test_a_header_of_another_peer_is_refused(serve: Serve) -> None:
    address = await serve(proxies=Proxies(tcp=networks(["192.0.2.0/24"])))
    async with announced(address, b"PROXY TCP4 192.0.2.7 127.0.0.1 5000 443\r\n") as client:
        assert await is_refused(client)
    async with connected(address) as client:
        assert (await client.ask("GET", "/health")).status == 200


async def test_clients_behind_a_proxy_are_limited_one_by_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.http.server.UNAUTHENTICATED_PER_ADDRESS", 1)
    address = await serve(proxies=Proxies(tcp=LOOPBACK))
    header = b"PROXY TCP4 192.0.2.%d 127.0.0.1 5000 443\r\n"
    async with announced(address, header % 1) as one, announced(address, header % 2) as two:
        assert [(await client.ask("GET", "/health")).status for client in (one, two)] == [200, 200]
        async with announced(address, header % 1) as again:
            assert await is_refused(again)


@pytest.mark.parametrize(("listed", "shown"), [(LOOPBACK, "192.0.2.7"), ((), "127.0.0.1")])
async def test_forwarded_for_counts_from_listed_proxies_only(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, form: Any, listed: Any, shown: str
) -> None:
    monkeypatch.setattr("certctrl.plane.http.server.UNAUTHENTICATED_PER_ADDRESS", 2 if listed else 10)
    address = await serve(proxies=Proxies(http=listed))
    async with AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(connected(address)) for _ in range(3)]
        assert [(await client.ask("GET", "/health")).status for client in strangers] == [200] * 3, (
            "the connections of a proxy are those of many clients"
        )
        operator = await stack.enter_async_context(connected(address, operator_key(address)))
        session = (await enrolled(operator, form))["session"]
        device = await stack.enter_async_context(connected(address, session["access_token"]))
        assert (await device.ask("GET", UPDATES, X_Forwarded_For="198.51.100.1, 192.0.2.7")).status == 204
        assert await last_address(operator) == shown


async def test_ipv4_is_shown_as_ipv4_on_a_listener_for_both(serve: Serve, form: Any) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this host has no IPv6")
    address = await serve(host="::")
    async with connected(address, operator_key(address)) as operator:
        session = (await enrolled(operator, form))["session"]
        async with connected(address, session["access_token"]) as device:
            assert (await device.ask("GET", UPDATES)).status == 204
        assert await last_address(operator) == "127.0.0.1"
