"""One exchange: the request, the deadline, and the connection."""

from __future__ import annotations

import ssl

import pytest
import trio
import trio.testing
import trustme

from certctrl import __version__
from certctrl.errors import DeadlineError, TransportError
from certctrl.net import pools
from certctrl.net.tls import PlaneCa, Trust

CAP = 1 << 20


async def test_headers_of_a_request(start, connect, reply) -> None:
    site = await start(lambda seen, stream: reply({"data": [1]}, headers='ETag: W/"a"\r\nX-A: 1\r\nX-A: 2\r\n'))
    answer = await connect(site.url).request(
        "POST",
        "/a b/é",
        query={"cursor": "1-2&x", "wait": 5},
        headers={"authorization": "Bearer t"},
        json={"name": "ü"},
        deadline=5,
        cap=CAP,
    )
    assert (answer.status, answer.body, answer.headers["etag"], answer.headers["x-a"]) == (
        200,
        b'{"data": [1]}',
        'W/"a"',
        "1, 2",
    )
    (seen,) = site.seen
    assert (seen.method, seen.target) == ("POST", "/a%20b/%C3%A9?cursor=1-2%26x&wait=5")
    assert seen.body == '{"name":"ü"}'.encode()
    assert seen.headers["user-agent"] == f"cert-ctrl/{__version__}"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["authorization"] == "Bearer t"
    assert seen.headers["host"] == site.url.removeprefix("https://")
    assert "cookie" not in seen.headers


async def test_a_hundred_polls_use_one_connection(start, connect, reply) -> None:
    site = await start(lambda seen, stream: b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\nETag: 1-1\r\n\r\n")
    http = connect(site.url)
    for _ in range(100):
        assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 204
    assert site.connections == 1
    assert all("cookie" not in seen.headers for seen in site.seen)


@pytest.mark.parametrize(("interval_ms", "seconds"), [(5000, 75.0), (10, 75.0), (60_000, 150.0)])
async def test_keep_alive_outlives_the_interval(start, connect, interval_ms: int, seconds: float) -> None:
    site = await start()
    http = connect(site.url, poll_interval_ms=interval_ms)
    await http.request("GET", "/", deadline=5, cap=CAP)
    (pool,) = http._pools._all
    assert pool.transport.keepalive_seconds == seconds


async def test_plain_http_on_loopback(start, connect) -> None:
    site = await start(plain=True)
    http = connect(site.url, allow_http_loopback=True, ca_files=())
    assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200


async def test_the_planes_next_ca_counts_for_the_next_request(start, connect, tmp_path) -> None:
    """Not only ten minutes later: the plane may serve a certificate of it by then."""
    served, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.issue_cert("127.0.0.1").configure_cert(context)
    site = await start(context=context)
    trustme.CA().cert_pem.write_to_path(tmp_path / "plane-ca.pem")
    http = connect(site.url, ca_files=("plane-ca.pem",))
    with pytest.raises(TransportError, match="is not signed by the CA in ca_files"):
        await http.request("GET", "/", deadline=5, cap=CAP)
    files = PlaneCa.below(tmp_path)
    files.next.parent.mkdir()
    files.next.write_bytes(files.stamp() + served.cert_pem.bytes())
    assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200
    assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200
    assert len(http._pools._all) == 1


# --- deadline and cancellation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], ids=len
)
async def test_the_deadline_covers_silence_and_slow_bodies(start, connect, reply, head: bytes) -> None:
    slow = True

    async def script(seen, stream):
        if not slow:
            return reply({"data": 1})
        await stream.send_all(head)
        while True:
            await stream.send_all(b"1\r\nx\r\n" if b"chunked" in head else b"x" if head else b"")
            await trio.sleep(0.02)

    site = await start(script)
    http = connect(site.url, max_connections=1)
    began = trio.current_time()
    with pytest.raises(DeadlineError, match=r"no complete answer from 127\.0\.0\.1.* within 0\.3 s") as caught:
        await http.request("GET", "/", deadline=0.3, cap=CAP)
    assert trio.current_time() - began < 30
    assert caught.value.maybe_sent
    slow = False
    assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200


async def test_a_hanging_handshake_ends_at_the_deadline_unsent(connect, nursery) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    with pytest.raises(DeadlineError, match=f"no connection to 127.0.0.1:{port}") as caught:
        await connect(f"https://127.0.0.1:{port}").request("POST", "/", deadline=0.3, cap=CAP)
    assert not caught.value.maybe_sent
    with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        await connect(f"https://127.0.0.1:{port}", connect_timeout_seconds=0.2).request("GET", "/", deadline=5, cap=CAP)
    await listener.aclose()


async def test_the_deadline_includes_waiting_for_a_connection(start, connect) -> None:
    async def script(seen, stream):
        await trio.sleep_forever()

    site = await start(script)
    http = connect(site.url, max_connections=1)
    async with trio.open_nursery() as both:

        async def hold() -> None:
            with pytest.raises(DeadlineError):
                await http.request("GET", "/held", deadline=0.5, cap=CAP)

        both.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(DeadlineError) as caught:
            await http.request("GET", "/waits", deadline=0.1, cap=CAP)
        assert not caught.value.maybe_sent


@pytest.mark.parametrize("width", [1, 2, 4])
async def test_cancelling_at_any_moment_leaks_no_connection(start, connect, reply, width: int) -> None:
    """With the library's pool, about half of the requests below fail."""

    async def script(seen, stream):
        if seen.target == "/held":
            await trio.sleep(0.03)
        return reply({"data": 1})

    site = await start(script)
    http = connect(site.url, max_connections=width)
    for step in range(150):
        with trio.move_on_after(step * 0.012 / 150):
            await http.request("GET", "/held", deadline=5, cap=CAP)
        if step % 10 == 0:
            assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200
    assert http._slots.value == width
    (pool,) = http._pools._all
    assert all(one.is_idle() for one in pool.transport.open)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert site.open_now == len(pool.transport.open) <= width


# --- reuse and recycling ----------------------------------------------------------------------------------------


async def test_a_get_on_a_stale_connection_is_repeated_once(start, connect, reply) -> None:
    per_connection: dict[int, int] = {}

    def script(seen, stream):
        per_connection[seen.connection] = per_connection.get(seen.connection, 0) + 1
        return reply({"data": 1}) if per_connection[seen.connection] == 1 else None

    site = await start(script)
    http = connect(site.url)
    await http.request("GET", "/1", deadline=5, cap=CAP)
    assert (await http.request("GET", "/2", deadline=5, cap=CAP)).status == 200
    assert [(seen.target, seen.connection) for seen in site.seen] == [("/1", 1), ("/2", 1), ("/2", 2)]
    with pytest.raises(TransportError, match="closed the connection") as caught:
        await http.request("POST", "/3", json={}, deadline=5, cap=CAP)
    assert caught.value.maybe_sent
    assert [seen.target for seen in site.seen].count("/3") == 1, "a POST may have taken effect"


async def test_a_get_on_a_new_connection_is_not_repeated(start, connect) -> None:
    site = await start(lambda seen, stream: None)
    with pytest.raises(TransportError):
        await connect(site.url).request("GET", "/", deadline=5, cap=CAP)
    assert len(site.seen) == 1


async def test_a_connection_is_recycled_after_ten_minutes(start, connect, monkeypatch) -> None:
    assert pools.RECYCLE_SECONDS == 600
    site = await start()
    http = connect(site.url)
    await http.request("GET", "/", deadline=5, cap=CAP)
    (first,) = http._pools._all
    first.born -= 599
    await http.request("GET", "/", deadline=5, cap=CAP)
    assert site.connections == 1
    first.born -= 2
    await http.request("GET", "/", deadline=5, cap=CAP)
    assert site.connections == 2
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert site.open_now == 1, "the old connection is closed"
    assert first not in http._pools._all


async def test_the_ca_files_are_examined_once_a_second(start, connect, monkeypatch) -> None:
    looks = 0

    def context(trust: Trust) -> ssl.SSLContext:
        nonlocal looks
        looks += 1
        return trust._context

    site = await start()
    http = connect(site.url)
    monkeypatch.setattr(Trust, "context", context)
    for _ in range(20):
        await http.request("GET", "/", deadline=5, cap=CAP)
    (pool,) = http._pools._all
    assert looks == 1, "only for the new connection"
    pool.checked -= pools.CHECK_SECONDS
    for _ in range(20):
        await http.request("GET", "/", deadline=5, cap=CAP)
    assert looks == 2


async def test_a_running_request_survives_the_recycling_of_its_pool(start, connect, reply) -> None:
    let_go = trio.Event()

    async def script(seen, stream):
        if seen.target == "/long":
            await let_go.wait()
        return reply({"data": 1})

    site = await start(script)
    http = connect(site.url)
    async with trio.open_nursery() as both:
        statuses: list[int] = []

        async def long_poll() -> None:
            statuses.append((await http.request("GET", "/long", deadline=5, cap=CAP)).status)

        both.start_soon(long_poll)
        await trio.testing.wait_all_tasks_blocked(0.05)
        (first,) = http._pools._all
        first.born -= 601
        assert (await http.request("GET", "/", deadline=5, cap=CAP)).status == 200
        assert len(http._pools._all) == 2
        let_go.set()
    assert statuses == [200]
    assert len(http._pools._all) == 1
