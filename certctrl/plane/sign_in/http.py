"""Requests to an OpenID provider: bounded in time and size, without redirects, each on a connection of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpcore
import trio

from certctrl import __version__
from certctrl.errors import CertctrlError, TransportError
from certctrl.model.config import is_loopback
from certctrl.net import explain
from certctrl.net.connections import BROKEN, KeptConnections, Progress, RequestBody
from certctrl.net.tls import client_context
from certctrl.net.transport import read_answer
from certctrl.text import one_line

MAX_ANSWER = 256 * 1024
SECONDS = 15.0
_CONNECT_SECONDS = 10.0


class ProviderError(CertctrlError):
    """The provider cannot be used, or its answer is not valid."""

    def __init__(self, what: str, *, is_away: bool = False) -> None:
        super().__init__(what)
        self.is_away = is_away
        """Whether it does not answer, which is not the browser's fault."""


class ProviderHttp:
    """Requests to one provider."""

    def __init__(self, ca_file: Path | None) -> None:
        """``ca_file`` None: use the system trust store. Raises ConfigError if it does not load."""
        self._context = client_context([ca_file] if ca_file is not None else [], None, None)

    async def get(self, url: str) -> dict[str, Any]:
        """Return the JSON object at a URL; raises ProviderError."""
        return await self._request("GET", url, None, {})

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the JSON object that answers a form; raises ProviderError."""
        return await self._request("POST", url, urlencode(form).encode(), headers)

    async def _request(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> dict[str, Any]:
        check_url(url)
        parts = urlsplit(url)
        sent = {"host": parts.netloc, "user-agent": f"certctrl/{__version__}", "accept": "application/json", **headers}
        if body is not None:
            sent |= {"content-type": "application/x-www-form-urlencoded", "content-length": str(len(body))}
        request = httpcore.Request(
            method,
            url,
            headers=list(sent.items()),
            content=RequestBody(body) if body else None,
            extensions={"timeout": {"connect": _CONNECT_SECONDS}},
        )
        answer = None
        connections = KeptConnections(context=self._context, keepalive_seconds=1.0)
        try:
            with trio.move_on_after(SECONDS):
                read = partial(read_answer, cap=MAX_ANSWER, place=parts.netloc)
                answer = await connections.exchange(request, read, Progress())
        except httpcore.ConnectError as error:
            raise ProviderError(
                str(explain.connect_error(error, parts.netloc, now=None, own_ca=False)), is_away=True
            ) from None
        except (TransportError, *BROKEN) as error:
            why = one_line(str(error) or type(error).__name__)
            raise ProviderError(f"the connection to {parts.netloc} broke: {why}", is_away=True) from None
        finally:
            with trio.CancelScope(shield=True):
                await connections.aclose()
        if answer is None:
            raise ProviderError(f"no complete answer from {parts.netloc} within {SECONDS:g} s", is_away=True)
        found = _object(answer.body)
        if answer.status != 200 or found is None:
            error_code = one_line(str((found or {}).get("error", "")), 60)
            raise ProviderError(
                f"{parts.netloc} answered with {answer.status}" + (f": {error_code}" if error_code else "")
            )
        return found


def check_url(url: str, *, tls_only: bool = False) -> str:
    """Return a URL of a provider, https, or unless ``tls_only`` http at a loopback host; raises ProviderError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    usable = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host) and not tls_only)
    plain = url.isascii() and url.isprintable() and " " not in url
    if not host or not usable or parts.username is not None or not plain or len(url) > 2000:
        raise ProviderError(f"{one_line(url, 80, ascii_only=True)!r} is not an https URL")
    return url


def _object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in an answer; None if it has none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
