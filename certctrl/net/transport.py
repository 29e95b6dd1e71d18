"""HttpxHttp: HTTP/1.1 over the HTTP library, which only this module and the control plane's ACME client import.

Three rules need their reasons:

* The deadline of an exchange is a cancel scope, and a cancelled request can leave a connection in the library's pool
  that is neither idle nor closed, forever. ``ReclaimTransport`` removes such orphans; a test fails if the private
  fields that it uses change. The library's own timeouts per phase do not help: a body of one byte per second never
  exceeds them.
* Requests wait at a semaphore that is as wide as the pool. So the pool never runs out of connections, and its
  ``PoolTimeout`` always means a leak: the pool is retired and the request uses a new one.
* A pool is also retired after ten minutes (``pools.py``), because DNS records change, and when a CA file has changed.

Only the library's transport is used, not its client, which follows redirects and reads ``.netrc``. Requests go
directly to the pool inside it: parsing the URL, header objects and nested streams took a tenth of a burst's time.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpcore
import httpx
import trio

from certctrl import __version__
from certctrl.errors import BadAnswerError, TransportError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, is_loopback
from certctrl.model.origin import parse_origin, parse_proxy
from certctrl.net.http import Http, json_bytes, target_of
from certctrl.net.pools import Pools
from certctrl.net.stream import Stream
from certctrl.net.tls import Trust
from certctrl.text import one_line

__all__ = ["BROKEN", "Http", "HttpxHttp", "ReclaimTransport", "read_answer"]

HEADER_CAP = 32 * 1024  # bytes of all answer headers; the parser itself stops at 100 KiB
_POOL_TIMEOUT = 5.0
_READ_SIZE = 65_536
_REPEATABLE = ("GET", "HEAD")
_HEADERS = {"user-agent": f"cert-ctrl/{__version__}", "accept": "application/json", "accept-encoding": "identity"}
BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)
"""The library's exceptions for a connection that could not be opened, or that broke."""

log = logging.getLogger("certctrl.Http")


class HttpxHttp:
    """Client for the configured origin; may be created outside Trio, but is used within one run."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        root: Path,
        wall_now: Callable[[], float] | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """Check URL, proxy, CA files and client certificate; raises ConfigError if one cannot be used.

        ``root``: the config directory; ``wall_now``: for messages about validity; ``backend``: the network, in tests.
        """
        logging.getLogger("httpcore").setLevel(logging.WARNING)  # its DEBUG lines contain headers of answers
        application, settings = config.application, config.httpclient
        self.origin = parse_origin(application.server_url, allow_http_loopback=application.allow_http_loopback)
        proxy = parse_proxy(settings.proxy)
        if proxy is not None and is_loopback(self.origin.host):
            log.warning("The proxy %s is not used: %s is a loopback address", proxy.place, self.origin.host)
            proxy = None
        self._proxy = proxy.place if proxy else ""
        url = httpx.URL(str(self.origin))
        self._host = url.netloc.decode("ascii")
        self._url = partial(httpcore.URL, scheme=url.raw_scheme, host=url.raw_host, port=url.port)
        self._connect_seconds = settings.connect_timeout_seconds
        self._own_ca = bool(settings.ca_files)
        self._wall_now = wall_now
        self._slots = trio.Semaphore(settings.max_connections)
        self._trust = Trust(settings, root) if self.origin.scheme == "https" else None
        self._context: ssl.SSLContext | None = None
        """The context of the newest pool."""
        self._options: dict[str, Any] = {
            "backend": backend,
            "proxy": settings.proxy if proxy else None,
            "limits": httpx.Limits(
                max_connections=settings.max_connections,
                max_keepalive_connections=settings.max_connections,
                keepalive_expiry=max(settings.keepalive_seconds, 2 * application.poll_interval_ms / 1000 + 30),
            ),
        }
        self._pools = Pools(self._transport, self._has_other_trust)

    @classmethod
    def for_agent(cls, config: AgentConfig, root: Path, wall_now: Callable[[], float] | None = None) -> HttpxHttp:
        """Return the client for the agent in the config directory ``root``."""
        return cls(config, root=root, wall_now=wall_now)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        deadline: float,
        cap: int,
    ) -> Answer:
        """Return the answer of one exchange; see ``Http.request``."""
        answer: Answer | None = None
        progress = _Progress()
        with trio.move_on_after(deadline):
            async with self._slots:
                for last_try in (False, True):
                    progress = _Progress()
                    request = self._build(method, target_of(path, query), headers, json, progress)
                    try:
                        answer = await self._exchange(request, progress, cap)
                        break
                    except TransportError:
                        if last_try or not (progress.leaked or (progress.stale and method in _REPEATABLE)):
                            raise
        if answer is None:  # an answer that arrived with the deadline counts
            from certctrl.net import explain  # here and below: only failures need it

            raise explain.deadline_error(deadline, self.origin.place, sent=progress.sent, proxy=self._proxy)
        return answer

    async def open_stream(
        self, path: str, *, subprotocol: str, headers: Mapping[str, str], deadline: float, cap: int
    ) -> Stream | Answer:
        """Return an open WebSocket, or the answer that refuses it; see ``Http.open_stream``.

        It has a separate connection: the pools' are for exchanges, and are replaced every ten minutes.
        """
        from certctrl.net.websocket import Handshake, WebSocket  # here: only push mode needs it

        handshake, progress = Handshake(subprotocol), _Progress()
        request = self._build("GET", target_of(path), {**headers, **handshake.headers()}, None, progress)
        transport = ReclaimTransport(verify=self._trust.context() if self._trust else False, **self._options)
        opened: Stream | Answer | None = None
        try:
            with trio.move_on_after(deadline):
                response = await self._upgraded(transport, request, progress)
                if response.status == 101:
                    answered = _headers(response, self.origin.place)
                    handshake.check(answered, self.origin.place)
                    opened = WebSocket(_Upgraded(self, transport, response), answered, cap=cap)
                else:
                    opened = await self._read_refusal(response, progress, cap)
        finally:
            if opened is None or isinstance(opened, Answer):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await transport.aclose()
        if opened is None:
            from certctrl.net import explain

            raise explain.deadline_error(deadline, self.origin.place, sent=progress.sent, proxy=self._proxy)
        return opened

    async def aclose(self) -> None:
        """Close every connection, even under running requests."""
        await self._pools.aclose()

    async def _upgraded(
        self, transport: ReclaimTransport, request: httpcore.Request, progress: _Progress
    ) -> httpcore.Response:
        try:
            return await transport.exchange(request)
        except (*BROKEN, httpcore.ProxyError) as error:
            raise self._explained(error, progress) from None

    async def _read_refusal(self, response: httpcore.Response, progress: _Progress, cap: int) -> Answer:
        try:
            return await _read(response, cap, self.origin.place)
        except BROKEN as error:
            raise self._explained(error, progress) from None

    def _broke(self, error: Exception) -> TransportError:
        """Return the error for an upgraded connection that broke."""
        progress = _Progress()
        progress.sent = progress.connected = True
        return self._explained(error, progress)

    def _transport(self) -> ReclaimTransport:
        self._context = None if self._trust is None else self._trust.context()
        return ReclaimTransport(verify=self._context or False, **self._options)

    def _has_other_trust(self) -> bool:
        return self._trust is not None and self._trust.context() is not self._context

    def _build(
        self, method: str, target: str, headers: Mapping[str, str] | None, json: Any, progress: _Progress
    ) -> httpcore.Request:
        timeout = {"connect": self._connect_seconds, "read": None, "write": None, "pool": _POOL_TIMEOUT}
        content = None if json is None else json_bytes(json)
        named = {"host": self._host} | _HEADERS | dict(headers or {})
        if content is not None:
            named |= {"content-type": "application/json", "content-length": str(len(content))}
        try:
            return httpcore.Request(
                method,
                self._url(target=target.encode("ascii")),
                headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in named.items()],
                content=None if content is None else RequestBody(content),
                extensions={"timeout": timeout, "trace": progress.note},
            )
        except UnicodeError:
            from certctrl.net import explain

            raise explain.unsendable() from None

    async def _exchange(self, request: httpcore.Request, progress: _Progress, cap: int) -> Answer:
        """Send once and read the whole answer; the library's exceptions stop here.

        ``from None`` throughout: the library's messages may quote a header, which may be the token.
        """
        pool = await self._pools.lease()
        try:
            response = await pool.transport.exchange(request)
            return await _read(response, cap, self.origin.place)
        except (*BROKEN, httpcore.ProxyError) as error:
            if isinstance(error, httpcore.PoolTimeout):
                self._pools.retire(pool)
                log.warning("Replaced a stuck connection pool")
                progress.leaked = True
            raise self._explained(error, progress) from None
        finally:
            await self._pools.release(pool)

    def _explained(self, error: Exception, progress: _Progress) -> TransportError:
        from certctrl.net import explain

        place, proxy = self.origin.place, self._proxy
        match error:
            case httpcore.PoolTimeout():
                return explain.unsent(TransportError("no free connection", fix="restart the agent if this repeats"))
            case httpcore.LocalProtocolError():
                return explain.unsendable()
            case httpcore.ConnectTimeout():
                return explain.deadline_error(self._connect_seconds, place, sent=False, proxy=proxy)
            case httpcore.ProxyError():
                what = f"the proxy {proxy} refused to connect to {place}: {one_line(str(error), ascii_only=True)}"
                return explain.unsent(TransportError(what, fix="check proxy in httpclient_config.json"))
            case httpcore.ConnectError():
                return explain.connect_error(error, place, now=self._now(), own_ca=self._own_ca, proxy=proxy)
        plain, proxy = self.origin.scheme == "http", "" if progress.sent else proxy
        found = explain.exchange_error(error, place, now=self._now(), own_ca=self._own_ca, plain=plain, proxy=proxy)
        found.maybe_sent = progress.sent
        progress.stale = not (progress.connected or isinstance(found, BadAnswerError))
        return found

    def _now(self) -> float | None:
        return self._wall_now() if self._wall_now is not None else None


class RequestBody:
    """The body of a request, in one piece.

    The library's own is an async generator, which it abandons if the server answers or the request is cancelled before
    everything is sent.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> RequestBody:
        return RequestBody(self._content)  # an attempt that is repeated reads it again

    async def __anext__(self) -> bytes:
        content, self._content = self._content, b""
        if not content:
            raise StopAsyncIteration
        return content

    def __repr__(self) -> str:
        return f"RequestBody({len(self._content)} bytes)"


class ReclaimTransport(httpx.AsyncHTTPTransport):
    """The library's transport, except that a cancelled request removes its connection from the pool."""

    def __init__(self, *, backend: httpcore.AsyncNetworkBackend | None = None, **options: Any) -> None:
        super().__init__(http1=True, http2=False, trust_env=False, retries=0, **options)
        self._pool._network_backend = backend or _Backend()

    async def exchange(self, request: httpcore.Request) -> httpcore.Response:
        """Send one request; after an exception, close the connection that it left in the pool."""
        try:
            return await self._pool.handle_async_request(request)
        except BaseException:
            await self._reclaim()
            raise

    async def _reclaim(self) -> None:
        pool = self._pool
        owned = {id(request.connection) for request in pool._requests}
        orphans = [
            connection
            for connection in pool._connections
            if id(connection) not in owned and not connection.is_idle() and not connection.is_closed()
        ]
        for connection in orphans:
            pool._connections.remove(connection)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            for connection in orphans:
                await connection.aclose()


class _Backend(httpcore.TrioBackend):
    """The library's network backend, except that a cancelled TLS handshake closes its socket."""

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        stream = await super().connect_tcp(*args, **kwargs)
        handshake = stream.start_tls

        async def start_tls(*args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
            try:
                return await handshake(*args, **kwargs)
            except BaseException:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await stream.aclose()
                raise

        stream.start_tls = start_tls  # type: ignore[method-assign]
        return stream


class _Upgraded:
    """The bytes of an upgraded connection; the library's exceptions stop here."""

    def __init__(self, owner: HttpxHttp, transport: ReclaimTransport, response: httpcore.Response) -> None:
        self._owner = owner
        self._transport = transport
        self._stream: httpcore.AsyncNetworkStream = response.extensions["network_stream"]

    async def read(self) -> bytes:
        try:
            return await self._stream.read(_READ_SIZE)
        except BROKEN as error:
            raise self._owner._broke(error) from None

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except BROKEN as error:
            raise self._owner._broke(error) from None

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Progress:
    """Progress of one attempt; ``note`` is the library's trace hook."""

    def __init__(self) -> None:
        self.connected = False
        self.sent = False
        self.stale = False
        self.leaked = False

    async def note(self, name: str, info: Mapping[str, Any]) -> None:
        if name == "connection.connect_tcp.started":
            self.connected = True
        elif name == "http11.send_request_headers.started":
            self.sent = info["request"].method != b"CONNECT"


async def _read(response: httpcore.Response, cap: int, place: str) -> Answer:
    """Read the answer of the plane, which must not redirect; closes the response in any case."""
    if 300 <= response.status < 400 and response.status != 304:
        try:
            where = one_line(_headers(response, place).get("location", "nowhere"), ascii_only=True)
            raise BadAnswerError(
                f"{place} redirects to {where} ({response.status}); credentials are sent to server_url only",
                fix="set server_url to the URL of the plane itself",
            )
        finally:
            await response.aclose()
    return await read_answer(response, cap, place)


async def read_answer(response: httpcore.Response, cap: int, place: str) -> Answer:
    """Read an answer within its limits; closes the response in any case."""
    try:
        headers = _headers(response, place)
        if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise BadAnswerError(f"{place} sent a compressed answer that was not requested")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > cap:
            raise _too_long(cap, place)
        return Answer(status=response.status, headers=headers, body=await _body(response, cap, place))
    finally:
        await response.aclose()


async def _body(response: httpcore.Response, cap: int, place: str) -> bytes:
    """Read the body; one over the limit is ended by closing its socket.

    Leaving the loop early would abandon a chain of async generators; without input, they finish.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in response.stream:  # type: ignore[union-attr]
            size += len(chunk)
            chunks.append(chunk)
            if size > cap:
                chunks.clear()
                await response.extensions["network_stream"].aclose()
    except BROKEN:
        if size <= cap:
            raise
    if size > cap:
        raise _too_long(cap, place)
    return b"".join(chunks)


def _headers(response: httpcore.Response, place: str) -> dict[str, str]:
    raw = response.headers
    if sum(len(name) + len(value) for name, value in raw) > HEADER_CAP:
        raise BadAnswerError(f"{place} sent more than {HEADER_CAP // 1024} KiB of headers")
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _too_long(cap: int, place: str) -> BadAnswerError:
    return BadAnswerError(f"{place} sent an answer longer than {cap // 1024} KiB")
