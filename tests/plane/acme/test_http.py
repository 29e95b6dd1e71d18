"""Exchanges with hostile web servers over real sockets of the loopback address."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from certctrl.errors import ConfigError
from certctrl.plane.acme import http
from certctrl.plane.acme.http import CaPlaces, Proxy, check_directory_url, connected
from certctrl.plane.issuers.issuer import IssuerError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Handler = Callable[[trio.SocketStream], object]


@contextlib.asynccontextmanager
async def server(answer: bytes, *, close: bool = True, times: int = 10**6) -> AsyncIterator[str]:
    """Yield the URL of a server that answers each request with the same bytes."""

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for _ in range(times):
                if not await stream.receive_some(65536):
                    return
                await stream.send_all(answer)
                if close:
                    return

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await handle(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def refused(url: str, path: str = "/directory") -> str:
    async with connected(CaPlaces(url), None) as ca:
        with pytest.raises(IssuerError) as caught:
            await ca.request("POST", f"{url}{path}", b"{}")
    assert str(caught.value).isprintable() and caught.value.fix and not caught.value.is_permanent
    return str(caught.value)


async def test_an_answer() -> None:
    async with server(OK, close=False) as url, connected(CaPlaces(url), None) as ca:
        for _ in range(3):
            assert (await ca.request("GET", f"{url}/directory")).body == b"ok"


async def test_a_connection_that_the_server_closed_meanwhile_is_opened_again() -> None:
    async with server(OK, close=True) as url, connected(CaPlaces(url), None) as ca:
        for _ in range(3):
            assert (await ca.request("POST", f"{url}/directory", b"{}")).status == 200


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: https://evil.test/\r\nContent-Length: 0\r\n\r\n", "redirects /directory to https"),
        (b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n", "redirects /directory to nowhere"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "longer than 1024 KiB"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_100_000, "longer than 1024 KiB"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", "compressed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 60_000 + b"\r\nContent-Length: 2\r\n\r\nok", "of headers"),
        (b"HTTP/1.1 200 OK\r\n\x1b[31m: x\r\n\r\n", "broke"),
        (b"", "broke"),
    ],
)  # fmt: skip
async def test_answers_that_are_refused(answer: bytes, why: str) -> None:
    async with server(answer) as url:
        assert why in await refused(url)


async def test_a_server_that_sends_a_byte_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.3)

    async def drip(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65536)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, drip, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        assert "no complete answer from 127.0.0.1" in await refused(url)
        nursery.cancel_scope.cancel()


async def test_a_host_that_does_not_exist() -> None:
    async with connected(CaPlaces("https://ca.invalid/"), None) as ca:
        with pytest.raises(IssuerError, match=r"cannot resolve the host of ca\.invalid") as caught:
            await ca.request("GET", "https://ca.invalid/directory")
    assert caught.value.fix


@contextlib.asynccontextmanager
async def connect_proxy(status: bytes, port: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yield the URL of a proxy that leads all connections to a local port, and the requests that it gets."""
    requests: list[bytes] = []

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await target.send_all(data)
            await target.send_eof()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            requests.append(await stream.receive_some(65536))
            await stream.send_all(b"HTTP/1.1 " + status + b"\r\n\r\n")
            if status.startswith(b"200"):
                async with await trio.open_tcp_stream("127.0.0.1", port) as other, trio.open_nursery() as nursery:
                    nursery.start_soon(copy, stream, other)
                    await copy(other, stream)
                    nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", requests
        nursery.cancel_scope.cancel()


async def test_a_ca_behind_a_proxy(tmp_path: Path) -> None:
    """The proxy resolves the name; TLS is with the CA itself, and the proxy sees no request."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("ca.test").configure_cert(context)

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                await stream.receive_some(65536)
                await stream.send_all(OK)

    async with trio.open_nursery() as nursery:
        serving = partial(trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1", https_compatible=True)
        listeners = await nursery.start(serving)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        async with connect_proxy(b"200 OK", port) as (url, requests):
            places = CaPlaces("https://ca.test/directory")
            async with connected(places, tmp_path / "ca.pem", Proxy(url, "user:word")) as ca:
                assert (await ca.request("GET", "https://ca.test/directory")).body == b"ok"
        assert requests[0].startswith(b"CONNECT ca.test:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in requests[0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("status", "why"), [(b"407 Proxy Authentication Required", "refused to connect to ca.test: 407"), (b"", "")]
)
async def test_a_proxy_that_refuses(status: bytes, why: str) -> None:
    async with connect_proxy(status, 1) as (url, _):
        async with connected(CaPlaces("https://ca.test/directory"), None, Proxy(url)) as ca:
            with pytest.raises(IssuerError) as caught:
                await ca.request("GET", "https://ca.test/directory")
    assert why in str(caught.value) and caught.value.fix


async def test_a_proxy_that_is_not_there_and_one_that_is_not_needed() -> None:
    proxy = Proxy("http://127.0.0.1:9")
    async with connected(CaPlaces("https://ca.test/directory"), None, proxy) as ca:
        with pytest.raises(IssuerError, match=r"nothing listens at the proxy 127\.0\.0\.1:9") as caught:
            await ca.request("GET", "https://ca.test/directory")
    assert caught.value.fix == "check proxy and the secret proxy_login"
    async with server(OK) as url, connected(CaPlaces(url), None, proxy) as ca:
        assert (await ca.request("GET", f"{url}/directory")).status == 200


async def test_cancelled_requests_leave_nothing_open() -> None:
    """Warnings are errors: a socket that is left would be one."""
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", close=False) as url:
        for milliseconds in range(0, 40, 2):
            with trio.move_on_after(milliseconds / 1000):
                async with connected(CaPlaces(url), None) as ca:
                    await ca.request("POST", f"{url}/x", b"{}" * 1000)


@pytest.mark.parametrize(
    "url", ["https://ca.test/x", "https://CA.test/x", "https://ca.test:443/x", "https://other.test:8443/y"]
)
def test_urls_that_may_be_requested(url: str) -> None:
    assert CaPlaces("https://ca.test/directory", ["other.test:8443"]).check(url) == url


@pytest.mark.parametrize(
    "url", ["https://other.test/", "http://ca.test/x", "https://ca.test:8443/", "https://u@ca.test/"]
)
def test_urls_that_may_not(url: str) -> None:
    with pytest.raises(IssuerError, match="names a URL at another host") as caught:
        CaPlaces("https://ca.test/directory", ["other.test:8443"]).check(url)
    assert caught.value.is_permanent and "other_hosts" in str(caught.value.fix)


def test_directory_urls() -> None:
    for url in ("https://ca.test/d", "http://localhost:14000/dir", "http://[::1]:1/dir"):
        assert check_directory_url(url) == url
    for url in ("", "ca.test", "http://ca.test/", "https://", "https://é.test/"):
        with pytest.raises(ConfigError, match=r"^directory_url: "):
            check_directory_url(url)
