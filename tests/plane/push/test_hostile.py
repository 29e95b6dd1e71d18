"""Hostile agents: bad frames of every kind end one socket with the right code, and nothing else."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
from device_polls import issue
from plane_world import World
from push_client import Closed, PushClient, memory_client, pushed
from wsproto.events import BytesMessage, Pong, TextMessage

from certctrl.plane.http import connection, reading, websocket

MASK = b"\1\2\3\4"


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True, wide: int = 0
) -> bytes:
    """Return a frame; ``wide``: with a length of so many bytes, whatever the length."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask = 0x80 if masked else 0
    length = len(payload)
    if wide == 2 or (wide == 0 and 125 < length < 65_536):
        head = struct.pack("!BBH", first, mask | 126, length)
    elif wide == 8 or length >= 65_536:
        head = struct.pack("!BBQ", first, mask | 127, length)
    else:
        head = struct.pack("!BB", first, mask | length)
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[number % 4] for number, byte in enumerate(payload))


BAD: dict[str, tuple[bytes, int]] = {
    "not masked": (frame(1, b"{}", masked=False), 1002),
    "reserved bit 1": (frame(1, b"{}", rsv=4), 1002),
    "reserved bit 2": (frame(1, b"{}", rsv=2), 1002),
    "reserved bit 3": (frame(9, b"", rsv=1), 1002),
    **{f"opcode {number}": (frame(number, b"{}"), 1002) for number in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a continuation of nothing": (frame(0, b"{}"), 1002),
    "a message within a message": (frame(1, b"{", fin=False) + frame(1, b"}"), 1002),
    "a fragmented ping": (frame(9, b"a", fin=False), 1002),
    "a fragmented close": (frame(8, b"", fin=False), 1002),
    "a long ping": (frame(9, b"a" * 126), 1002),
    "a long pong": (frame(10, b"a" * 126), 1002),
    "a length that is too wide": (frame(1, b"{}", wide=2), 1002),
    "a length that is far too wide": (frame(1, b"{}", wide=8), 1002),
    "a negative length": (struct.pack("!BBQ", 0x81, 0xFF, 2**63) + MASK, 1002),
    "a close of one byte": (frame(8, b"a"), 1002),
    "a close with code 0": (frame(8, b"\0\0"), 1002),
    "a close with code 999": (frame(8, struct.pack("!H", 999)), 1002),
    "a close with code 1005": (frame(8, struct.pack("!H", 1005)), 1002),
    "a close with code 1006": (frame(8, struct.pack("!H", 1006)), 1002),
    "a close with code 2000": (frame(8, struct.pack("!H", 2000)), 1002),
    "a close with a reason that is not text": (frame(8, struct.pack("!H", 1000) + b"\xff"), 1007),
    "text that is not UTF-8": (frame(1, b"\xff\xfe"), 1007),
    "text that ends within a character": (frame(1, "ä".encode()[:1]), 1007),
    "text that is not UTF-8 across fragments": (frame(1, b"\xc3", fin=False) + frame(0, b"("), 1007),
    "text with a surrogate": (frame(1, b"\xed\xa0\x80"), 1007),
    "a binary message": (frame(2, b"{}"), 1003),
    "a part of a binary message": (frame(2, b"{}", fin=False), 1003),
    "not JSON": (frame(1, b"hello"), 1007),
    "nothing": (frame(1), 1007),
    "a number": (frame(1, b"1"), 1007),
    "a list": (frame(1, b"[]"), 1007),
    "an object without a type": (frame(1, b"{}"), 1007),
    "a type that is no text": (frame(1, b'{"type": 1}'), 1007),
    "an id that is no text": (frame(1, b'{"type": "updates.ack", "id": 1}'), 1007),
    "a long id": (frame(1, json.dumps({"type": "updates.ack", "id": "a" * 1025}).encode()), 1007),
    "NaN": (frame(1, b'{"type": "a", "data": NaN}'), 1007),
    "a number beyond a float": (frame(1, b'{"type": "a", "data": 1e999}'), 1007),
    "a lone surrogate": (frame(1, b'{"type": "a", "data": "\\ud800"}'), 1007),
    "deep nesting": (frame(1, b'{"type": "a", "data": ' + b"[" * 40 + b"]" * 40 + b"}"), 1007),
    "very deep nesting": (frame(1, b"[" * 60_000), 1007),
    "very many values": (frame(1, b'{"type": "a", "data": [' + b"0," * 110_000 + b"0]}"), 1007),
    "a message that is too big": (frame(1, b"a" * (websocket.MAX_SENT + 1)), 1009),
    "a message of too many parts": (frame(1, b"a" * 200_000, fin=False) + frame(0, b"a" * 200_000, fin=False), 1009),
    "a huge length": (struct.pack("!BBQ", 0x81, 0xFF, 2**62) + MASK + b"a" * 300_000, 1009),
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    "zeros": (b"\0" * 100, 1002),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_bad_frames_end_the_socket_with_their_code(
    virtual: World, autojump_clock: trio.abc.Clock, name: str
) -> None:
    device = await virtual.device()
    data, code = BAD[name]
    async with pushed(virtual, device) as client:
        await client.raw(data)
        with trio.fail_after(60):
            assert (await client.closed()).code == code
    assert reading.arriving.used == 0
    async with pushed(virtual, device) as client:  # the plane serves on
        await issue(virtual, device)
        await client.page()


async def test_bad_bytes_before_the_hello_end_the_socket(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    for text in ('{"type": "updates.ack"}', '{"type": "unknown"}', '{"type": "session.token"}'):
        async with memory_client(virtual.app, device.token) as client:
            await client.upgrade()
            await client.text(text)
            assert (await client.closed()).code == 1002


@pytest.mark.parametrize(
    "data",
    [
        None, [], "text", {"cursor": 5, "limit": 5}, {"cursor": "1-0", "limit": 0}, {"cursor": None, "limit": 101},
        {"limit": True}, {"limit": "5"}, {"cursor": "a" * 1025},
    ],
)  # fmt: skip
async def test_an_invalid_hello_gets_an_error(virtual: World, autojump_clock: trio.abc.Clock, data: object) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        await client.send("lifecycle.hello", data)
        assert (await client.expect("lifecycle.error"))["data"]["status"] == 400
        await client.hello()


async def test_hellos_count_as_polls(build: Callable[..., World], autojump_clock: trio.abc.Clock) -> None:
    world = build(virtual=True, poll_rate=1.0, poll_burst=3)
    device = await world.device()
    async with pushed(world, device) as client:
        await client.hello()
        await client.hello()
        await client.send("lifecycle.hello", {"cursor": None, "limit": 5})
        assert (await client.expect("lifecycle.error"))["data"]["status"] == 429


async def test_unknown_messages_are_ignored(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.send("something.new", {"a": 1}, "x")
        await client.send("ask.answer", {"answer": {}}, "12")
        await client.send("lifecycle.hello_ack", {})
        await issue(virtual, device)
        await client.page()


async def test_messages_in_fragments_with_control_frames_between_are_whole(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        text = json.dumps(
            {"type": "lifecycle.hello", "data": {"cursor": None, "limit": 5}, "x": "äöü€🙂"}, ensure_ascii=False
        )
        parts = [text.encode()[number : number + 3] for number in range(0, len(text.encode()), 3)]
        for number, part in enumerate(parts):
            await client.raw(frame(0 if number else 1, part, fin=number == len(parts) - 1))
            await client.raw(frame(9, b"ping"))
        await client.expect("lifecycle.hello_ack")


async def test_bytes_of_a_message_that_look_like_a_ping_are_its_own(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    """An empty ping has a shorter way, but only between two frames."""
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        data = frame(9, b"\x89\x80\0\0\0\0")
        await client.raw(data[:6])
        await trio.sleep(1)
        await client.raw(b"\x89\x80\1\2\3\4")  # the payload
        await trio.sleep(1)
        (pong,) = [event for event in await _events(client, 1) if isinstance(event, Pong)]
        assert len(pong.payload) == 6
        await client.raw(frame(9))
        (pong,) = [event for event in await _events(client, 1) if isinstance(event, Pong)]
        assert pong.payload == b""


async def _events(client: PushClient, seconds: float) -> list[Any]:
    found: list[Any] = []
    with trio.move_on_after(seconds):
        while True:
            client.frames.receive_data(await client.stream.receive_some())
            found += client.frames.events()
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_bytes_may_arrive_in_any_pieces(virtual: World, autojump_clock: trio.abc.Clock, size: int) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        data = frame(1, b'{"type": "lifecycle.hello", "data": {"cursor": null, "limit": 5}}') + frame(9, b"a")
        for start in range(0, len(data), size):
            await client.raw(data[start : start + size])
            await trio.sleep(0.001)
        await client.expect("lifecycle.hello_ack")


async def test_frames_right_behind_the_handshake_are_read(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    """A client must not send them before the answer, but a proxy may deliver both together."""
    device = await virtual.device()

    class Together:
        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.receive_some = inner.receive_some

        async def send_all(self, data: bytes) -> None:
            await self.inner.send_all(data + frame(1, b'{"type": "lifecycle.hello", "data": {"limit": 5}}'))

    async with memory_client(virtual.app, device.token) as client:
        client.stream = Together(client.stream)
        assert await client.upgrade() == 101
        await client.expect("lifecycle.hello_ack")


@pytest.mark.parametrize("opcode", [9, 10, 1], ids=["pings", "pongs", "messages"])
async def test_a_flood_of_frames_ends_the_socket(virtual: World, autojump_clock: trio.abc.Clock, opcode: int) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.raw(frame(opcode, b'{"type": "a"}') * 250)
        assert await client.closed() == Closed(1008, "too many frames")


async def test_a_flood_of_empty_fragments_ends_the_socket(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.raw(frame(1, b"", fin=False) + frame(0, b"", fin=False) * 500)
        assert (await client.closed()).code == 1008


async def test_fifty_frames_per_second_are_allowed(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        for _ in range(1000):
            await client.raw(frame(10))
            await trio.sleep(0.021)
        await issue(virtual, device)
        await client.page()


async def test_a_message_that_does_not_end_ends_the_socket(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.raw(frame(1, b'{"type": ', fin=False))
        for _ in range(20):
            await trio.sleep(1)
            try:
                await client.raw(frame(0, b" ", fin=False))
            except trio.BrokenResourceError:
                break
        assert await client.closed() == Closed(1008, "the message is not complete in time")
        assert 15 <= trio.current_time() <= 25
    assert reading.arriving.used == 0


async def test_a_connection_cut_within_a_message_leaves_no_memory(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.raw(frame(1, b"a" * 100_000, fin=False))
        await trio.sleep(1)
        assert reading.arriving.used == 100_000
    assert reading.arriving.used == 0


async def test_too_much_that_arrives_ends_with_1013(
    virtual: World, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ARRIVING", 50_000)
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.raw(frame(1, b"a" * 100_000, fin=False))
        end = await client.closed()
        assert (end.code, end.retry_after) == (1013, 5.0)
    assert reading.arriving.used == 0


async def test_an_agent_that_does_not_read_is_closed(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    """Nothing is queued for it but the page on its way."""
    device = await virtual.device()
    for number in range(60):
        await issue(virtual, device, f"{number}.example.com")
    async with memory_client(virtual.app, device.token, capacity=2000) as client:
        await client.upgrade()
        await client.send("lifecycle.hello", {"cursor": None, "limit": 100})
        await trio.sleep(connection._SEND_SECONDS + 1)
        assert virtual.plane.push.count() == 0
        assert virtual.plane.counters.push_closes == {"1006": 1}


async def test_an_agent_that_only_sends_pings_is_closed(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token, capacity=400) as client:
        await client.upgrade()
        await client.hello()
        for _ in range(100):
            await client.raw(frame(9, b"a" * 100))
            await trio.sleep(0.05)
        await trio.sleep(connection._SEND_SECONDS)
        assert virtual.plane.push.count() == 0


@pytest.mark.parametrize("seed", range(8))
async def test_no_bytes_do_more_than_end_the_socket(virtual: World, autojump_clock: trio.abc.Clock, seed: int) -> None:
    chance = random.Random(seed)
    device = await virtual.device()
    for _ in range(10):
        async with pushed(virtual, device) as client:
            for _ in range(chance.randint(1, 20)):
                await _mischief(client, chance)
            with trio.move_on_after(200):
                while not isinstance(await client.receive(), Closed):
                    pass
    async with pushed(virtual, device) as client:
        await issue(virtual, device)
        await client.page()
    assert reading.arriving.used == 0


async def _mischief(client: PushClient, chance: random.Random) -> None:
    texts = [
        '{"type": "updates.ack", "id": "1-0"}', '{"type": "lifecycle.hello", "data": {"limit": 3}}', "{}", "[",
        '{"type": "updates.outcomes", "id": "1", "data": {"schema": "certctrl.device.notify.v1", "events": [{}]}}',
        '{"type": "session.token", "data": {"access_token": "x"}}', '{"type": "ask.answer", "id": "1", "data": 5}',
    ]  # fmt: skip
    try:
        match chance.randrange(5):
            case 0:
                await client.raw(chance.randbytes(chance.randint(1, 300)))
            case 1 | 2:
                await client.event(TextMessage(chance.choice(texts)))
            case 3:
                payload = chance.randbytes(chance.randint(0, 200))
                await client.raw(frame(chance.randrange(16), payload, fin=chance.random() < 0.7))
            case _:
                await client.event(BytesMessage(b"a"))
    except trio.BrokenResourceError:
        pass
