"""Listeners for authorities under clients that hold connections open, with real sockets."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from watched_connections import Watched, connect

from certctrl.net import challenge_listener, tls_alpn
from certctrl.net.admission import Admission, Place, caller_of
from certctrl.net.challenge_listener import listen_http01
from certctrl.net.tls_alpn import PROTOCOL, challenge_context, challenge_pem, listen_tls_alpn01

PATH = "/.well-known/acme-challenge/token"


async def fetched(port: int, source: str = "127.0.0.1") -> bytes:
    async with await connect(port, source) as stream:
        await stream.send_all(f"GET {PATH} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode())
        data = b""
        while part := await stream.receive_some():
            data += part
    return data.partition(b"\r\n\r\n")[2]


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> AsyncIterator[int]:
    """The port of a listener with six places, three for one address."""
    monkeypatch.setattr(challenge_listener, "CONNECTIONS", 6)
    monkeypatch.setattr(challenge_listener, "CONNECTIONS_PER_ADDRESS", 3)
    monkeypatch.setattr(challenge_listener, "HEAD_SECONDS", 3600.0)
    monkeypatch.setattr(challenge_listener, "REQUEST_SECONDS", 3600.0)
    yield await nursery.start(listen_http01, "127.0.0.1", 0, {"token": "token.thumbprint"}.get)
    nursery.cancel_scope.cancel()


async def test_one_client_takes_only_its_own_places(port: int, nursery: trio.Nursery) -> None:
    other, silent = Watched(nursery), Watched(nursery)
    await other.add(port, "127.0.0.2")
    for _ in range(20):
        await silent.add(port, sent=b"G")
    await silent.expect(closed=17)
    assert await fetched(port, "127.0.0.3") == b"token.thumbprint"
    assert await fetched(port) == b"token.thumbprint", "even itself is answered"
    await other.expect(closed=0)
    for one in (silent, other):
        await one.close()


async def test_many_clients_make_room_for_the_next(port: int, nursery: trio.Nursery) -> None:
    silent = Watched(nursery)
    for number in range(2, 11):
        await silent.add(port, f"127.0.0.{number}")
    await silent.expect(closed=3)
    assert await fetched(port) == b"token.thumbprint"
    await silent.expect(closed=4)
    await silent.close()


async def test_an_authority_is_answered_during_a_flood(port: int) -> None:
    async def flood(source: str) -> None:
        while True:
            nursery.start_soon(held, await connect(port, source))
            await trio.sleep(0.005)

    async def held(stream: trio.SocketStream) -> None:
        try:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_some()
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        for number in range(2, 5):
            nursery.start_soon(flood, f"127.0.0.{number}")
        await trio.sleep(0.2)
        with trio.fail_after(20):
            answers = 0
            while answers < 5:  # an authority tries again, too
                with contextlib.suppress(trio.BrokenResourceError):
                    answers += await fetched(port, "127.0.0.9") == b"token.thumbprint"
        nursery.cancel_scope.cancel()


async def test_a_connection_that_is_being_answered_is_kept(nursery: trio.Nursery) -> None:
    asked, go = trio.Event(), trio.Event()

    async def respond(token: str) -> tuple[int, bytes]:
        asked.set()
        await go.wait()
        return 200, b"late"

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    nursery.start_soon(lambda: challenge_listener.answer_http01(listeners, respond, connections=1, per_address=1))
    answers: list[bytes] = []

    async def fetch() -> None:
        answers.append(await fetched(port))

    nursery.start_soon(fetch)
    await asked.wait()
    for source in ("127.0.0.1", "127.0.0.2"):
        turned_away = Watched(nursery)
        await turned_away.add(port, source)
        await turned_away.expect(closed=1)
        await turned_away.close()
    go.set()
    with trio.fail_after(20):
        while not answers:
            await trio.sleep(0.01)
    assert answers == [b"late"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("limit", ["HEAD_SECONDS", "REQUEST_SECONDS"])
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: y"])
async def test_the_head_of_a_request_has_a_time_limit(
    port: int, sent: bytes, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(challenge_listener, limit, 0.1)
    stream = await connect(port)
    if sent:
        await stream.send_all(sent)
    with trio.fail_after(20), contextlib.suppress(trio.BrokenResourceError):
        assert await stream.receive_some() == b""
    await stream.aclose()


async def test_handshakes_have_the_same_limits(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, tmp_path: Path
) -> None:
    monkeypatch.setattr(tls_alpn, "CONNECTIONS", 6)
    monkeypatch.setattr(tls_alpn, "CONNECTIONS_PER_ADDRESS", 3)
    file = tmp_path / "challenge.pem"
    file.write_bytes(challenge_pem("a.example", "token.thumbprint", 1_790_000_000))
    port = await nursery.start(listen_tls_alpn01, "127.0.0.1", 0, {"a.example": challenge_context(str(file))}.get)
    other, silent = Watched(nursery), Watched(nursery)
    await other.add(port, "127.0.0.2")
    for _ in range(10):
        await silent.add(port)
    await silent.expect(closed=7)
    await other.expect(closed=0)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([PROTOCOL])
    authority = trio.SSLStream(await connect(port, "127.0.0.3"), context, server_hostname="a.example")
    await authority.do_handshake()
    assert authority.selected_alpn_protocol() == PROTOCOL
    await trio.aclose_forcefully(authority.transport_stream)
    for one in (silent, other):
        await one.close()
    nursery.cancel_scope.cancel()


async def test_the_oldest_idle_connection_is_ended(nursery: trio.Nursery) -> None:
    admission, ended = Admission(4, 2), []

    async def connection(name: str, address: str, task_status: trio.TaskStatus[Place | None]) -> None:
        with admission.admitted(address) as place:
            task_status.started(place)
            if place is not None:
                await trio.sleep_forever()
        ended.append(name)

    async def admit(name: str, address: str) -> Place | None:
        place: Place | None = await nursery.start(connection, name, address)
        await trio.testing.wait_all_tasks_blocked()
        return place

    first = await admit("first", "192.0.2.1")
    for name, address in (("second", "192.0.2.2"), ("third", "192.0.2.1"), ("fourth", "192.0.2.3")):
        assert await admit(name, address) is not None
    assert first is not None and ended == []
    first.is_idle = False
    await admit("fifth", "192.0.2.1")
    assert ended == ["third"], "of its own address, and not the one that is being answered"
    await admit("sixth", "192.0.2.4")
    assert ended == ["third", "second"]
    nursery.cancel_scope.cancel()


async def test_a_place_is_free_again() -> None:
    admission = Admission(2, 2)
    for _ in range(5):
        with admission.admitted("192.0.2.1") as one, admission.admitted("192.0.2.2") as two:
            assert one is not None and two is not None
            one.is_idle = two.is_idle = False
            with admission.admitted("192.0.2.3") as three:
                assert three is None


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("", ""),
    ],
)  # fmt: skip
def test_an_ipv6_address_counts_with_its_network(address: str, caller: str) -> None:
    assert caller_of(address) == caller
