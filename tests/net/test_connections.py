"""Kept connections: which are used again, and which are closed."""

from __future__ import annotations

from typing import Any

import httpcore
import pytest
import trio
import trio.testing

from certctrl.net.connections import KeptConnections, Progress

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def get(url: str) -> httpcore.Request:
    return httpcore.Request("GET", url, headers={"host": "plane.test"})


async def read(response: httpcore.Response) -> int:
    await response.aread()
    return response.status


async def exchange(kept: KeptConnections, url: str, path: str = "/") -> bool:
    """Send a request; return whether a connection was opened for it."""
    progress = Progress()
    assert await kept.exchange(get(f"{url}{path}"), read, progress) == 200
    assert progress.sent
    return progress.is_new


def connections(seconds: float = 60.0) -> KeptConnections:
    return KeptConnections(context=None, keepalive_seconds=seconds)


async def test_concurrent_exchanges_have_their_own_connections_and_keep_them(start) -> None:
    let_go = trio.Event()

    async def script(seen: object, stream: object) -> bytes:
        await let_go.wait()
        return OK

    site, kept = await start(script, plain=True), connections()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(exchange, kept, site.url)
        with trio.fail_after(10):
            while len(site.seen) < 3:
                await trio.sleep(0.01)
        assert repr(kept) == "KeptConnections(0 idle, 3 busy)"
        let_go.set()
    assert repr(kept) == "KeptConnections(3 idle, 0 busy)"
    last = site.seen[-1].connection
    for _ in range(5):
        assert not await exchange(kept, site.url)
    assert len({seen.connection for seen in site.seen[3:]}) == 1, "the same one each time"
    assert last <= site.connections == 3
    await kept.aclose()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert site.open_now == 0


async def test_each_origin_has_its_own_connections(start) -> None:
    first, second = [await start(lambda seen, stream: OK, plain=True) for _ in range(2)]
    kept = connections()
    opened = [await exchange(kept, site.url) for site in (first, second, first, second)]
    assert opened == [True, True, False, False]
    await kept.aclose()


@pytest.mark.parametrize("ends", ["by the server", "by its age"])
async def test_an_idle_connection_that_has_ended_is_closed_by_the_next_exchange(start, ends: str) -> None:
    async def script(seen: Any, stream: Any) -> bytes | None:
        if seen.target == "/slow":
            await trio.sleep(0.1)
        if seen.target == "/slow" and ends == "by the server":
            await stream.send_all(OK)
            return None
        return OK

    site, kept = await start(script, plain=True), connections(60.0 if ends == "by the server" else 0.3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange, kept, site.url, "/slow")
        nursery.start_soon(exchange, kept, site.url)
    await trio.sleep(0.5)
    is_new = await exchange(kept, site.url)
    assert is_new == (ends == "by its age")
    assert len(kept.open) == 1, "the other one is closed, although it was not needed"
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert site.open_now == 1
    await kept.aclose()


async def test_a_connection_that_the_server_ends_with_its_answer_is_not_kept(start) -> None:
    site = await start(lambda seen, stream: OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), plain=True)
    kept = connections()
    assert await exchange(kept, site.url)
    assert not kept.open
    assert await exchange(kept, site.url)


@pytest.mark.parametrize("error", [httpcore.ReadError, ValueError, KeyboardInterrupt])
async def test_a_connection_whose_answer_was_not_read_is_closed(start, error: type[BaseException]) -> None:
    async def fail(response: httpcore.Response) -> int:
        raise error

    site, kept = await start(lambda seen, stream: OK, plain=True), connections()
    with pytest.raises(error):
        await kept.exchange(get(site.url), fail, Progress())
    assert not kept.open
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert site.open_now == 0


async def test_only_an_exchange_on_a_new_connection_may_be_unsent(start) -> None:
    site, kept = await start(lambda seen, stream: OK, plain=True), connections()
    progress = Progress()
    with pytest.raises(httpcore.ConnectError):
        await kept.exchange(get("http://127.0.0.1:9/"), read, progress)
    assert (progress.is_new, progress.sent) == (True, False)
    await exchange(kept, site.url)
    assert not await exchange(kept, site.url)
    await kept.aclose()


async def test_a_login_at_a_proxy_reaches_only_the_proxy(start) -> None:
    site = await start(lambda seen, stream: OK, plain=True)
    proxy = httpcore.Proxy(site.url, auth=("agent", "canary"))
    kept = KeptConnections(context=None, keepalive_seconds=60.0, proxy=proxy)
    assert await exchange(kept, "http://plane.test")
    (seen,) = site.seen
    assert seen.target == "http://plane.test/"
    assert seen.headers["proxy-authorization"].startswith("Basic ")
    assert "canary" not in repr(kept)
    await kept.aclose()
