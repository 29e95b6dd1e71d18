"""Start TLS on a plain connection: SMTP (RFC 3207), IMAP (RFC 9051), PostgreSQL."""

from __future__ import annotations

from typing import assert_never

import trio

from certctrl.errors import ProbeError, ProbeFault
from certctrl.model.plan import StartTls
from certctrl.text import one_line

MAX_LINE_BYTES = 2000
MAX_LINES = 100
_POSTGRES_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


async def start_tls(stream: trio.SocketStream, kind: StartTls) -> None:
    """Request TLS from the server. Raises ProbeError if it does not offer or refuses it.

    Reads byte by byte, so that no TLS bytes are taken from the stream.
    """
    match kind:
        case StartTls.SMTP:
            await _smtp(stream)
        case StartTls.IMAP:
            await _imap(stream)
        case StartTls.POSTGRES:
            await stream.send_all(_POSTGRES_REQUEST)
            if (answer := await stream.receive_some(1)) != b"S":
                raise _refusal(f"the PostgreSQL server refuses TLS (answered {one_line(repr(answer))})")
        case _:
            assert_never(kind)


async def _smtp(stream: trio.SocketStream) -> None:
    await _smtp_reply(stream, "220")
    await stream.send_all(b"EHLO localhost\r\n")
    offered = await _smtp_reply(stream, "250")
    if not any(line[4:].strip().upper() == "STARTTLS" for line in offered):
        raise _refusal("the SMTP server does not offer STARTTLS")
    await stream.send_all(b"STARTTLS\r\n")
    await _smtp_reply(stream, "220")


async def _smtp_reply(stream: trio.SocketStream, code: str) -> list[str]:
    lines = []
    for _ in range(MAX_LINES):
        line = await _line(stream)
        lines.append(line)
        if line[3:4] != "-":
            if not line.startswith(code):
                raise _refusal(f"the SMTP server says {one_line(line)}")
            return lines
    raise _refusal("the SMTP server's reply is too long")


async def _imap(stream: trio.SocketStream) -> None:
    greeting = await _line(stream)
    if not greeting.upper().startswith("* OK"):
        raise _refusal(f"the IMAP server says {one_line(greeting)}")
    await stream.send_all(b"c1 STARTTLS\r\n")
    for _ in range(MAX_LINES):
        line = await _line(stream)
        if not line.startswith("* "):
            if line.upper().startswith("C1 OK"):
                return
            raise _refusal(f"the IMAP server refuses STARTTLS: {one_line(line)}")
    raise _refusal("the IMAP server's reply is too long")


async def _line(stream: trio.SocketStream) -> str:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = await stream.receive_some(1)
        if not byte or len(line) > MAX_LINE_BYTES:
            raise _refusal("the server closed the connection" if not byte else "the server sent an endless line")
        line += byte
    return line.decode("latin-1").rstrip("\r\n")


def _refusal(what: str) -> ProbeError:
    return ProbeError(what, fault=ProbeFault.NO_STARTTLS)
