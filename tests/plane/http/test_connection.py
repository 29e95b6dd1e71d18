"""Connection: requests and responses over a stream in memory, whatever the application does."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import trio
import trio.testing

from certctrl.plane.http import connection as module
from certctrl.plane.http.connection import Connection

Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Any, Any, Send], Awaitable[None]]

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b%20c?d=%20 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"PUT /e HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n"


class Stream:
    """Receives these pieces, one at a time, and then waits or ends."""

    scheme = "https"

    def __init__(self, pieces: Iterable[bytes], *, ends: bool = True, takes: int = 10**9) -> None:
        self._pieces = iter(pieces)
        self._ends = ends
        self._takes = takes
        self.writes: list[bytes] = []
        self.reads = 0

    async def do_handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        piece = next(self._pieces, None)
        if piece is None and not self._ends:
            await trio.sleep_forever()
        return piece or b""

    def send_now(self, data: bytes) -> int:
        self.writes.append(data[: self._takes])
        return len(data[: self._takes])

    async def send_all(self, data: bytes) -> None:
        self.writes[-1] += data

    def local_address(self) -> tuple[str, int]:
        return "192.0.2.1", 443

    def close(self) -> None:
        pass


async def body_of(receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            return body
    raise EOFError


async def echo(scope: Any, receive: Any, send: Send) -> None:
    body = await body_of(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["path"].encode())]})
    await send({"type": "http.response.body", "body": scope["method"].encode() + b" " + body})


async def served(app: App, pieces: Iterable[bytes], **options: Any) -> Stream:
    """Serve a connection to its end."""
    stream = Stream(pieces, **options)
    with trio.fail_after(60):
        await Connection(app, stream, ("192.0.2.7", 5000), {}).run()  # type: ignore[arg-type]
    return stream


def answer(body: bytes, path: bytes) -> bytes:
    return b"HTTP/1.1 200 \r\nx-path: %b\r\ncontent-length: %d\r\n\r\n%b" % (path, len(body), body)


ANSWERS = [answer(b"GET ", b"/a"), answer(b"POST abc", b"/b c"), answer(b"PUT def", b"/e")]


async def test_pipelined_requests_are_answered_alike_wherever_their_bytes_are_split() -> None:
    data = GET + POST + CHUNKED
    for place in range(len(data) + 1):
        stream = await served(echo, [piece for piece in (data[:place], data[place:]) if piece])
        assert stream.writes == ANSWERS, place
    assert (await served(echo, [bytes([byte]) for byte in data])).writes == ANSWERS


async def test_what_a_stream_does_not_take_at_once_is_sent_later() -> None:
    assert (await served(echo, [GET + POST], takes=5)).writes == ANSWERS[:2]


async def test_one_response_is_one_write() -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ab"})

    assert (await served(app, [GET])).writes == [b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nab"]


async def test_a_response_in_parts_is_chunked() -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        for part in (b"ab", b"", b"c"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    head = b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n"
    assert (await served(app, [GET])).writes == [head + b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n"]


# --- the application fails --------------------------------------------------------------------------------------------

FAILED = [b"HTTP/1.1 500 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]


@pytest.mark.parametrize("headers", [[(b"x", b"a\r\nset-cookie: b")], [(b"x\nset-cookie", b"b")], [(b"x", b"\0")]])
async def test_a_header_with_the_end_of_a_line_is_not_sent(
    headers: list[tuple[bytes, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})

    assert (await served(app, [GET + GET])).writes == FAILED
    assert "a header contains the end of a line" in caplog.text


async def test_an_exception_before_the_response_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        raise LookupError("nothing")

    assert (await served(app, [GET + GET])).writes == FAILED
    assert "LookupError: nothing" in caplog.text


async def test_no_response_is_a_500() -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    assert (await served(app, [GET])).writes == FAILED


@pytest.mark.parametrize("later", [b"abc", b""])
async def test_a_response_that_breaks_off_ends_the_connection(later: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": later})

    assert (await served(app, [GET + GET])).writes == [b"HTTP/1.1 200 \r\ncontent-length: 3\r\n\r\na"]
    assert "does not fit its content-length" in caplog.text


async def test_nothing_is_sent_after_the_end_of_a_response(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: object, receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})
        await send({"type": "http.response.body", "body": b"HTTP/1.1 200 \r\n\r\n"})

    assert (await served(app, [GET])).writes == [b"HTTP/1.1 204 \r\n\r\n"]
    assert "the response has ended" in caplog.text


# --- what the application does not read, and the end of a connection ---------------------------------------------------


async def unread(scope: object, receive: object, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


async def test_an_unread_body_that_has_arrived_is_skipped() -> None:
    assert len((await served(unread, [POST + CHUNKED + GET])).writes) == 3


async def test_an_unread_body_that_has_not_arrived_ends_the_connection() -> None:
    assert len((await served(unread, [POST[:-1], POST[-1:] + GET], ends=False)).writes) == 1


async def test_a_body_that_breaks_off_is_a_disconnect() -> None:
    found = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        found.extend([await receive(), await receive()])
        await unread(scope, receive, send)

    await served(app, [POST[:-1]])
    assert [message["type"] for message in found] == ["http.request", "http.disconnect"]
    assert found[0] == {"type": "http.request", "body": b"ab", "more_body": True}


async def test_a_waiting_application_learns_that_the_client_has_left() -> None:
    left = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await body_of(receive)
        left.append((await receive())["type"])
        await unread(scope, receive, send)

    await served(app, [GET, GET[:10]])
    assert left == ["http.disconnect"]


async def test_requests_that_arrive_during_a_response_are_read_up_to_a_limit_and_answered(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    monkeypatch.setattr(module, "_MAX_RECEIVED", 1000)
    held = trio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await body_of(receive)
        if not held.is_set():
            held.set()
            with trio.move_on_after(30):
                await receive()
        await unread(scope, receive, send)

    stream = Stream([GET] * 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(app, stream, ("192.0.2.7", 5000), {}).run)  # type: ignore[arg-type]
        await held.wait()
        await trio.sleep(29)
        assert 1000 // len(GET) < stream.reads < 1000 // len(GET) + 4
        assert stream.writes == []
    assert len(stream.writes) == 100


async def test_the_last_request_of_a_connection_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REQUESTS", 2)
    writes = (await served(unread, [GET * 3])).writes
    assert writes == [b"HTTP/1.1 204 \r\n\r\n", b"HTTP/1.1 204 \r\nconnection: close\r\n\r\n"]


@pytest.mark.parametrize("data", [b"", GET[:5]])
async def test_a_stop_ends_an_idle_connection_without_an_answer(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream([data] if data else [], ends=False)
    connection = Connection(unread, stream, ("192.0.2.7", 5000), {})  # type: ignore[arg-type]
    with trio.fail_after(60), caplog.at_level(logging.DEBUG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await trio.testing.wait_all_tasks_blocked()
            connection.stop()
    assert stream.writes == []


async def test_a_stop_lets_a_response_end_and_takes_no_other_request() -> None:
    begun, may_end = trio.Event(), trio.Event()

    async def app(scope: object, receive: object, send: Send) -> None:
        begun.set()
        await may_end.wait()
        await unread(scope, receive, send)

    stream = Stream([GET * 2], ends=False)
    connection = Connection(app, stream, ("192.0.2.7", 5000), {})  # type: ignore[arg-type]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await begun.wait()
            connection.stop()
            may_end.set()
    assert len(stream.writes) == 1


async def test_the_time_of_a_head_and_of_a_pause(autojump_clock: trio.abc.Clock) -> None:
    for pieces, seconds, writes in (
        ([], module.HEAD_SECONDS, 0),
        ([GET[:5]], module.HEAD_SECONDS, 1),
        ([GET], module.KEEP_ALIVE, 1),
        ([GET, GET[:5]], module.HEAD_SECONDS, 2),
        ([GET + GET[:5]], module.HEAD_SECONDS, 2),
    ):
        began = trio.current_time()
        stream = Stream(pieces, ends=False)
        await Connection(unread, stream, ("192.0.2.7", 5000), {}).run()  # type: ignore[arg-type]
        assert trio.current_time() - began == pytest.approx(seconds)
        assert len(stream.writes) == writes
        if pieces and not pieces[-1].endswith(b"\r\n\r\n"):
            assert stream.writes[-1].startswith(b"HTTP/1.1 408 ")
