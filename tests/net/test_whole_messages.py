"""Whole text messages, which the agent reads without the library."""

from __future__ import annotations

import random
from typing import Any

import pytest
from frames import BINARY, CLOSE, MORE, PING, PONG, TEXT, close, frame, unmasked

from certctrl.errors import BadAnswerError
from certctrl.net import websocket
from certctrl.net.stream import Closed
from certctrl.net.websocket import WebSocket

CAP = 1 << 20


class Pieces:
    """A connection that has received pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)
        self.written = b""

    async def read(self) -> bytes:
        return next(self._pieces, b"")

    async def write(self, data: bytes) -> None:
        self.written += data

    async def aclose(self) -> None:
        pass


async def _all_of(pieces: list[bytes]) -> list[Any]:
    """Return what a socket receives until its end, and which frames it sends."""
    connection = Pieces(pieces)
    socket, found = WebSocket(connection, {}, cap=1000), []
    try:
        while not isinstance(received := await socket.receive(), Closed):
            found.append(received)
        found.append(received)
    except BadAnswerError as error:
        found.append(str(error))
    return [*found, [opcode for opcode, _ in unmasked(connection.written)]]


async def test_whole_messages_are_received_as_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random frames, valid or not, in random pieces, with and without the short way."""
    chance, short = random.Random(7), 0
    usual = [frame(TEXT, b"a" * size) for size in (0, 1, 125, 126, 1000)] + [frame(PING, b"x"), frame(PONG)]
    begin, end = frame(TEXT, b"begin", last=False), frame(MORE, b"end")
    rare = [
        begin, end, frame(TEXT, b"", last=False), frame(MORE, b"", last=False), frame(TEXT, b"a" * 1001),
        frame(TEXT, b"\xff"), frame(TEXT, b"x", masked=True), frame(BINARY, b"x"), frame(TEXT, b"x", reserved=0x40), close(4401),
        frame(TEXT, b"x", size=3),
    ]  # fmt: skip
    for _ in range(500):
        frames = [chance.choice(rare if chance.random() < 0.2 else usual) for _ in range(chance.randint(1, 8))]
        pieces = []
        for one in frames:
            if chance.random() < 0.2:
                cut = chance.randint(0, len(one))
                pieces += [one[:cut], one[cut:]]
            elif pieces and chance.random() < 0.2:
                pieces[-1] += one
            else:
                pieces.append(one)
        pieces = list(filter(None, pieces))
        found = await _all_of(pieces)
        with monkeypatch.context() as patch:
            patch.setattr(websocket, "text_of", lambda _: None)
            assert await _all_of(pieces) == found, pieces
        short += sum(isinstance(one, str) for one in found)
    assert short > 500


async def test_whole_messages_count_as_frames() -> None:
    found = await _all_of([frame(TEXT, b"x")] * (websocket.MAX_FRAMES + 5))
    assert "frames in" in found[-2]
    assert found[-1] == [CLOSE]
