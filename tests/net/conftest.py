"""A scripted HTTPS server on loopback that counts requests and connections."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.net.transport import HttpcoreHttp

WALL = 1_790_000_000.0


@attrs.frozen
class Seen:
    """One received request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    """Number of its TCP connection, from 1."""


def reply_bytes(
    body: bytes | Any = b"", *, status: int = 200, headers: str = "", kind: str = "application/json"
) -> bytes:
    """Return a complete HTTP answer; a value other than bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Word\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


@pytest.fixture
def reply() -> Callable[..., bytes]:
    """Return `reply_bytes`."""
    return reply_bytes


@attrs.define(eq=False)
class Site:
    """A server: ``script`` gets request and stream, and returns bytes to send or None to close the connection."""

    script: Callable[[Seen, trio.abc.Stream], Awaitable[bytes | None] | bytes | None]
    seen: list[Seen] = attrs.field(factory=list)
    connections: int = 0
    open_now: int = 0
    url: str = ""

    async def handle(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        self.open_now += 1
        number = self.connections
        try:
            while (request := await read_request(stream, number)) is not None:
                self.seen.append(request)
                answer = self.script(request, stream)
                if answer is not None and not isinstance(answer, bytes):
                    answer = await answer
                if answer is None:
                    return
                await stream.send_all(answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, ConnectionError):
            pass
        finally:
            self.open_now -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.aclose_forcefully(stream)


async def read_request(stream: trio.abc.Stream, connection: int) -> Seen | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await stream.receive_some(65536)
    method, target, _ = first.split(" ")
    return Seen(method, target, headers, body, connection)


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


def server_context(cert: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    return context


Start = Callable[..., Awaitable[Site]]


@pytest.fixture
async def start(nursery: trio.Nursery, ca: trustme.CA) -> Start:
    """Return ``await start(script, context=…, plain=…, name=…)``, which runs a Site."""
    default = server_context(ca.issue_cert("127.0.0.1", "localhost"))

    async def begin(
        script: Callable[..., Any] = lambda seen, stream: reply_bytes({"data": 1}),
        *,
        context: ssl.SSLContext | None = None,
        plain: bool = False,
        name: str = "127.0.0.1",
    ) -> Site:
        site = Site(script)

        async def serve(stream: trio.SocketStream) -> None:
            if plain:
                await site.handle(stream)
                return
            wrapped = trio.SSLStream(stream, context or default, server_side=True, https_compatible=True)
            try:
                await wrapped.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.aclose_forcefully(wrapped)
                return
            await site.handle(wrapped)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        site.url = f"{'http' if plain else 'https'}://{name}:{port}"
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        return site

    return begin


Connect = Callable[..., HttpcoreHttp]


@pytest.fixture
async def connect(ca_file: Path, tmp_path: Path) -> AsyncIterator[Connect]:
    """Return ``connect(url, **HttpClientConfig fields)``: an HttpcoreHttp that trusts the test CA and is closed at the end."""
    made: list[HttpcoreHttp] = []

    def make(
        url: str,
        *,
        allow_http_loopback: bool = False,
        poll_interval_ms: int = 5000,
        backend: Any = None,
        **options: Any,
    ) -> HttpcoreHttp:
        options.setdefault("ca_files", (str(ca_file),))
        config = AgentConfig(
            application=ApplicationConfig(
                server_url=url, allow_http_loopback=allow_http_loopback, poll_interval_ms=poll_interval_ms
            ),
            httpclient=HttpClientConfig(**options),
        )
        http = HttpcoreHttp(config, root=tmp_path, wall_now=lambda: WALL, backend=backend)
        made.append(http)
        return http

    yield make
    for http in made:
        await http.aclose()
