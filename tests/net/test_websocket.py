"""The push socket against real and hostile servers, over TLS."""

from __future__ import annotations

import gc
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from frames import BINARY, CLOSE, MORE, PING, PONG, TEXT, close, frame, unmasked, upgraded

from certctrl.errors import BadAnswerError, DeadlineError, TlsError, TransportError
from certctrl.model.answer import Answer
from certctrl.net import websocket
from certctrl.net.stream import Closed, Ping, Pong
from certctrl.net.transport import HttpcoreHttp
from certctrl.net.websocket import WebSocket

CAP = 1 << 20


def server_context(cert: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    return context


Talk = Callable[[trio.abc.Stream], Awaitable[Any]]


async def open_stream(http: HttpcoreHttp, deadline: float = 10.0) -> Any:
    headers = {"authorization": "Bearer canary-token"}
    return await http.open_stream("/stream", subprotocol="certctrl.v1", headers=headers, deadline=deadline, cap=CAP)


def talking(talk: Talk, **answer: Any) -> Callable[..., Awaitable[None]]:
    """Return a script that upgrades the connection and then talks."""

    async def script(seen: Any, stream: trio.abc.Stream) -> None:
        await stream.send_all(upgraded(seen.headers["sec-websocket-key"], **answer))
        await talk(stream)

    return script


def sending(*pieces: bytes) -> Callable[..., Awaitable[None]]:
    """Return a script that upgrades the connection, sends pieces and waits for the client to close."""

    async def talk(stream: trio.abc.Stream) -> None:
        for piece in pieces:
            await stream.send_all(piece)
        while await stream.receive_some(65_536):
            pass

    return talking(talk)


async def receive(stream: Any) -> Any:
    with trio.fail_after(20):
        return await stream.receive()


# --- good sockets --------------------------------------------------------------------------------------------------


async def test_messages_go_both_ways(start, connect) -> None:
    got = []

    async def talk(stream: trio.abc.Stream) -> None:
        await stream.send_all(frame(TEXT, b"hello"))
        got.extend(unmasked(await stream.receive_some(65_536)))
        await stream.send_all(frame(TEXT, "gr\u00fc\u00df dich".encode()))
        await stream.receive_some(65_536)

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    assert isinstance(socket, WebSocket)
    assert await receive(socket) == "hello"
    await socket.send("answer")
    assert await receive(socket) == "gr\u00fc\u00df dich"
    assert got == [(TEXT, b"answer")]
    await socket.aclose()
    headers = site.seen[0].headers
    assert headers["authorization"] == "Bearer canary-token"
    assert headers["sec-websocket-protocol"] == "certctrl.v1"
    assert headers["sec-websocket-version"] == "13"
    assert "sec-websocket-extensions" not in headers


async def test_messages_arrive_in_fragments_and_with_the_answer(start, connect) -> None:
    async def script(seen: Any, stream: trio.abc.Stream) -> None:
        first = frame(TEXT, "1\u20ac".encode()[:2], last=False)
        await stream.send_all(upgraded(seen.headers["sec-websocket-key"]) + first)
        await stream.send_all(frame(PING, b"x") + frame(MORE, "1\u20ac2".encode()[2:]))
        await stream.receive_some(10)

    site = await start(script)
    socket = await open_stream(connect(site.url))
    assert await receive(socket) == Ping()
    assert await receive(socket) == "1\u20ac2"
    await socket.aclose()


async def test_pings_are_answered_and_pongs_reported(start, connect) -> None:
    got = []

    async def talk(stream: trio.abc.Stream) -> None:
        await stream.send_all(frame(PING, b"are you there"))
        got.extend(unmasked(await stream.receive_some(65_536)))
        await stream.send_all(frame(PONG, b"7"))
        await stream.receive_some(10)

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    assert await receive(socket) == Ping()
    assert await receive(socket) == Pong(b"7")
    assert got == [(PONG, b"are you there")]
    await socket.aclose()


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1012, '{"retry_after": 3}'), (4401, "token"), (4999, "")])
async def test_a_close_frame_is_reported_and_answered(start, connect, code: int, reason: str) -> None:
    got = []

    async def talk(stream: trio.abc.Stream) -> None:
        await stream.send_all(close(code, reason))
        got.extend(unmasked(await stream.receive_some(65_536)))

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    assert await receive(socket) == Closed(code, reason)
    await socket.aclose()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert got[0][0] == CLOSE
    assert got[0][1][:2] == struct.pack("!H", code)


async def test_the_end_of_the_connection_is_reported(start, connect) -> None:
    async def talk(stream: trio.abc.Stream) -> None:
        await trio.lowlevel.checkpoint()

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    assert await receive(socket) == Closed(1006)
    await socket.aclose()


async def test_closing_tells_the_peer_why_and_leaves_nothing_open(start, connect) -> None:
    got = []

    async def talk(stream: trio.abc.Stream) -> None:
        got.extend(unmasked(await stream.receive_some(65_536)))

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    await socket.aclose(1001, "stopping")
    with trio.fail_after(10):
        while site.open_now:
            await trio.sleep(0.01)
    assert got == [(CLOSE, struct.pack("!H", 1001) + b"stopping")]
    with pytest.raises(TransportError):
        await socket.send("late")


# --- refused upgrades ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 400, 401, 403, 404, 426, 429, 500, 502, 503])
async def test_an_answer_instead_of_the_upgrade_is_returned(start, connect, reply, status: int) -> None:
    site = await start(lambda seen, stream: reply({"error": {"code": 1}}, status=status, headers="Retry-After: 7\r\n"))
    answer = await open_stream(connect(site.url))
    assert isinstance(answer, Answer)
    assert answer.status == status
    assert answer.headers["retry-after"] == "7"
    with trio.fail_after(10):
        while site.open_now:
            await trio.sleep(0.01)


async def test_a_redirect_is_not_followed(start, connect, reply) -> None:
    other = await start()
    site = await start(lambda seen, stream: reply(status=302, headers=f"Location: {other.url}/x\r\n"))
    with pytest.raises(BadAnswerError, match="redirects"):
        await open_stream(connect(site.url))
    assert not other.connections


@pytest.mark.parametrize(
    "answer",
    [
        {"accept": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, {"accept": " "}, {"protocol": ""}, {"protocol": "other.v1"},
        {"upgrade": "h2c"}, {"extra": "Sec-WebSocket-Extensions: permessage-deflate\r\n"},
    ],
)  # fmt: skip
async def test_a_wrong_handshake_is_refused(start, connect, answer: dict[str, str]) -> None:
    async def talk(stream: trio.abc.Stream) -> None:
        await stream.receive_some(10)

    site = await start(talking(talk, **answer))
    with pytest.raises(BadAnswerError, match="upgraded the connection"):
        await open_stream(connect(site.url))
    with trio.fail_after(10):
        while site.open_now:
            await trio.sleep(0.01)


@pytest.mark.parametrize("where", ["other CA", "other name", "expired"])
async def test_an_untrusted_certificate_fails_with_the_words_of_a_request(start, connect, ca, where: str) -> None:
    import datetime

    issuer = trustme.CA() if where == "other CA" else ca
    name = "other.test" if where == "other name" else "127.0.0.1"
    past = {"not_after": datetime.datetime(2020, 1, 1)} if where == "expired" else {}
    site = await start(context=server_context(issuer.issue_cert(name, **past)))
    words = []
    for attempt in (
        lambda http: http.request("GET", "/", deadline=10, cap=CAP),
        open_stream,
    ):
        with pytest.raises(TlsError) as caught, trio.fail_after(10):
            await attempt(connect(site.url))
        words.append((str(caught.value), caught.value.fix, caught.value.maybe_sent))
    assert words[0] == words[1]
    assert not site.seen


async def test_nothing_listening_fails_with_the_words_of_a_request(start, connect) -> None:
    words = []
    for attempt in (lambda http: http.request("GET", "/", deadline=10, cap=CAP), open_stream):
        with pytest.raises(TransportError) as caught:
            await attempt(connect("https://127.0.0.1:9"))
        words.append((str(caught.value), caught.value.fix, caught.value.maybe_sent))
    assert words[0] == words[1]


async def test_an_upgrade_that_is_never_answered_ends_at_the_deadline(start, connect) -> None:
    async def script(seen: object, stream: trio.abc.Stream) -> None:
        await stream.receive_some(10)

    site = await start(script)
    with pytest.raises(DeadlineError) as caught:
        await open_stream(connect(site.url), deadline=0.3)
    assert caught.value.maybe_sent
    with trio.fail_after(10):
        while site.open_now:
            await trio.sleep(0.01)


async def test_a_cancelled_handshake_leaves_nothing_open(start, connect) -> None:
    async def script(seen: object, stream: trio.abc.Stream) -> None:
        await stream.receive_some(10)

    site = await start(script)
    with trio.move_on_after(0.3):
        await open_stream(connect(site.url))
    with trio.fail_after(10):
        while site.open_now:
            await trio.sleep(0.01)


async def test_errors_do_not_contain_the_token(start, connect) -> None:
    site = await start(lambda seen, stream: b"canary-token is not HTTP\r\n\r\n")
    with pytest.raises(TransportError) as caught:
        await open_stream(connect(site.url))
    assert "Bearer" not in repr(caught.value)
    assert caught.value.__cause__ is None


# --- hostile frames ------------------------------------------------------------------------------------------------

HOSTILE = {
    "binary": frame(BINARY, b"x"),
    "masked": frame(TEXT, b"x", masked=True),
    "invalid UTF-8": frame(TEXT, b"\xff\xfe"),
    "half a character": frame(TEXT, "\u20ac".encode()[:2]),
    "reserved bit": frame(TEXT, b"x", reserved=0x40),
    "unknown opcode": frame(3, b"x"),
    "unknown control opcode": frame(11, b"x"),
    "continuation of nothing": frame(MORE, b"x"),
    "message within a message": frame(TEXT, b"x", last=False) + frame(TEXT, b"y"),
    "fragmented ping": frame(PING, b"x", last=False),
    "long ping": bytes([0x80 | PING, 126, 0, 200]) + b"x" * 200,
    "long close": bytes([0x80 | CLOSE, 126, 0, 200]) + b"x" * 200,
    "close with one byte": frame(CLOSE, b"x"),
    "close code of nobody": close(1005),
    "close code 0": close(0),
    "close code 999": close(999),
    "close code 65535": close(65_535),
    "close with invalid UTF-8": frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
    "length in too many bytes": bytes([0x80 | TEXT, 126, 0, 5]) + b"12345",
    "negative length": bytes([0x80 | TEXT, 127]) + b"\xff" * 8 + b"x",
    "HTTP": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "zeros": b"\0" * 100,
    "ones": b"\xff" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_bad_frames_end_the_socket(start, connect, name: str) -> None:
    site = await start(sending(HOSTILE[name]))
    socket = await open_stream(connect(site.url))
    with pytest.raises(BadAnswerError, match="WebSocket protocol") as caught:
        await receive(socket)
    assert str(caught.value).isprintable()
    with trio.fail_after(10):
        while site.open_now:  # the socket closed itself
            await trio.sleep(0.01)


async def flood(stream: trio.abc.Stream, piece: bytes, limit: int = 400_000_000) -> int:
    """Send pieces until the peer closes; return the bytes sent."""
    sent = 0
    try:
        while sent < limit:
            await stream.send_all(piece)
            sent += len(piece)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return sent


FLOODS = {
    "a huge message": (frame(TEXT, b"", size=1 << 40), b"x" * 65_536),
    "fragments without end": (frame(TEXT, b"x", last=False), frame(MORE, b"y" * 1000, last=False)),
    "empty fragments without end": (frame(TEXT, b"x", last=False), frame(MORE, b"", last=False) * 100),
    "pings without end": (b"", frame(PING, b"x") * 100),
    "pongs without end": (b"", frame(PONG, b"x") * 100),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_end_the_socket_within_its_bounds(start, connect, name: str) -> None:
    head, piece = FLOODS[name]
    sent = []

    async def talk(stream: trio.abc.Stream) -> None:
        await stream.send_all(head)
        sent.append(await flood(stream, piece))

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    with pytest.raises((BadAnswerError, TransportError)), trio.fail_after(60):
        while not isinstance(await socket.receive(), Closed):
            pass
        raise TransportError("closed")
    await socket.aclose()
    with trio.fail_after(30):
        while not sent:
            await trio.sleep(0.01)
    assert sent[0] < 50_000_000


async def test_a_message_at_the_limit_is_received_and_one_byte_more_is_not(start, connect) -> None:
    site = await start(sending(frame(TEXT, b"x" * CAP), frame(TEXT, b"y" * (CAP + 1))))
    socket = await open_stream(connect(site.url))
    assert await receive(socket) == "x" * CAP
    with pytest.raises(BadAnswerError, match="1024 KiB"):
        await receive(socket)


async def test_the_limit_is_in_bytes(start, connect) -> None:
    site = await start(sending(frame(TEXT, "\u20ac".encode() * (CAP // 3 + 1))))
    socket = await open_stream(connect(site.url))
    with pytest.raises(BadAnswerError, match="1024 KiB"):
        await receive(socket)


async def test_a_peer_that_does_not_read_ends_the_socket(start, connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "SEND_SECONDS", 0.3)

    async def talk(stream: trio.abc.Stream) -> None:
        await trio.sleep(30)

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    with pytest.raises(TransportError, match="not read"), trio.fail_after(20):
        while True:
            await socket.send("x" * 200_000)
    with pytest.raises(TransportError):
        await socket.send("more")
    with trio.fail_after(2):
        await socket.aclose()


async def test_concurrent_messages_stay_whole(start, connect) -> None:
    data = bytearray()

    async def talk(stream: trio.abc.Stream) -> None:
        while len(data) < 20 * 1000:
            data.extend(await stream.receive_some(65_536))
        await stream.send_all(close(1000))

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(socket.send, chr(97 + number) * 1000)
        assert await receive(socket) == Closed(1000)
    await socket.aclose()
    texts = {payload for _, payload in unmasked(bytes(data))}
    assert {text for text in texts if len(text) == 1000} == {bytes([97 + number]) * 1000 for number in range(20)}


async def test_a_cancelled_send_does_not_cut_a_frame(start, connect) -> None:
    data = bytearray()

    async def talk(stream: trio.abc.Stream) -> None:
        while chunk := await stream.receive_some(65_536):
            data.extend(chunk)

    site = await start(talking(talk))
    socket = await open_stream(connect(site.url))
    with trio.CancelScope() as scope:
        scope.cancel()
        await socket.send("first")
    await socket.send("second")
    await socket.aclose()
    with trio.fail_after(10):
        while site.open_now:
            await trio.sleep(0.01)
    assert (TEXT, b"second") in unmasked(bytes(data))


async def test_sockets_leave_no_garbage(start, connect, recwarn: pytest.WarningsRecorder) -> None:
    site = await start(sending(frame(TEXT, b"x")))
    http = connect(site.url)
    for _ in range(3):
        socket = await open_stream(http)
        await receive(socket)
        await socket.aclose()
    del socket
    gc.collect()
    assert not [one for one in recwarn if issubclass(one.category, ResourceWarning)]
