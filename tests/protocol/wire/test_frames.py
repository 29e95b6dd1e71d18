"""The short way for frames that are whole text messages, beside the library."""

from __future__ import annotations

import random

import pytest
from frames import BINARY, MORE, PING, TEXT, close, frame
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from certctrl.protocol.wire.frames import Boundary, text_frame, text_of

TEXTS = ("", "x", "gr\u00fc\u00df dich", "a" * 125, "a" * 126, "\u20ac" * 400, "a" * 65_535, "a" * 65_536, "a" * 70_000)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(len(text)))
def test_a_message_is_the_frame_of_the_library(text: str) -> None:
    data = text_frame(text)
    assert data == bytes(Connection(ConnectionType.SERVER).send(TextMessage(text)))
    assert text_of(data) == (text if len(text.encode()) < 65_536 else None)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x81", b"\x81\x7e", b"\x81\x7e\0", frame(TEXT, b"abc")[:-1], frame(TEXT, b"abc") + b"d", frame(TEXT, b"\xff"),
        frame(TEXT, b"\xed\xa0\x80"), frame(TEXT, b"x", masked=True), frame(TEXT, b"x", last=False), frame(MORE, b"x"),
        frame(BINARY, b"x"), frame(PING), close(1000), frame(TEXT, b"x", reserved=0x40), b"\x81\x7e\0\x03abc",
        b"\x81\x7f" + (3).to_bytes(8, "big") + b"abc", frame(TEXT, b"a" * 200)[:-1], frame(TEXT, b"a" * 200) + b"\x89",
    ],
)  # fmt: skip
def test_all_other_bytes_are_for_the_library(data: bytes) -> None:
    assert text_of(data) is None


@pytest.mark.parametrize("masked", [False, True])
def test_boundaries_of_frames_are_known_however_bytes_arrive(masked: bool) -> None:
    chance = random.Random(5)
    for _ in range(300):
        sizes = [chance.choice((0, 1, 125, 126, 70_000)) for _ in range(chance.randint(1, 5))]
        whole = [frame(chance.choice((TEXT, PING)), b"a" * size, masked=masked) for size in sizes]
        ends, data = {0}, b"".join(whole)
        for one in whole:
            ends.add(max(ends) + len(one))
        boundary, at = Boundary(masked=masked), 0
        while at < len(data):
            size = chance.choice((1, 2, 3, 6, 100, 16_384))
            boundary.feed(data[at : at + size])
            at = min(len(data), at + size)
            assert boundary.is_at_end is (at in ends)
