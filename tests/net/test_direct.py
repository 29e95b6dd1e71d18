"""Connections of our own: which are kept, which are used again, and what a server may do to them."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from certctrl.errors import TransportError

CAP = 1 << 20


async def get(http, target: str = "/", method: str = "GET") -> int:
    return (await http.request(method, target, json={} if method == "POST" else None, deadline=5, cap=CAP)).status


async def test_concurrent_requests_have_connections_of_their_own_and_keep_them(start, connect, reply) -> None:
    both = trio.Event()

    async def script(seen, stream):
        if seen.target == "/held":
            await both.wait()
        return reply({"data": 1})

    site = await start(script)
    http = connect(site.url)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(get, http, "/held")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await get(http) == 200
        both.set()
    assert site.connections == 2
    for _ in range(5):
        assert await get(http) == 200
    assert site.connections == 2


async def test_a_connection_that_the_server_has_closed_is_not_used_for_a_post(start, connect, reply) -> None:
    async def script(seen, stream):
        await stream.send_all(reply({"data": 1}))  # and close it

    site = await start(script)
    http = connect(site.url)
    assert await get(http) == 200
    await trio.sleep(0.05)
    assert await get(http, method="POST") == 200
    assert [seen.method for seen in site.seen] == ["GET", "POST"]


async def test_a_connection_with_bytes_that_nobody_asked_for_is_not_used_again(start, connect, reply) -> None:
    """They would be taken for the next answer."""
    sneaked = reply({"data": "sneaked"})

    async def script(seen, stream):
        return reply({"data": 1}) + (sneaked if seen.target == "/1" else b"")

    site = await start(script)
    http = connect(site.url)
    assert await get(http, "/1") == 200
    answer = await http.request("GET", "/2", deadline=5, cap=CAP)
    assert answer.body == b'{"data": 1}' and site.connections == 2


async def test_a_connection_is_closed_once_it_has_idled_too_long(start, connect) -> None:
    site = await start()
    http = connect(site.url)
    await get(http)
    (pool,) = http._pools._all
    (kept,) = pool.transport._idle
    kept.expires_at = trio.current_time() - 1
    await get(http)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert (site.connections, site.open_now) == (2, 1)


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", False),
    ],
)
async def test_forms_of_an_answer(start, connect, head: bytes, kept: bool) -> None:
    site = await start(lambda seen, stream: head)
    http = connect(site.url)
    for _ in range(2):
        answer = await http.request("GET", "/", deadline=5, cap=CAP)
        assert (answer.status, answer.body) == (200, b"{}")
    assert site.connections == (1 if kept else 2)


async def test_an_upgrade_that_nobody_asked_for_is_refused(start, connect) -> None:
    site = await start(lambda seen, stream: b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    with pytest.raises(TransportError):
        await get(connect(site.url))


async def test_closing_ends_running_exchanges(start, connect) -> None:
    async def script(seen, stream):
        await stream.receive_some()  # until it is closed

    site = await start(script)
    http = connect(site.url)
    failed: list[TransportError] = []

    async def wait() -> None:
        try:
            await get(http)
        except TransportError as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await http.aclose()
    assert len(failed) == 1
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert site.open_now == 0
