"""Frames of a WebSocket as bytes, valid or not."""

from __future__ import annotations

import base64
import hashlib
import struct

TEXT, BINARY, CLOSE, PING, PONG, MORE = 1, 2, 8, 9, 10, 0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(
    opcode: int, payload: bytes = b"", *, last: bool = True, masked: bool = False, reserved: int = 0, size: int = -1
) -> bytes:
    """Return one frame; ``size`` is the length in its head, if another than the payload's."""
    length = len(payload) if size < 0 else size
    mask = 0x80 if masked else 0
    head = bytes([(0x80 if last else 0) | reserved | opcode])
    if length < 126:
        head += bytes([mask | length])
    elif length < 65_536:
        head += bytes([mask | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", length)
    return head + (b"\0\0\0\0" if masked else b"") + payload


def close(code: int, reason: str = "") -> bytes:
    """Return a close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


def upgraded(
    key: str, *, accept: str = "", extra: str = "", protocol: str = "certctrl.v1", upgrade: str = "websocket"
) -> bytes:
    """Return the 101 answer to a key."""
    accept = accept or base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
    lines = f"HTTP/1.1 101 Switching\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    lines += f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return f"{lines}{extra}\r\n".encode()


def unmasked(data: bytes) -> list[tuple[int, bytes]]:
    """Return opcode and payload of the whole frames of a client, each shorter than 64 KiB."""
    found = []
    while len(data) >= 6:
        length, at = data[1] & 127, 2
        if length == 126:
            length, at = struct.unpack("!H", data[2:4])[0], 4
        mask, body = data[at : at + 4], data[at + 4 : at + 4 + length]
        found.append((data[0] & 15, bytes(byte ^ mask[n % 4] for n, byte in enumerate(body))))
        data = data[at + 4 + length :]
    return found
