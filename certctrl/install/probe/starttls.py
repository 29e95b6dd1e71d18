"""Start TLS on a plain connection: mail, FTP, LDAP, XMPP, MySQL, PostgreSQL."""

from __future__ import annotations

import re
from typing import assert_never

import trio

from certctrl.errors import ProbeError, ProbeFault
from certctrl.model.plan import StartTls
from certctrl.text import one_line

MAX_LINE_BYTES = 2000
MAX_LINES = 100
MAX_MESSAGE_BYTES = 65_536
_SMTP_SAYS, _FTP_SAYS = "the SMTP server says", "the FTP server says"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._:-]*", re.ASCII)
_MYSQL_SSL = 0x0800
_MYSQL_CAPABILITIES = _MYSQL_SSL | 0x0200 | 0x8000  # protocol 4.1, secure connection
_LDAP_STARTTLS = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x16" + b"1.3.6.1.4.1.1466.20037"
_POSTGRES_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


async def start_tls(stream: trio.SocketStream, kind: StartTls, name: str = "") -> None:
    """Request TLS from the server. Raises ProbeError if it does not offer or refuses it.

    ``name``: the server's name, which XMPP asks for. Reads byte by byte, so that no TLS bytes are taken from the
    stream.
    """
    match kind:
        case StartTls.SMTP:
            await _smtp(stream)
        case StartTls.IMAP:
            await _imap(stream)
        case StartTls.POP3:
            await _pop3(stream)
        case StartTls.FTP:
            await _ftp(stream)
        case StartTls.LDAP:
            await _ldap(stream)
        case StartTls.XMPP:
            await _xmpp(stream, name)
        case StartTls.MYSQL:
            await _mysql(stream)
        case StartTls.POSTGRES:
            await stream.send_all(_POSTGRES_REQUEST)
            if (answer := await stream.receive_some(1)) != b"S":
                raise _refusal(f"the PostgreSQL server refuses TLS (answered {one_line(repr(answer))})")
        case _:
            assert_never(kind)


async def _smtp(stream: trio.SocketStream) -> None:
    """RFC 3207."""
    await _reply(stream, _SMTP_SAYS, "220")
    await stream.send_all(b"EHLO localhost\r\n")
    offered = await _reply(stream, _SMTP_SAYS, "250")
    if not any(line[4:].strip().upper() == "STARTTLS" for line in offered):
        raise _refusal("the SMTP server does not offer STARTTLS")
    await stream.send_all(b"STARTTLS\r\n")
    await _reply(stream, _SMTP_SAYS, "220")


async def _ftp(stream: trio.SocketStream) -> None:
    """RFC 4217."""
    await _reply(stream, _FTP_SAYS, "220")
    await stream.send_all(b"AUTH TLS\r\n")
    await _reply(stream, _FTP_SAYS, "234")


async def _reply(stream: trio.SocketStream, says: str, code: str) -> list[str]:
    """Return the lines of one reply of SMTP or FTP: the last one has no hyphen after its code.

    Between the lines with a code, those of FTP may have none.
    """
    lines = []
    for _ in range(MAX_LINES):
        line = await _line(stream)
        lines.append(line)
        if line[3:4] != "-" and (says != _FTP_SAYS or line[:3].isdecimal()):
            if not line.startswith(code):
                raise _refusal(f"{says} {one_line(line)}")
            return lines
    raise _refusal(f"{says} too much: its reply is too long")


async def _pop3(stream: trio.SocketStream) -> None:
    """RFC 2595."""
    for request in (b"", b"STLS\r\n"):
        await stream.send_all(request)
        if not (line := await _line(stream)).startswith("+OK"):
            raise _refusal(f"the POP3 server says {one_line(line)}")


async def _ldap(stream: trio.SocketStream) -> None:
    """RFC 4511, section 4.14: an extended request; the answer has the result code first."""
    await stream.send_all(_LDAP_STARTTLS)
    body = await _ber(stream)
    if body[:3] != b"\x02\x01\x01" or body[3:4] != b"\x78":
        raise _refusal("the LDAP server's answer is not an extended response")
    start = 5 if body[4] < 0x80 else 5 + (body[4] & 0x7F)
    if body[start : start + 2] != b"\x0a\x01" or len(body) < start + 3:
        raise _refusal("the LDAP server's answer has no result code")
    if code := body[start + 2]:
        raise _refusal(f"the LDAP server refuses StartTLS (result code {code})")


async def _ber(stream: trio.SocketStream) -> bytes:
    """Read one BER sequence and return its contents."""
    head = await _exactly(stream, 2)
    size = head[1]
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(await _exactly(stream, count), "big") if 0 < count <= 4 else MAX_MESSAGE_BYTES + 1
    if head[0] != 0x30 or not 8 <= size <= MAX_MESSAGE_BYTES:
        raise _refusal("the LDAP server's answer is not an LDAP message")
    return await _exactly(stream, size)


async def _xmpp(stream: trio.SocketStream, name: str) -> None:
    """RFC 6120, section 5."""
    to = name if _PLAIN_NAME.fullmatch(name) else ""
    opening = (
        f"<?xml version='1.0'?><stream:stream to='{to}' version='1.0' xmlns='jabber:client' "
        "xmlns:stream='http://etherx.jabber.org/streams'>"
    )
    await stream.send_all(opening.encode())
    features = await _until(stream, b"</stream:features>", b"<stream:features/>", b"</stream:stream>")
    if b"<starttls" not in features:
        raise _refusal("the XMPP server does not offer STARTTLS")
    await stream.send_all(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    answer = await _until(stream, b">")
    if not answer.lstrip().startswith(b"<proceed"):
        raise _refusal(f"the XMPP server says {one_line(answer.decode('latin-1'))}")
    if not answer.endswith(b"/>"):
        await _until(stream, b"</proceed>")


async def _until(stream: trio.SocketStream, *ends: bytes) -> bytes:
    """Read up to and including the first of these."""
    data = bytearray()
    while not data.endswith(ends):
        if len(data) > MAX_MESSAGE_BYTES:
            raise _refusal("the XMPP server's answer does not end")
        data += await _exactly(stream, 1)
    return bytes(data)


async def _mysql(stream: trio.SocketStream) -> None:
    """Protocol::SSLRequest of the MySQL client/server protocol, after the server's handshake."""
    head = await _exactly(stream, 4)
    greeting = await _exactly(stream, min(int.from_bytes(head[:3], "little"), MAX_MESSAGE_BYTES))
    if greeting[:1] == b"\xff":
        raise _refusal(f"the MySQL server says {one_line(greeting[3:].decode('latin-1'))}")
    version, _, rest = greeting[1:].partition(b"\0")
    flags = int.from_bytes(rest[13:15], "little")  # after connection id (4), salt (8) and a filler
    if greeting[:1] != b"\x0a" or len(rest) < 15:
        raise _refusal("the MySQL server's greeting is not of protocol 10")
    if not flags & _MYSQL_SSL:
        raise _refusal(f"the MySQL server {one_line(version.decode('latin-1'), 60)} does not offer TLS")
    request = _MYSQL_CAPABILITIES.to_bytes(4, "little") + (1 << 24).to_bytes(4, "little") + b"\x21" + bytes(23)
    await stream.send_all(len(request).to_bytes(3, "little") + bytes([head[3] + 1 & 0xFF]) + request)


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise _refusal("the server closed the connection")
        data += part
    return bytes(data)


async def _imap(stream: trio.SocketStream) -> None:
    """RFC 9051."""
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
