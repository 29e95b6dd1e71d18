"""server_date: the control plane's time, even if no certificate looks valid by this host's clock."""

from __future__ import annotations

import base64
import ssl

import trio

from certctrl.errors import ConfigError
from certctrl.model.config import is_loopback
from certctrl.model.origin import Origin, parse_origin, parse_proxy, proxy_login
from certctrl.protocol.wire.answer import http_date

SECONDS = 4.0
MAX_HEAD = 16 * 1024
"""Bytes of an answer's head."""
_FAILED = (OSError, ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError, ConfigError, ValueError)


async def server_date(url: str, proxy: str = "") -> float | None:
    """Return the time in the ``Date`` header of an answer of ``url``, in seconds since the epoch; None without one.

    The server's certificate is not verified, because a wrong clock makes every certificate look invalid. So the
    request contains no credentials, and the result is only a hint for the operator.
    """
    with trio.move_on_after(SECONDS):
        try:
            return await _date(parse_origin(url, allow_http_loopback=True), proxy)
        except _FAILED:
            return None
    return None


async def _date(origin: Origin, proxy: str) -> float | None:
    via = None if is_loopback(origin.host) else parse_proxy(proxy)
    first = via or origin
    stream: trio.abc.Stream = await trio.open_tcp_stream(first.host, first.port)
    try:
        if via is not None:
            await stream.send_all(_tunnel(origin, proxy))
            await _head(stream)
        if origin.scheme == "https":
            stream = trio.SSLStream(stream, _context(), server_hostname=origin.host, https_compatible=True)
        await stream.send_all(f"GET /health HTTP/1.1\r\nHost: {origin.place}\r\nConnection: close\r\n\r\n".encode())
        lines = (await _head(stream)).decode("latin-1").split("\r\n")
    finally:
        await trio.aclose_forcefully(stream)
    dates = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("date:")]
    return http_date(dates[0]) if dates else None


def _tunnel(origin: Origin, proxy: str) -> bytes:
    lines = [f"CONNECT {origin.place} HTTP/1.1", f"Host: {origin.place}"]
    if (login := proxy_login(proxy)) is not None:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(':'.join(login).encode()).decode('ascii')}")
    return "\r\n".join([*lines, "", ""]).encode()


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _head(stream: trio.abc.Stream) -> bytes:
    """Return the head of an answer, perhaps incomplete."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
        data = await stream.receive_some(MAX_HEAD)
        if not data:
            break
        head += data
    return head.partition(b"\r\n\r\n")[0]
