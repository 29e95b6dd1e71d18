"""Requests to one CA: bounded in time and size, without redirects, and only to hosts that the operator chose.

Bodies are sent by our own iterator: the library would make a generator, which is abandoned if the request is cancelled
or answered early, and which Trio then reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import attrs
import httpcore
import httpx
import trio

from certctrl import __version__, lean
from certctrl.errors import ConfigError, TlsError, TransportError
from certctrl.model.answer import Answer
from certctrl.model.config import is_loopback
from certctrl.net import explain
from certctrl.net.connections import BROKEN, KeptConnections, Progress, RequestBody, connect_proxy
from certctrl.net.tls import client_context
from certctrl.net.transport import read_answer
from certctrl.plane.acme.answers import invalid_answer
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.text import one_line

MAX_ANSWER = 1024 * 1024
REQUEST_SECONDS = 60.0
_CONNECT_SECONDS = 20.0
_CONNECTIONS = 4
_KEPT_SECONDS = 30.0
_MAX_URL = 2000
_PROXY_FIX = "check proxy and the secret proxy_login"
_HEADERS = {"user-agent": f"certctrl/{__version__}", "accept": "*/*", "accept-encoding": "identity"}


class CaHttp(Protocol):
    """Exchanges with a CA; any number may run concurrently."""

    async def request(self, method: str, url: str, body: bytes | None = None) -> Answer:
        """Return the answer, of any status except redirects; raises IssuerError only."""

    def check_url(self, url: str) -> str:
        """Return a URL of the CA if it may be requested; raises IssuerError."""


@lean.frozen
class Proxy:
    """A CONNECT proxy."""

    url: str
    """``http://HOST:PORT``."""
    login: str = attrs.field(default="", repr=False)
    """``USER:PASSWORD``; empty: none."""

    @property
    def place(self) -> str:
        """The form ``host:port``, for messages."""
        return urlsplit(self.url).netloc


class HttpCa:
    """`CaHttp` over the network; created by `connected`."""

    def __init__(self, client: httpx.AsyncClient, places: CaPlaces, proxy: Proxy | None = None) -> None:
        self._client = client
        self._places = places
        self._proxy = proxy.place if proxy else ""
        self._slots = trio.CapacityLimiter(_CONNECTIONS)

    def check_url(self, url: str) -> str:
        """Return a URL of the CA if it may be requested; raises IssuerError."""
        return self._places.check(url)

    async def request(self, method: str, url: str, body: bytes | None = None) -> Answer:
        """Return the answer, of any status except redirects; raises IssuerError only."""
        place = urlsplit(self.check_url(url)).netloc
        headers = {"host": place, **_HEADERS} | ({} if body is None else {"content-type": "application/jose+json"})
        answer: Answer | None = None
        with trio.move_on_after(REQUEST_SECONDS):
            async with self._slots:
                request = httpx.Request(method, url, headers=headers, content=body, extensions=_as_named(url))
                answer = await self._exchange(request, place)
        if answer is None:
            raise IssuerError(
                f"no complete answer from {place} within {REQUEST_SECONDS:g} s",
                fix="check the network between the control plane and the CA",
            )
        return answer

    async def _exchange(self, request: httpx.Request, place: str) -> Answer:
        try:
            response = await self._client.send(request)
        except httpcore.ConnectError as error:
            raise _connect_error(error, place, self._proxy) from None
        except httpcore.ProxyError as error:
            why = one_line(str(error), ascii_only=True)
            raise IssuerError(f"the proxy {self._proxy} refused to connect to {place}: {why}", fix=_PROXY_FIX) from None
        except TransportError as error:  # not HTTP, or too long
            raise IssuerError(str(error), fix="check directory_url") from None
        except BROKEN as error:
            raise IssuerError(
                f"the connection to {place} broke: {one_line(str(error) or type(error).__name__)}",
                fix="check the network between the control plane and the CA",
            ) from None
        return Answer(status=response.status_code, headers=dict(response.headers), body=response.content)


class _Transport(httpx.AsyncBaseTransport):
    """A transport of the HTTP library over kept connections; its responses are complete and within their limits."""

    def __init__(self, connections: KeptConnections) -> None:
        self._connections = connections

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, once more if the server had closed a kept connection.

        Raises IssuerError for a redirect, TransportError for an answer beyond its limits, and the exceptions of the
        connection.
        """
        url, content = request.url, request.content
        sent = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=request.extensions["target"]),
            headers=request.headers.raw,
            content=RequestBody(content) if content else None,
            extensions={"timeout": {"connect": _CONNECT_SECONDS}},
        )
        place = url.netloc.decode("ascii")
        read = partial(read_answer, cap=MAX_ANSWER, place=place)
        progress = Progress()
        try:
            answer = await self._connections.exchange(sent, read, progress)
        except BROKEN:
            if progress.is_new:
                raise
            answer = await self._connections.exchange(sent, read, Progress())
        if 300 <= answer.status < 400:
            where = one_line(answer.headers.get("location", "nowhere"), ascii_only=True)
            raise IssuerError(
                f"{place} redirects {one_line(url.path, ascii_only=True)} to {where} ({answer.status}), which is not followed",
                fix="set directory_url to the URL of the directory itself",
            )
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._connections.aclose()


def _as_named(url: str) -> dict[str, Any]:
    """Return the extension that requests a URL as the CA named it, which is signed; the library would normalize it."""
    parts = urlsplit(url)
    return {
        "target": parts._replace(scheme="", netloc="", path=parts.path or "/", fragment="").geturl().encode("ascii")
    }


class CaPlaces:
    """The hosts that requests to one CA may go to: that of its directory, and others that the operator allows."""

    def __init__(self, directory_url: str, other_hosts: Collection[str] = ()) -> None:
        self._scheme = urlsplit(directory_url).scheme
        self.are_local = is_loopback(urlsplit(directory_url).hostname or "")
        """Whether the CA is on this host, so that the proxy is not used."""
        others = (f"{self._scheme}://{host}" for host in other_hosts)
        self._places = {_place(urlsplit(url)) for url in (directory_url, *others)}

    def check(self, url: str) -> str:
        """Return the URL; raises IssuerError."""
        try:
            parts = urlsplit(url)
            place = _place(parts)
            if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url or not parts.hostname:
                raise ValueError
        except ValueError:
            raise invalid_answer("answer", f"{one_line(url, 80, ascii_only=True)} is not a URL") from None
        if parts.scheme != self._scheme or place not in self._places or parts.username is not None:
            raise IssuerError(
                f"the CA names a URL at another host, {one_line(f'{parts.scheme}://{parts.netloc}', 100)}",
                fix="if it belongs to the CA, add its HOST[:PORT] to other_hosts",
                is_permanent=True,
            )
        return url


def _place(parts: SplitResult) -> tuple[str, int]:
    """Return host and port of a URL; ValueError for an invalid port."""
    return (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def check_directory_url(url: str) -> str:
    """Return the URL of a directory: https, or http at a loopback host; raises ConfigError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    plain = parts.scheme == "http" and is_loopback(host)
    if not host or parts.username is not None or not (parts.scheme == "https" or plain) or not url.isascii():
        raise ConfigError(
            "expected an https URL",
            path="directory_url",
            fix="write the URL of the CA's directory, such as https://acme-v02.api.letsencrypt.org/directory",
        )
    return url


def check_proxy_url(url: str) -> str:
    """Return the URL of a CONNECT proxy without credentials; raises ConfigError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "http" and parts.hostname and parts.port and parts.path in ("", "/") and url.isascii()
    except ValueError:
        parts, usable = urlsplit(""), False
    if not usable or parts.username is not None:
        fix = "write http://HOST:PORT; a user and a password go into the secret proxy_login, as USER:PASSWORD"
        raise ConfigError("expected the URL of a CONNECT proxy", path="proxy", fix=fix)
    return f"http://{parts.netloc}"


@contextlib.asynccontextmanager
async def connected(places: CaPlaces, ca_file: Path | None, proxy: Proxy | None = None) -> AsyncIterator[HttpCa]:
    """Yield a client, and close its connections afterwards; ``ca_file`` None: use the system trust store."""
    try:
        context = client_context([ca_file] if ca_file is not None else [], None, None)
    except ConfigError as error:
        raise IssuerError(error.reason, fix="set ca_file to a readable PEM file", is_permanent=True) from None
    used = None if places.are_local else proxy
    connections = KeptConnections(context=context, keepalive_seconds=_KEPT_SECONDS, proxy=_connect_proxy(used))
    cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # ACME has none
    async with httpx.AsyncClient(transport=_Transport(connections), trust_env=False, cookies=cookies) as client:
        yield HttpCa(client, places, used)


def _connect_proxy(proxy: Proxy | None) -> httpcore.Proxy | None:
    if proxy is None:
        return None
    user, _, password = proxy.login.partition(":")
    return connect_proxy(proxy.url, (user, password) if proxy.login else None)


def _connect_error(error: httpcore.ConnectError, place: str, proxy: str) -> IssuerError:
    found = explain.connect_error(error, place, now=None, own_ca=False, proxy=proxy)
    fix = "check directory_url, and the network between the control plane and the CA"
    if proxy:
        fix = _PROXY_FIX
    if isinstance(found, TlsError):
        fix = "check directory_url; for a private CA, set ca_file to the CA of its web server"
    return IssuerError(str(found), fix=fix)
