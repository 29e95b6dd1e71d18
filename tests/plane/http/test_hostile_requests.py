"""The real server gives each hostile request its status, and ends the connection unless it is sure where it stands."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio
from hostile_requests import ALL, CHUNKED, END, GET, OPEN, POST
from plane_socket import Connection, connected

from certctrl.plane.serve import PlaneAddress

pytestmark = pytest.mark.integration


async def statuses(client: Connection) -> list[int]:
    """Return the statuses of all answers until the server ends the connection."""
    found = []
    try:
        while True:
            found.append((await client.answer()).status)
    except EOFError:
        return found


async def fate_of(served: PlaneAddress, parts: Iterable[bytes], fate: bool) -> list[int]:
    """Send bytes; return the statuses of the answers, with that of another request if the connection is to stay."""
    async with connected(served) as client:
        with trio.fail_after(60):
            for part in parts:
                await client.stream.send_all(part)
            if fate is OPEN:
                first = await client.answer()
                return [first.status, (await client.ask("GET", "/health", Connection="close")).status]
            return await statuses(client)


async def test_each_hostile_request_has_its_status_and_the_connection_its_fate(served: PlaneAddress) -> None:
    found: dict[str, list[int] | str] = {}

    async def attack(name: str, data: bytes, fate: bool) -> None:
        try:
            found[name] = await fate_of(served, [data], fate)
        except (EOFError, trio.BrokenResourceError, trio.TooSlowError) as error:
            found[name] = type(error).__name__

    async with trio.open_nursery() as nursery:
        for name, (data, _, fate) in ALL.items():
            nursery.start_soon(attack, name, data, fate)
    wanted = {name: [status, 200] if fate is OPEN else [status] for name, (_, status, fate) in ALL.items()}
    assert found == wanted


async def test_what_is_hostile_does_not_keep_earlier_requests_from_their_answers(served: PlaneAddress) -> None:
    data = GET + END + POST + b"Content-Length: 2\r\n\r\n{}" + GET + b"A : b\r\n\r\n" + GET + END
    assert await fate_of(served, [data], False) == [200, 400, 400]


async def test_a_request_in_single_bytes_is_one_request(served: PlaneAddress) -> None:
    data = CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    assert await fate_of(served, [bytes([byte]) for byte in data], OPEN) == [400, 200]


async def test_nothing_is_answered_after_close(served: PlaneAddress) -> None:
    assert await fate_of(served, [GET + b"Connection: close\r\n\r\n" + GET + END], False) == [200]


async def test_a_head_has_no_body(served: PlaneAddress) -> None:
    async with connected(served) as client:
        await client.stream.send_all(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        with trio.fail_after(60):
            while data.count(b"\r\n\r\n") < 2 or not data.endswith(b"}"):
                data += await client.stream.receive_some()
        head, second, _ = data.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert second.startswith(b"HTTP/1.1 200 "), "the body of the answer to HEAD is not there"


async def test_a_client_that_waits_is_invited_once(served: PlaneAddress) -> None:
    async with connected(served) as client:
        await client.stream.send_all(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        with trio.fail_after(60):
            assert (await client.answer()).status == 100
            await client.stream.send_all(b"{}")
            assert (await client.answer()).status == 400
            assert (await client.ask("GET", "/health")).status == 200


@pytest.mark.parametrize(("version", "body"), [(b"1.1", b"{}"), (b"1.0", b"")])
async def test_who_does_not_wait_is_not_invited(served: PlaneAddress, version: bytes, body: bytes) -> None:
    head = POST.replace(b"HTTP/1.1", b"HTTP/" + version) + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    async with connected(served) as client:
        with trio.fail_after(60):
            await client.stream.send_all(head + body)
            if not body:
                await trio.sleep(0.1)
                await client.stream.send_all(b"{}")
            assert (await client.answer()).status == 400


async def test_a_body_that_nobody_reads_ends_the_connection_without_an_invitation(served: PlaneAddress) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    async with connected(served) as client:
        await client.stream.send_all(head)
        with trio.fail_after(60):
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (404, "close")
            while True:  # the server waits for the body for a while
                try:
                    await client.answer()
                except (EOFError, trio.BrokenResourceError):
                    break


async def test_half_a_head_is_refused_when_the_client_ends_its_side(served: PlaneAddress) -> None:
    async with connected(served) as client:
        with trio.fail_after(60):
            await client.stream.send_all(GET)
            stream = client.stream.transport_stream
            await stream.send_eof()
            assert await statuses_or_reset(client) in ([400], [])


async def statuses_or_reset(client: Connection) -> list[int]:
    try:
        return await statuses(client)
    except trio.BrokenResourceError:
        return []
