"""The plane's time without a valid certificate, directly and through a proxy."""

from __future__ import annotations

import datetime as dt
from email.utils import formatdate

import pytest
import trio

from certctrl.net import server_date as module
from certctrl.net.server_date import server_date

from .test_explain import context_of

DATE = 1_759_470_000.0
NOW = dt.datetime.now(dt.UTC)
ANSWER = f"HTTP/1.1 404 Not Found\r\nDate: {formatdate(DATE, usegmt=True)}\r\nContent-Length: 0\r\n\r\n".encode()


async def serve(nursery, handler) -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, handler, [listener])
    port: int = listener.socket.getsockname()[1]
    return port


async def test_an_expired_certificate_does_not_matter(nursery, ca) -> None:
    cert = ca.issue_cert("other.example", not_before=NOW - dt.timedelta(40), not_after=NOW - dt.timedelta(10))
    heads: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context_of(cert), server_side=True, https_compatible=True)
        heads.append(await tls.receive_some(65536))
        await tls.send_all(ANSWER)

    port = await serve(nursery, answer)
    assert await server_date(f"https://127.0.0.1:{port}", "http://10.255.255.1:9") == DATE
    assert heads[0].startswith(b"GET /health HTTP/1.1\r\n") and b"uthorization" not in heads[0]


async def test_through_a_proxy(nursery) -> None:
    heads: list[bytes] = []

    async def proxy(stream: trio.SocketStream) -> None:
        heads.append(await stream.receive_some(65536))
        await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")
        await stream.aclose()

    port = await serve(nursery, proxy)
    assert await server_date("https://plane.example", f"http://a:b%21@127.0.0.1:{port}") is None
    assert heads[0].startswith(b"CONNECT plane.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic YTpiIQ==" in heads[0]


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nDate: soon\r\n\r\n", b"\xff" * 40_000])
async def test_other_answers_have_no_date(nursery, reply: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(reply)
        await stream.aclose()

    assert await server_date(f"http://127.0.0.1:{await serve(nursery, answer)}") is None


async def test_no_server_and_a_silent_one(nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(module, "SECONDS", 0.2)
    assert await server_date("https://127.0.0.1:1") is None
    assert await server_date(f"https://127.0.0.1:{await serve(nursery, silent)}") is None
    assert await server_date("ftp://x") is None
