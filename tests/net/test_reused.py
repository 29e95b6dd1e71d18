"""Exchanges after the first one on a connection: what servers may answer, and what ends the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpcore
import pytest
import trio
import trio.testing

from certctrl.net.connections import KeptConnections, Progress, RequestBody
from certctrl.net.reused import ReusedConnection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


async def read(response: httpcore.Response) -> tuple[int, bytes]:
    return response.status, await response.aread()


class Peer:
    """A client whose first exchange has been made, and a server that answers the others as told."""

    def __init__(self, start: Any) -> None:
        self._start = start
        self.answers: list[bytes | None] = []
        self.kept = KeptConnections(context=None, keepalive_seconds=60)

    async def open(self, *answers: bytes | None) -> None:
        self.site = await self._start(lambda seen, stream: self.answers.pop(0), plain=True)
        self.answers = [OK, *answers]
        assert await self.exchange() == (200, b"{}")

    async def exchange(self, body: bytes | None = None, read: Any = read) -> Any:
        headers = {"host": "plane.test"} | ({} if body is None else {"content-length": str(len(body))})
        content = None if body is None else RequestBody(body)
        method = "GET" if body is None else "POST"
        request = httpcore.Request(method, f"{self.site.url}/", headers=headers, content=content)
        with trio.fail_after(10):
            return await self.kept.exchange(request, read, Progress())


@pytest.fixture
async def peer(start: Any) -> AsyncIterator[Peer]:
    peer = Peer(start)
    yield peer
    await peer.kept.aclose()


@pytest.mark.parametrize(("answer", "expected"), [
    (OK, (200, b"{}")),
    (CHUNKED, (200, b"abcde")),
    (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", (304, b"")),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK, (200, b"{}")),
], ids=["length", "chunks", "204", "304", "informational"])  # fmt: skip
async def test_a_connection_is_used_for_one_exchange_after_the_other(
    peer: Peer, answer: bytes, expected: tuple[int, bytes]
) -> None:
    await peer.open(answer, OK)
    assert await peer.exchange() == expected
    assert await peer.exchange(b"a body") == (200, b"{}")
    assert peer.site.connections == 1
    assert [(seen.method, seen.body) for seen in peer.site.seen] == [("GET", b"")] * 2 + [("POST", b"a body")]
    await peer.kept.aclose()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert peer.site.open_now == 0


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
], ids=["close", "HTTP/1.0"])  # fmt: skip
async def test_a_connection_that_the_server_ends_is_not_used_again(peer: Peer, answer: bytes) -> None:
    await peer.open(answer, OK)
    assert await peer.exchange() == (200, b"{}")
    assert not peer.kept.open
    assert await peer.exchange() == (200, b"{}")
    assert peer.site.connections == 2


@pytest.mark.parametrize("answer", [
    None,
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
], ids=["nothing", "no HTTP", "another protocol", "two lengths", "a long head", "no chunk"])  # fmt: skip
async def test_an_answer_that_is_not_http_ends_the_connection(peer: Peer, answer: bytes | None) -> None:
    await peer.open(answer, OK)
    with pytest.raises(httpcore.RemoteProtocolError):
        await peer.exchange()
    assert not peer.kept.open
    assert await peer.exchange() == (200, b"{}")


@pytest.mark.parametrize("answer", [OK[:-1], CHUNKED[:-9]], ids=["length", "chunks"])
async def test_a_body_that_ends_early_is_not_taken_for_a_whole_one(peer: Peer, answer: bytes) -> None:
    await peer.open()

    async def send(seen: Any, stream: Any) -> bytes | None:
        if (data := peer.answers.pop(0)) is not OK:
            await stream.send_all(data)
            return None
        return OK

    peer.site.script = send
    peer.answers = [answer, OK]
    with pytest.raises(httpcore.RemoteProtocolError):
        await peer.exchange()
    assert not peer.kept.open
    assert await peer.exchange() == (200, b"{}")


@pytest.mark.parametrize("cut", [10, len(OK) - 3, len(OK) - 1], ids=["head", "between", "body"])
async def test_an_answer_in_two_pieces_is_read(peer: Peer, cut: int) -> None:
    async def send(seen: Any, stream: Any) -> bytes:
        await stream.send_all(OK[:cut])
        await trio.testing.wait_all_tasks_blocked(0.05)
        return OK[cut:]

    await peer.open()
    peer.site.script = send
    assert [await peer.exchange() for _ in range(2)] == [(200, b"{}")] * 2
    assert peer.site.connections == 1


async def test_bytes_behind_an_answer_are_no_answer_to_the_next_request(peer: Peer) -> None:
    await peer.open(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK, OK)
    assert await peer.exchange() == (200, b"{}")
    assert not peer.kept.open
    assert await peer.exchange() == (200, b"{}")
    assert peer.site.connections == 2


async def test_a_body_that_is_not_read_ends_the_connection(peer: Peer) -> None:
    async def head(response: httpcore.Response) -> int:
        return response.status

    await peer.open(OK)
    assert await peer.exchange(read=head) == 200
    assert not peer.kept.open


async def test_an_unsendable_request_is_refused(peer: Peer) -> None:
    await peer.open(OK)
    request = httpcore.Request("GET", f"{peer.site.url}/", headers={"host": "plane.test", "x": "a\nb"})
    with pytest.raises(httpcore.LocalProtocolError):
        await peer.kept.exchange(request, read, Progress())
    assert not peer.kept.open and len(peer.site.seen) == 1


class Refusing(httpcore.AsyncNetworkStream):
    """The stream of a server that answers a request which it has not read."""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        raise httpcore.WriteError

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\n{}"


async def test_a_request_that_is_refused_before_it_is_sent_ends_the_connection(peer: Peer) -> None:
    await peer.open()
    (opened,) = peer.kept.open
    connection = ReusedConnection(opened, Refusing(), 60)
    request = httpcore.Request(
        "POST", peer.site.url, headers={"host": "x", "content-length": "4"}, content=RequestBody(b"body")
    )
    assert connection.is_idle()
    assert await read(await connection.handle_async_request(request)) == (413, b"{}")
    assert not connection.is_idle()
