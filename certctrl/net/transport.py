"""HttpcoreHttp: HTTP/1.1 over the HTTP library's connections (``connections.py``).

The deadline of an exchange is a cancel scope: the library's own timeouts per phase do not help, because a body of one
byte per second never exceeds them. Exchanges wait at a semaphore that is as wide as ``max_connections``. The
connections are replaced after ten minutes (``pools.py``), because DNS records change, and when a CA file has changed.

httpx, the client above this library, is not used: it follows redirects and reads ``.netrc``, its URL, header objects and
nested streams took a tenth of a burst's time, and it takes 2 MiB of memory.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpcore
import trio

from certctrl import __version__
from certctrl.errors import BadAnswerError, TransportError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, is_loopback
from certctrl.model.origin import parse_origin, parse_proxy, proxy_login
from certctrl.net.connections import BROKEN, Connection, KeptConnections, Progress, RequestBody, close, connect_proxy
from certctrl.net.http import Http, json_bytes, target_of
from certctrl.net.pools import Pools
from certctrl.net.stream import Stream
from certctrl.net.tls import Trust, unverified_context
from certctrl.text import one_line

__all__ = ["Http", "HttpcoreHttp", "read_answer"]

HEADER_CAP = 32 * 1024  # bytes of all answer headers; the parser itself stops at 100 KiB
_READ_SIZE = 65_536
_REPEATABLE = ("GET", "HEAD")
_HEADERS = {"user-agent": f"cert-ctrl/{__version__}", "accept": "application/json", "accept-encoding": "identity"}

log = logging.getLogger("certctrl.Http")


class HttpcoreHttp:
    """Client for the configured origin; may be created outside Trio, but is used within one run."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        root: Path,
        wall_now: Callable[[], float] | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
        verified: bool = True,
    ) -> None:
        """Check URL, proxy, CA files and client certificate; raises ConfigError if one cannot be used.

        ``root``: the config directory; ``wall_now``: for messages about validity; ``backend``: the network, in tests;
        ``verified=False``: accept any server and present no certificate, to fetch what is verified in another way.
        """
        logging.getLogger("httpcore").setLevel(logging.WARNING)  # its DEBUG lines contain headers of answers
        application, settings = config.application, config.httpclient
        self.origin = parse_origin(application.server_url, allow_http_loopback=application.allow_http_loopback)
        proxy = parse_proxy(settings.proxy)
        if proxy is not None and is_loopback(self.origin.host):
            log.warning("The proxy %s is not used: %s is a loopback address", proxy.place, self.origin.host)
            proxy = None
        self._proxy = proxy.place if proxy else ""
        url = httpcore.URL(str(self.origin))
        self._url = partial(httpcore.URL, scheme=url.scheme, host=url.host, port=url.port)
        self._connect_seconds = settings.connect_timeout_seconds
        self._own_ca = bool(settings.ca_files)
        self._wall_now = wall_now
        self._slots = trio.Semaphore(settings.max_connections)
        is_tls = self.origin.scheme == "https"
        self._trust = Trust(settings, root) if is_tls and verified else None
        self._unverified = unverified_context() if is_tls and not verified else None
        self._context: ssl.SSLContext | None = None
        """The context of the newest pool."""
        self._connections = partial(
            KeptConnections,
            keepalive_seconds=max(settings.keepalive_seconds, 2 * application.poll_interval_ms / 1000 + 30),
            proxy=None if proxy is None else connect_proxy(str(proxy), proxy_login(settings.proxy)),
            backend=backend,
        )
        self._pools = Pools(self._pool, self._has_other_trust)

    @classmethod
    def for_agent(cls, config: AgentConfig, root: Path, wall_now: Callable[[], float] | None = None) -> HttpcoreHttp:
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
        progress = Progress()
        with trio.move_on_after(deadline):
            await self._take_slot()
            try:
                for last_try in (False, True):
                    progress = Progress()
                    request = self._build(method, target_of(path, query), headers, json)
                    try:
                        answer = await self._exchange(request, progress, cap)
                        break
                    except TransportError as error:
                        stale = not progress.is_new and error.maybe_sent and not isinstance(error, BadAnswerError)
                        if last_try or not stale or method not in _REPEATABLE:
                            raise
            finally:
                self._slots.release()
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

        handshake, progress = Handshake(subprotocol), Progress()
        request = self._build("GET", target_of(path), {**headers, **handshake.headers()}, None)
        progress.on_new(request)
        connection = self._connections(context=self._tls()).new(request.url.origin)
        opened: Stream | Answer | None = None
        try:
            with trio.move_on_after(deadline):
                response = await self._upgraded(connection, request, progress)
                if response.status == 101:
                    answered = _headers(response, self.origin.place)
                    handshake.check(answered, self.origin.place)
                    opened = WebSocket(_Upgraded(self, connection, response), answered, cap=cap)
                else:
                    opened = await self._read_refusal(response, progress, cap)
        finally:
            if opened is None or isinstance(opened, Answer):
                await close(connection)
        if opened is None:
            from certctrl.net import explain

            raise explain.deadline_error(deadline, self.origin.place, sent=progress.sent, proxy=self._proxy)
        return opened

    async def aclose(self) -> None:
        """Close every connection, even under running requests."""
        await self._pools.aclose()

    async def _take_slot(self) -> None:
        try:
            self._slots.acquire_nowait()  # without the pass through the event loop that `acquire` makes
        except trio.WouldBlock:
            await self._slots.acquire()

    async def _upgraded(
        self, connection: Connection, request: httpcore.Request, progress: Progress
    ) -> httpcore.Response:
        try:
            return await connection.handle_async_request(request)
        except (*BROKEN, httpcore.ProxyError) as error:
            raise self._explained(error, progress) from None

    async def _read_refusal(self, response: httpcore.Response, progress: Progress, cap: int) -> Answer:
        try:
            return await _read(response, cap, self.origin.place)
        except BROKEN as error:
            raise self._explained(error, progress) from None

    def _broke(self, error: Exception) -> TransportError:
        """Return the error for an upgraded connection that broke."""
        progress = Progress()
        progress.sent = True
        return self._explained(error, progress)

    def _pool(self) -> KeptConnections:
        self._context = self._tls()
        return self._connections(context=self._context)

    def _tls(self) -> ssl.SSLContext | None:
        """Return the context for new connections; None: without TLS."""
        return self._unverified if self._trust is None else self._trust.context()

    def _has_other_trust(self) -> bool:
        return self._trust is not None and self._trust.context() is not self._context

    def _build(self, method: str, target: str, headers: Mapping[str, str] | None, json: Any) -> httpcore.Request:
        content = None if json is None else json_bytes(json)
        named = {"host": self.origin.netloc} | _HEADERS | dict(headers or {})
        if content is not None:
            named |= {"content-type": "application/json", "content-length": str(len(content))}
        try:
            return httpcore.Request(
                method,
                self._url(target=target.encode("ascii")),
                headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in named.items()],
                content=None if content is None else RequestBody(content),
                extensions={"timeout": {"connect": self._connect_seconds}},
            )
        except UnicodeError:
            from certctrl.net import explain

            raise explain.unsendable() from None

    async def _exchange(self, request: httpcore.Request, progress: Progress, cap: int) -> Answer:
        """Send once and read the whole answer; the library's exceptions stop here.

        ``from None`` throughout: the library's messages may quote a header, which may be the token.
        """
        pool = await self._pools.lease()
        try:
            return await pool.transport.exchange(request, partial(_read, cap=cap, place=self.origin.place), progress)
        except (*BROKEN, httpcore.ProxyError) as error:
            pool.checked = -math.inf
            raise self._explained(error, progress) from None
        finally:
            await self._pools.release(pool)

    def _explained(self, error: Exception, progress: Progress) -> TransportError:
        from certctrl.net import explain

        place, proxy = self.origin.place, self._proxy
        match error:
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
        return found

    def _now(self) -> float | None:
        return self._wall_now() if self._wall_now is not None else None


class _Upgraded:
    """The bytes of an upgraded connection; the library's exceptions stop here."""

    def __init__(self, owner: HttpcoreHttp, connection: Connection, response: httpcore.Response) -> None:
        self._owner = owner
        self._connection = connection
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
        await self._connection.aclose()


async def _read(response: httpcore.Response, cap: int, place: str) -> Answer:
    """Read the answer of the plane, which must not redirect."""
    if 300 <= response.status < 400 and response.status != 304:
        where = one_line(_headers(response, place).get("location", "nowhere"), ascii_only=True)
        raise BadAnswerError(
            f"{place} redirects to {where} ({response.status}); credentials are sent to server_url only",
            fix="set server_url to the URL of the plane itself",
        )
    return await read_answer(response, cap, place)


async def read_answer(response: httpcore.Response, cap: int, place: str) -> Answer:
    """Read an answer within its limits."""
    headers = _headers(response, place)
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise BadAnswerError(f"{place} sent a compressed answer that was not requested")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > cap:
        raise _too_long(cap, place)
    return Answer(status=response.status, headers=headers, body=await _body(response, cap, place))


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
